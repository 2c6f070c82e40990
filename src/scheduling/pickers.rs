//! The table of pickers, one file each.
//!
//! A picker gets weighted totals and answers with indices, best first. All randomness comes from the
//! generator that the caller passes in, one per worker and never behind a lock (in the picker we
//! replace, all pickers of all requests wait for one generator).

pub mod cost;
pub mod max_score;
pub mod random;
pub mod round_robin;
pub mod weighted_random;

use super::plugin::{Build, Row};

/// Every picker that a configuration can name.
pub const TABLE: &[Row] = &[max_score::ROW, random::ROW, weighted_random::ROW, round_robin::ROW, cost::ROW];

crate::params! {
    /// What all pickers have in common.
    pub struct Params {
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
    }
}

/// How many endpoints a picker with the parameters of `b` names.
fn count(b: &mut Build<'_>) -> usize {
    let Params { max_num_of_endpoints } = b.params();
    max_num_of_endpoints
}

/// A total that can be compared: a sum that is not a number (infinite weights of both signs) ranks
/// below everything.
#[inline]
fn comparable(total: f32) -> f32 {
    if total.is_nan() { f32::NEG_INFINITY } else { total }
}
