//! The table of scorers, one file each.
//!
//! What missing data means is decided once for the scorers of server metrics. A reading counts when
//! it was reported and its sample is fresh. A candidate without one gets 0, the worst score, as long
//! as some other candidate has one: traffic goes where we can see. When nobody has one, all get the
//! same score, so that a broken scrape never stops or skews routing; the other scorers then decide.
//! (The picker we replace reads "never scraped" as zero load and so sends bursts to pods it cannot
//! see, and goes on using old readings for ever.)

pub mod active_request;
pub mod cel;
pub mod consistent_hash;
pub mod kv_cache_utilization;
pub mod load_aware;
pub mod lora_affinity;
pub mod no_hit_lru;
pub mod outstanding_prefill;
pub mod prefix_cache;
pub mod queue;
pub mod running_requests;
pub mod session_affinity;
pub mod token_load;

use super::plugin::{Cycle, Row};
use crate::domain::{LoadTable, Slot};

/// Every scorer that a configuration can name.
pub const TABLE: &[Row] = &[
    queue::ROW,
    running_requests::ROW,
    kv_cache_utilization::ROW,
    load_aware::ROW,
    active_request::ROW,
    token_load::ROW,
    prefix_cache::ROW,
    no_hit_lru::ROW,
    lora_affinity::ROW,
    session_affinity::ROW,
    consistent_hash::ROW,
    cel::ROW,
    outstanding_prefill::ROW,
];

/// The smallest and the largest of some readings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: f32,
    most: f32,
}

/// Writes each candidate's fresh reading of `metric` to `out`, NaN where there is none; negative
/// readings count as zero. `None` if no candidate has one.
fn read_fresh(
    cx: &Cycle<'_>,
    candidates: &[Slot],
    out: &mut [f32],
    metric: impl Fn(&LoadTable, Slot) -> Option<f32>,
) -> Option<Spread> {
    let loads = &*cx.snapshot.loads;
    let oldest = loads.oldest_fresh(cx.now);
    let mut spread = Spread { least: f32::INFINITY, most: f32::NEG_INFINITY };
    for (value, slot) in out.iter_mut().zip(candidates) {
        match metric(loads, *slot) {
            Some(reading) if loads.taken_at(*slot) >= Some(oldest) => {
                let reading = reading.max(0.0);
                spread.least = spread.least.min(reading);
                spread.most = spread.most.max(reading);
                *value = reading;
            }
            _ => *value = f32::NAN,
        }
    }
    (spread.least <= spread.most).then_some(spread)
}

/// Turns readings into (most - reading) / (most - least); all equal is 1, unknown is 0.
fn fewest_is_best(out: &mut [f32], spread: Option<Spread>) {
    let Some(Spread { least, most }) = spread else {
        out.fill(1.0);
        return;
    };
    let width = most - least;
    for value in out {
        *value = if value.is_nan() {
            0.0
        } else if width > 0.0 {
            (most - *value) / width
        } else {
            1.0
        };
    }
}
