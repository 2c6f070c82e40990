//! What the watches say of themselves: counters that the metrics page reads.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::Timestamp;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The InferencePool.
    Pool,
    /// Pods of the pool.
    Pods,
    /// InferenceObjectives.
    Objectives,
    /// InferenceModelRewrites.
    Rewrites,
}

impl Resource {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Pool, Self::Pods, Self::Objectives, Self::Rewrites];

    /// The name of the resource in the API, which metrics use as well.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "inferencepools",
            Self::Pods => "pods",
            Self::Objectives => "inferenceobjectives",
            Self::Rewrites => "inferencemodelrewrites",
        }
    }
}

/// What a watch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WatchState {
    /// Not asked for (no pool yet, or no such resource is wanted).
    Off = 0,
    /// The cluster does not have the resource.
    Absent = 1,
    /// Reading the list.
    Listing = 2,
    /// Following changes.
    Watching = 3,
    /// Waiting before the next try, after a failure.
    Retrying = 4,
}

impl WatchState {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::Off, Self::Absent, Self::Listing, Self::Watching, Self::Retrying];

    /// The name on the metrics page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Absent => "absent",
            Self::Listing => "listing",
            Self::Watching => "watching",
            Self::Retrying => "retrying",
        }
    }
}

/// Why a list or a watch ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No connection, or it broke.
    Unreachable,
    /// No answer, or no word on a watch, in time.
    Timeout,
    /// 401 or 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 410: the server no longer knows the version we were at.
    Expired,
    /// Any other refusal.
    Refused,
    /// An answer that is not what the API says.
    Malformed,
}

impl Reason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Forbidden,
        Self::NotFound,
        Self::Expired,
        Self::Refused,
        Self::Malformed,
    ];

    /// The name on the metrics page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
        }
    }
}

/// Counters of one watch.
#[derive(Debug, Default)]
pub struct WatchStats {
    /// Microseconds of the clock, plus one; zero is never.
    heard: AtomicU64,
    state: AtomicU8,
    objects: AtomicU64,
    unreadable: AtomicU64,
    failures: [AtomicU64; Reason::ALL.len()],
}

impl WatchStats {
    /// The API server said something, be it only that nothing changed.
    pub fn heard(&self, now: Timestamp) {
        self.heard.store(now.0.saturating_add(1), Ordering::Release);
    }

    /// How long ago the API server last said something; `None` if it never did.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Acquire).checked_sub(1)?;
        Some(now.since(Timestamp(heard)))
    }

    /// Enters a state.
    pub fn enter(&self, state: WatchState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// The present state.
    pub fn state(&self) -> WatchState {
        let state = usize::from(self.state.load(Ordering::Acquire));
        WatchState::ALL.get(state).copied().unwrap_or(WatchState::Off)
    }

    /// Says how many objects are held.
    pub fn hold(&self, objects: usize) {
        self.objects.store(objects as u64, Ordering::Release);
    }

    /// Objects that are held.
    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Acquire)
    }

    /// Counts an object that could not be read.
    pub fn unreadable(&self) {
        self.unreadable.fetch_add(1, Ordering::AcqRel);
    }

    /// How often an object could not be read.
    pub fn unreadables(&self) -> u64 {
        self.unreadable.load(Ordering::Acquire)
    }

    /// Counts a failure.
    pub fn fail(&self, reason: Reason) {
        self.failures[reason as usize].fetch_add(1, Ordering::AcqRel);
    }

    /// Failures by reason.
    pub fn failures(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().zip(&self.failures).map(|(reason, count)| (reason, count.load(Ordering::Acquire)))
    }
}

/// Counters of all watches.
#[derive(Debug, Default)]
pub struct Stats([WatchStats; Resource::ALL.len()]);

impl Stats {
    /// Those of one watch.
    pub fn of(&self, resource: Resource) -> &WatchStats {
        &self.0[resource as usize]
    }
}
