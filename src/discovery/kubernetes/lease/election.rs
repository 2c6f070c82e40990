//! Who leads: a state machine of one candidate, without I/O and without a clock of its own.
//!
//! The record is that of client-go's leader election, so that pickers of both makes can compete for
//! one Lease. The driver asks [`Election::next`] what to do, does it, and reports what came of it.
//!
//! **Invariant.** At any time at most one candidate is [`Role::Leader`], whatever is lost, late or said
//! twice, as long as clocks run at the same rate (they need not agree):
//!
//! * a leader counts from the moment *before* the call that renewed its lease, and believes for
//!   [`Timing::renew`]; others count from the moment they *saw* that renewal, which is later, and wait
//!   [`Timing::lease`], which is longer;
//! * every write names the version that it replaces, so of two writers one gets a conflict, and a write
//!   that arrives late changes nothing;
//! * times in the record are for people; nobody's wall clock decides anything.
//!
//! **When the API server is away** the leader cannot renew, and when its time is over it is no longer
//! *sure*. It goes on leading as [`Role::Unconfirmed`]: what keeps it from renewing keeps the others
//! from taking over, and a pool whose only leader sends requests away because the control plane is
//! down is an outage that nobody needed. The other side of it: a leader that alone has lost the API server
//! leads beside its successor until it can ask again, or until its node is declared lost. Two
//! pickers that lead cost cache hits and balance; none costs every request. An unconfirmed leader
//! steps down with the first answer that shows another holder, and with an answer that says that
//! the trouble is its own ([`Failure::Own`]).
//!
//! Rejected: ending the process when the lease is lost (as client-go's users do). It throws away the
//! prefix index, and what a leader knows is worth most right after it stopped leading. Rejected:
//! comparing versions by size, which the API leaves undefined.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::Timestamp;

/// How long things take; the values of client-go and of the picker we replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the last change of the record until others may take it.
    pub lease: Duration,
    /// From the last renewal until the leader is no longer sure; less than `lease`.
    pub renew: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// What the Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty after a release.
    pub holder: String,
    /// What the holder promises to renew within; zero if it does not say.
    pub lasts: Duration,
    /// Wall clock of the holder when it took the lease, in microseconds since 1970.
    pub acquired: Option<i64>,
    /// Wall clock of the holder at the last renewal, in microseconds since 1970.
    pub renewed: Option<i64>,
    /// How often the holder changed.
    pub transitions: i32,
}

/// What a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Somebody else leads, or nobody.
    Standby,
    /// This one leads, and nobody else believes to.
    Leader,
    /// This one led last and cannot ask; see the module docs.
    Unconfirmed,
}

impl Role {
    /// Whether it should take traffic.
    pub fn leads(self) -> bool {
        self != Self::Standby
    }
}

/// What to do next. `H` is what a write needs to name the version it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<H> {
    /// Nothing before this time, unless the record changes.
    Wait(Timestamp),
    /// Read the record.
    Read,
    /// Create it.
    Create(Record),
    /// Replace that version of it.
    Update(H, Record),
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer, or one that every candidate gets.
    Everybodys,
    /// An answer that concerns this candidate; others may fare better.
    Own,
}

#[derive(Clone, Debug)]
enum Known<H> {
    Nothing,
    Absent,
    Record(Seen<H>),
}

#[derive(Clone, Debug)]
struct Seen<H> {
    record: Record,
    handle: H,
    /// When the record was first seen as it is.
    at: Timestamp,
}

/// One candidate.
#[derive(Debug)]
pub struct Election<H> {
    identity: Arc<str>,
    /// What the identities of former processes of this pod begin with.
    pod: Option<String>,
    timing: Timing,
    random: fastrand::Rng,
    role: Role,
    known: Known<H>,
    /// What is known may be outdated: read before the next write.
    stale: bool,
    /// The last record seen is of a former process of this pod, which has ended.
    orphan: bool,
    /// Start of the last write that succeeded.
    confirmed: Timestamp,
    /// Time of the next read or renewal.
    due: Timestamp,
    /// Earliest time of the next try to take the lease.
    attempt: Timestamp,
    conflicts: u32,
    /// An answer since the last renewal said that the trouble is our own.
    own_fault: bool,
    contact: Option<Timestamp>,
}

impl<H: Clone> Election<H> {
    /// A candidate called `identity`, unique among processes.
    ///
    /// `pod` is the name of the pod that this process is alone in, over all its restarts; identities
    /// of such processes are `<pod>_<anything>`. A record left by a former one is taken at once: that
    /// process has ended, or this one would not run.
    pub fn new(identity: impl Into<Arc<str>>, pod: Option<&str>, timing: Timing, seed: u64) -> Self {
        Self {
            identity: identity.into(),
            pod: pod.filter(|pod| !pod.is_empty()).map(|pod| format!("{pod}_")),
            timing,
            random: fastrand::Rng::with_seed(seed),
            role: Role::Standby,
            known: Known::Nothing,
            stale: false,
            orphan: false,
            confirmed: Timestamp::default(),
            due: Timestamp::default(),
            attempt: Timestamp::default(),
            conflicts: 0,
            own_fault: false,
            contact: None,
        }
    }

    /// The name of this candidate.
    pub fn identity(&self) -> &Arc<str> {
        &self.identity
    }

    /// What this candidate is, at the last call of [`Self::tick`] or [`Self::next`].
    pub fn role(&self) -> Role {
        self.role
    }

    /// The holder in the last record seen; empty if there is none.
    pub fn holder(&self) -> &str {
        match &self.known {
            Known::Record(seen) => &seen.record.holder,
            _ => "",
        }
    }

    /// The time of the last answer with the record, or about its absence.
    pub fn contact(&self) -> Option<Timestamp> {
        self.contact
    }

    /// When the role changes by itself, if nothing happens.
    pub fn deadline(&self) -> Option<Timestamp> {
        (self.role == Role::Leader).then(|| self.confirmed.plus(self.timing.renew))
    }

    /// Lets time pass: a leader that could not renew in time is unconfirmed, or has lost.
    pub fn tick(&mut self, now: Timestamp) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.role = Role::Unconfirmed;
        }
        if self.role == Role::Unconfirmed && self.own_fault {
            self.role = Role::Standby;
        }
    }

    /// What to do at `now`; `wall` is the wall clock in microseconds since 1970.
    pub fn next(&mut self, now: Timestamp, wall: i64) -> Step<H> {
        self.tick(now);
        let leads = self.role.leads();
        if leads && now < self.due {
            return Step::Wait(self.due.min(self.deadline().unwrap_or(self.due)));
        }
        match &self.known {
            _ if self.stale && now < self.due => Step::Wait(self.due),
            _ if self.stale => Step::Read,
            Known::Nothing if now < self.due => Step::Wait(self.due),
            Known::Nothing => Step::Read,
            Known::Absent if now < self.attempt => Step::Wait(self.attempt),
            Known::Absent => Step::Create(self.record(None, wall)),
            Known::Record(seen) => {
                let free = if leads { now } else { self.free(seen) };
                if now < free {
                    return if now < self.due { Step::Wait(self.due.min(free)) } else { Step::Read };
                }
                if !leads && now < self.attempt {
                    return Step::Wait(self.attempt);
                }
                Step::Update(seen.handle.clone(), self.record(Some(&seen.record), wall))
            }
        }
    }

    /// What gives the lease back, as long as this candidate is known to hold it. It leads no more.
    pub fn resign(&mut self, wall: i64) -> Option<Step<H>> {
        self.role = Role::Standby;
        match &self.known {
            Known::Record(seen) if *seen.record.holder == *self.identity => Some(match self.stale {
                true => Step::Read,
                false => {
                    let record = Record {
                        holder: String::new(),
                        // As client-go does it: zero is not allowed by the API.
                        lasts: Duration::from_secs(1),
                        acquired: Some(wall),
                        renewed: Some(wall),
                        transitions: seen.record.transitions,
                    };
                    Step::Update(seen.handle.clone(), record)
                }
            }),
            _ => None,
        }
    }

    /// The record was seen: `fresh` by a read that was answered at `now`, else by a watch, which may
    /// tell of the past.
    pub fn found(&mut self, record: Record, handle: H, fresh: bool, now: Timestamp) {
        self.contact = Some(now);
        let at = match &self.known {
            Known::Record(seen) if seen.record == record => seen.at,
            Known::Record(_) | Known::Absent => {
                // A process of this pod's name that writes while we run is a mistake of the
                // deployment: fighting over the lease would make it worse.
                self.orphan = false;
                now
            }
            Known::Nothing => {
                self.orphan = self.pod.as_ref().is_some_and(|pod| record.holder.starts_with(pod.as_str()));
                now
            }
        };
        if *record.holder != *self.identity && self.role.leads() {
            self.role = Role::Standby;
        }
        self.known = Known::Record(Seen { record, handle, at });
        if fresh {
            self.stale = false;
        }
        // A leader renews when it was going to.
        if !self.role.leads() && !self.stale {
            self.due = now.plus(self.pause());
        }
    }

    /// There is no record.
    pub fn absent(&mut self, now: Timestamp) {
        self.contact = Some(now);
        self.known = Known::Absent;
        (self.stale, self.orphan) = (false, false);
    }

    /// Our write, begun at `began`, succeeded.
    pub fn wrote(&mut self, record: Record, handle: H, began: Timestamp, now: Timestamp) {
        self.contact = Some(now);
        if *record.holder == *self.identity {
            (self.role, self.confirmed) = (Role::Leader, began);
            self.due = began.plus(self.timing.retry).max(now);
        }
        self.known = Known::Record(Seen { record, handle, at: now });
        (self.stale, self.orphan, self.own_fault, self.conflicts) = (false, false, false, 0);
        self.tick(now);
    }

    /// Our write met another version, or another creator.
    pub fn conflict(&mut self, now: Timestamp) {
        self.conflicts = self.conflicts.saturating_add(1);
        self.stale = true;
        // Once is a race lost, or an own write whose answer was lost. More often is no reason to hurry.
        let calm = if self.conflicts > 1 { now.plus(self.pause()) } else { now };
        (self.due, self.attempt) = (calm, calm);
    }

    /// A call failed; what it did is unknown.
    pub fn failed(&mut self, failure: Failure, now: Timestamp) {
        self.own_fault |= failure == Failure::Own;
        let again = now.plus(self.pause());
        (self.due, self.attempt) = (again, again);
        // A leader that may not write may still be able to read that another one leads.
        self.stale |= self.role.leads();
        self.tick(now);
    }

    /// When the record that was seen may be taken.
    fn free(&self, seen: &Seen<H>) -> Timestamp {
        let record = &seen.record;
        if record.holder.is_empty() || *record.holder == *self.identity || self.orphan {
            return seen.at;
        }
        seen.at.plus(if record.lasts.is_zero() { self.timing.lease } else { record.lasts })
    }

    /// The record that takes or renews the lease.
    fn record(&self, old: Option<&Record>, wall: i64) -> Record {
        let (acquired, transitions) = match old {
            Some(old) if *old.holder == *self.identity => (old.acquired.or(Some(wall)), old.transitions),
            Some(old) => (Some(wall), old.transitions.saturating_add(1)),
            None => (Some(wall), 0),
        };
        let holder = self.identity.to_string();
        Record { holder, lasts: self.timing.lease, acquired, renewed: Some(wall), transitions }
    }

    /// Time between two tries, spread so that candidates do not march in step.
    fn pause(&mut self) -> Duration {
        self.timing.retry.mul_f64(1.0 + 0.2 * self.random.f64())
    }
}

#[cfg(test)]
mod tests;
