//! Gauges of the pool, read from the snapshot when the page is read: no gauge can be forgotten when
//! an endpoint leaves.
//!
//! Means and deviations are over endpoints with a fresh sample that reports the value. If there is
//! none the series is absent: a zero would tell an autoscaler that the pool is idle.

use std::collections::BTreeMap;

use super::catalog::{self as c, Spec};
use super::family::Page;
use crate::domain::{AccountView, Endpoint, Freshness, LoadTable, Slot, Snapshot, Timestamp};

type Column = fn(&LoadTable, Slot) -> Option<f32>;

/// Writes the gauges of `snapshot` at `now`. `in_flight` is the name of the producer that counts
/// in-flight work, if there is one.
pub fn collect(page: &mut Page, snapshot: &Snapshot, now: Timestamp, in_flight: Option<&str>) {
    let topology = &snapshot.topology;
    let loads = &snapshot.loads;
    let pool = topology.pool.name.as_str();

    let mut fresh: Vec<&Endpoint> = Vec::with_capacity(topology.len());
    let (mut stale, mut never, mut oldest) = (0_u32, 0_u32, None);
    for endpoint in topology.endpoints() {
        let age = match loads.freshness(endpoint.slot, now) {
            Freshness::Never => {
                never += 1;
                continue;
            }
            Freshness::Stale(age) => {
                stale += 1;
                age
            }
            Freshness::Fresh(age) => {
                fresh.push(endpoint);
                age
            }
        };
        oldest = oldest.max(Some(age));
    }

    page.value(&c::READY_ENDPOINTS, &[pool], topology.len() as f64);
    page.value(&c::ENDPOINT_SAMPLES, &[pool, "fresh"], fresh.len() as f64);
    page.value(&c::ENDPOINT_SAMPLES, &[pool, "stale"], f64::from(stale));
    page.value(&c::ENDPOINT_SAMPLES, &[pool, "never"], f64::from(never));
    if let Some(age) = oldest {
        page.value(&c::OLDEST_SAMPLE, &[pool], age.as_secs_f64());
    }

    let columns: [(Column, Spec, Spec); 3] = [
        (LoadTable::kv_usage, c::AVERAGE_KV, c::STD_DEV_KV),
        (LoadTable::waiting, c::AVERAGE_QUEUE, c::STD_DEV_QUEUE),
        (LoadTable::running, c::AVERAGE_RUNNING, c::STD_DEV_RUNNING),
    ];
    for (column, average, deviation) in columns {
        let values: Vec<f64> = fresh.iter().filter_map(|e| column(loads, e.slot)).map(f64::from).collect();
        if let Some((mean, spread)) = mean_and_deviation(&values) {
            page.value(&average, &[pool], mean);
            page.value(&deviation, &[pool], spread);
        }
    }
    // A name is unique only with its namespace, which this family does not have as a label; a series
    // that appears twice would cost the scraper the whole page.
    let mut queues: BTreeMap<&str, f64> = BTreeMap::new();
    for endpoint in &fresh {
        if let Some(waiting) = loads.waiting(endpoint.slot) {
            *queues.entry(endpoint.name()).or_default() += f64::from(waiting);
        }
    }
    for (name, waiting) in queues {
        page.value(&c::ENDPOINT_QUEUE, &[pool, name], waiting);
    }
    if let Some(producer) = in_flight {
        for endpoint in topology.endpoints() {
            // The counters are kept per endpoint; an empty label is no label to Prometheus.
            let values = [endpoint.name(), endpoint.spec.namespace.as_str(), producer, "", ""];
            page.value(&c::IN_FLIGHT_REQUESTS, &values, endpoint.in_flight.requests() as f64);
            page.value(&c::IN_FLIGHT_TOKENS, &values, endpoint.in_flight.tokens() as f64);
        }
    }
}

/// Writes the picker's own accounts of the endpoints of `snapshot`.
pub fn collect_accounts(page: &mut Page, snapshot: &Snapshot, accounts: &AccountView) {
    let topology = &snapshot.topology;
    for endpoint in topology.endpoints() {
        let values = [endpoint.name(), endpoint.spec.namespace.as_str()];
        let account = accounts.of(endpoint.slot);
        page.value(&c::OUTSTANDING_PREFILL, &values, f64::from(account.outstanding));
        page.value(&c::PREFILL_RATE, &values, f64::from(account.rate));
    }
    page.value(&c::PREFILL_SAMPLES, &[topology.pool.name.as_str()], f64::from(accounts.samples));
}

/// Mean and population standard deviation; `None` without values.
fn mean_and_deviation(values: &[f64]) -> Option<(f64, f64)> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    Some((mean, variance.sqrt()))
}
