//! The decision: filters, weighted scorers and a picker over one snapshot. Pure and synchronous.
//!
//! Reading order: [`plugin`] (the traits and the plugin table), [`params`] (strict parameters),
//! [`profile`] (one cycle over dense arrays), [`scheduler`] (which profiles run, in what order),
//! [`per_topology`] (what a plugin works out once per endpoint set), then the tables [`handlers`],
//! [`filters`], [`scorers`], [`pickers`], [`detectors`] and [`responses`], one file per plugin; [`session_affinity`] and [`cel`] (expressions
//! of operators) are what two of them share.
//!
//! Invariants: no I/O, no clock, no global random numbers (`tests/architecture.rs`). Deciding changes
//! nothing, so a decision can be repeated, explained, replayed and benchmarked; what a plugin
//! learns, it learns in [`plugin::Commit`] after the choice.

pub mod cel;
pub mod cost;
pub mod detectors;
pub mod dispatch;
pub mod filters;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod handlers;
pub mod params;
pub mod per_topology;
pub mod pickers;
pub mod plugin;
pub mod profile;
pub mod responses;
pub mod scheduler;
pub mod scorers;
pub mod session_affinity;

/// The walk-through for contributors, compiled as a doctest so that it cannot rot.
#[cfg(doctest)]
#[doc = include_str!("../docs/adding-a-plugin.md")]
pub mod adding_a_plugin {}
