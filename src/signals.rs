//! Per-request facts about endpoints, and what is learnt from each choice to find them next time.
//!
//! A producer runs before scheduling and only reads shared state; the same plugin usually implements
//! [`Commit`](crate::scheduling::plugin::Commit), which writes it. Consumers address a producer's
//! facts by ordinal (see [`crate::domain::signals`]).

pub mod accounts;
pub mod approx_prefix;
pub mod in_flight;
pub mod mirror_prefix;
pub mod prefix;
pub mod session_id;
pub mod token_estimate;

use crate::scheduling::plugin::Row;

/// Every producer that a configuration can name, in the order in which the reference lists them.
pub const TABLE: &[Row] =
    &[token_estimate::ROW, approx_prefix::ROW, mirror_prefix::ROW, in_flight::ROW, accounts::ROW, session_id::ROW];
