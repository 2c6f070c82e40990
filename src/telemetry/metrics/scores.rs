//! The last scores of each endpoint, taken from the decisions that are observed.
//!
//! A decision writes its values into one table under a lock that it only tries: if the page is being
//! made, or another decision writes, its scores are skipped, since the next observed one brings new
//! ones. Rows belong to slots and carry the endpoint's generation, so that the page shows nothing of an
//! endpoint that left.
//!
//! Bounds: endpoints in the first [`MAX_ENDPOINTS`] slots and [`MAX_PROFILES`] profiles; the rest is not
//! shown. Rejected: a histogram per endpoint (buckets times endpoints), and observing every decision
//! (endpoints times scorers stores per request).

use std::sync::Arc;

use parking_lot::Mutex;

use super::catalog as c;
use super::family::Page;
use crate::domain::Snapshot;
use crate::scheduling::profile::Run;

/// Slots whose scores are kept.
pub const MAX_ENDPOINTS: usize = 1024;
/// Profiles whose scores are kept.
pub const MAX_PROFILES: usize = 16;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Scores {
    profiles: Mutex<Vec<Table>>,
}

#[derive(Debug)]
struct Table {
    profile: Arc<str>,
    scorers: Vec<Arc<str>>,
    rows: Vec<Row>,
    /// Values by row and scorer.
    values: Vec<f32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// Of the endpoint that was scored, if one was.
    generation: Option<u64>,
    total: f32,
}

impl Scores {
    /// Keeps the scores of one run of a profile.
    pub fn record(&self, run: &Run) {
        if run.totals.len() != run.candidates.len() || run.values.len() != run.candidates.len() * run.scorers.len() {
            return;
        }
        let Some(mut profiles) = self.profiles.try_lock() else { return };
        let at = match profiles.iter().position(|table| table.profile == run.profile) {
            Some(at) => at,
            None if profiles.len() < MAX_PROFILES => {
                profiles.push(Table {
                    profile: Arc::clone(&run.profile),
                    scorers: run.scorers.iter().map(|(name, _)| Arc::clone(name)).collect(),
                    rows: Vec::new(),
                    values: Vec::new(),
                });
                profiles.len() - 1
            }
            None => return,
        };
        let Table { scorers, rows, values, .. } = &mut profiles[at];
        let width = scorers.len();
        for (i, slot) in run.candidates.iter().enumerate() {
            let Some(endpoint) = run.topology.get(*slot) else { continue };
            if slot.index() >= MAX_ENDPOINTS {
                // Slots ascend.
                break;
            }
            if slot.index() >= rows.len() {
                rows.resize(slot.index() + 1, Row::default());
                values.resize(rows.len() * width, 0.0);
            }
            rows[slot.index()] = Row { generation: Some(endpoint.generation), total: run.totals[i] };
            let row = &mut values[slot.index() * width..][..width];
            for (scorer, value) in row.iter_mut().enumerate() {
                *value = run.values[scorer * run.candidates.len() + i];
            }
        }
    }

    /// Writes the scores of the endpoints that are in the pool. `kinds` are plugin types by name.
    pub fn collect(&self, page: &mut Page, snapshot: &Snapshot, kinds: &[(Arc<str>, &'static str)]) {
        let profiles = self.profiles.lock();
        for Table { profile, scorers, rows, values } in &*profiles {
            let kinds: Vec<&str> =
                scorers.iter().map(|s| kinds.iter().find(|(name, _)| name == s).map_or("", |(_, kind)| kind)).collect();
            for endpoint in snapshot.topology.endpoints() {
                let at = endpoint.slot.index();
                let Some(row) = rows.get(at).filter(|row| row.generation == Some(endpoint.generation)) else {
                    continue;
                };
                let (name, namespace) = (endpoint.name(), endpoint.spec.namespace.as_str());
                page.value(&c::ENDPOINT_TOTAL_SCORE, &[name, namespace, profile], f64::from(row.total));
                for (i, scorer) in scorers.iter().enumerate() {
                    // A series that is there twice would cost the scraper the whole page.
                    if scorers[..i].contains(scorer) {
                        continue;
                    }
                    let labels = [name, namespace, profile, kinds[i], scorer];
                    page.value(&c::ENDPOINT_SCORE, &labels, f64::from(values[at * scorers.len() + i]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{Endpoint, EndpointSpec, LoadTable, PoolIdentity, Slot, Timestamp, Topology};

    fn topology(version: u64, generations: &[u64]) -> Arc<Topology> {
        let endpoint = |(i, generation): (usize, &u64)| {
            let spec = EndpointSpec {
                name: format!("e{i}"),
                namespace: "ns".into(),
                address: ([10, 0, 0, 1], 8000 + i as u16).into(),
                rank: 0,
                incarnation: 0,
                labels: std::collections::BTreeMap::default(),
            };
            Some(Arc::new(Endpoint::new(Slot(i as u32), *generation, spec)))
        };
        let slots = generations.iter().enumerate().map(endpoint).collect();
        Arc::new(Topology::new(version, PoolIdentity::default(), slots))
    }

    fn run(topology: &Arc<Topology>, candidates: &[u32], values: &[f32], totals: &[f32]) -> Run {
        Run {
            profile: "default".into(),
            started: Timestamp::default(),
            ended: Timestamp::default(),
            laps: 0..0,
            base: candidates.len(),
            topology: Arc::clone(topology),
            candidates: candidates.iter().map(|s| Slot(*s)).collect(),
            scorers: vec![("queue".into(), 2.0), ("prefix".into(), 3.0)],
            values: values.to_vec(),
            totals: totals.to_vec(),
        }
    }

    /// What the page shows, as (endpoint, scorer or nothing for the total, value).
    fn shown(scores: &Scores, topology: &Arc<Topology>) -> Vec<(String, String, f64)> {
        let mut page = Page::default();
        let snapshot =
            Snapshot { topology: Arc::clone(topology), loads: Arc::new(LoadTable::new(Duration::from_secs(1))) };
        scores.collect(&mut page, &snapshot, &[("queue".into(), "queue-scorer")]);
        let mut all = Vec::new();
        for family in page.into_families() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric.get_label().iter().find(|l| l.name() == name).map_or("", |l| l.value()).to_owned()
                };
                all.push((label("endpoint_name"), label("plugin_name"), metric.get_gauge().get_value()));
            }
        }
        all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        all
    }

    #[test]
    fn each_endpoint_keeps_what_it_was_given_last() {
        let scores = Scores::default();
        let pool = topology(1, &[1, 2, 3]);
        scores.record(&run(&pool, &[0, 1, 2], &[0.5, 1.0, 0.25, 0.0, 0.75, 0.5], &[1.0, 4.25, 2.0]));
        // Later, one of them was no candidate.
        scores.record(&run(&pool, &[0, 2], &[1.0, 0.5, 0.25, 0.5], &[2.75, 2.5]));
        let row = |name: &str, scorer: &str, value| (name.to_owned(), scorer.to_owned(), value);
        let expected = [
            row("e0", "", 2.75),
            row("e0", "prefix", 0.25),
            row("e0", "queue", 1.0),
            row("e1", "", 4.25),
            row("e1", "prefix", 0.75),
            row("e1", "queue", 1.0),
            row("e2", "", 2.5),
            row("e2", "prefix", 0.5),
            row("e2", "queue", 0.5),
        ];
        assert_eq!(shown(&scores, &pool), expected);
        // The slot of e1 went to another endpoint, which nobody has scored yet.
        let later = topology(2, &[1, 9, 3]);
        assert_eq!(shown(&scores, &later), [&expected[..3], &expected[6..]].concat());
    }

    #[test]
    fn what_is_out_of_bounds_or_unfinished_is_left_out() {
        let scores = Scores::default();
        let pool = topology(1, &[1; MAX_ENDPOINTS + 1]);
        let last = MAX_ENDPOINTS as u32;
        scores.record(&run(&pool, &[last - 1, last], &[0.5, 0.5, 0.5, 0.5], &[1.0, 1.0]));
        assert_eq!(shown(&scores, &pool).len(), 3, "one endpoint with a total and two values");
        scores.record(&run(&pool, &[0, 1], &[0.5, 0.5], &[]));
        assert_eq!(shown(&scores, &pool).len(), 3, "a run that ended before the picker has no totals");
        for i in 0..2 * MAX_PROFILES {
            let mut other = run(&pool, &[0], &[0.5, 0.5], &[1.0]);
            other.profile = format!("profile {i}").into();
            scores.record(&other);
        }
        assert_eq!(scores.profiles.lock().len(), MAX_PROFILES);
    }

    #[test]
    fn a_locked_table_is_not_waited_for() {
        let scores = Scores::default();
        let pool = topology(1, &[1]);
        let held = scores.profiles.lock();
        scores.record(&run(&pool, &[0], &[0.5, 0.5], &[1.0]));
        drop(held);
        assert!(shown(&scores, &pool).is_empty());
    }
}
