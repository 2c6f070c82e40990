//! Messages in, endpoints out, against an oracle that knows only the final objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::super::objects::{Object, Read};
use super::*;
use crate::domain::PoolIdentity;
use crate::lifecycle::clock::ManualClock;
use crate::pool::Pool;

fn pod(name: &str, ip: u8, label: u8, active: Option<&str>) -> PodFacts {
    let annotations = active.map(|ports| json!({"llm-d.ai/active-ports": ports}));
    let json = json!({
        "metadata": {"name": name, "labels": {"l": label.to_string()}, "annotations": annotations},
        "status": {"podIP": format!("10.0.0.{ip}"), "conditions": [{"type": "Ready", "status": "True"}]}
    });
    match PodFacts::read(&json.to_string(), &()) {
        Ok(Read::Present(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

fn pool_facts(selector: &str, ports: &[u16]) -> PoolFacts {
    PoolFacts { selector: selector.into(), ports: ports.to_vec() }
}

fn complete<T>(objects: Vec<T>) -> Change<T> {
    Change::Complete { objects, unreadable: 0 }
}

/// An index whose optional resources have answered.
fn index() -> Index {
    let mut index = Index::new("n".into());
    index.apply(Message::Objectives(Change::Unavailable));
    index.apply(Message::Rewrites(Change::Unavailable));
    index
}

/// A pool, and the edits of an index put into it.
struct Follower(Arc<Pool>);

impl Follower {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        Self(Arc::new(Pool::new(PoolIdentity::default(), Duration::from_secs(1), clock, Box::new(|_| {}))))
    }

    fn take(&self, index: &mut Index) -> bool {
        match index.edit() {
            None => return false,
            Some(Edit::Whole(specs)) => self.0.replace(specs),
            Some(Edit::Part(gone, come)) => self.0.edit(&gone, come),
        };
        true
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.snapshot().topology.endpoints().map(|e| e.name().to_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn nothing_is_ready_before_the_list_is_complete() {
    let mut index = index();
    assert!(!index.is_ready() && index.pod_watch().is_none());
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    let watch = index.pod_watch().cloned().unwrap();
    assert_eq!(watch.selector, "a=b");
    index.apply(Message::Pods(watch.number, Change::Unavailable));
    assert!(!index.is_ready());
    index.apply(Message::Pods(watch.number, complete(vec![])));
    assert!(index.is_ready(), "an empty list is complete, too");
}

#[test]
fn it_waits_for_a_first_word_on_objectives_and_rewrites() {
    let mut index = Index::new("n".into());
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    index.apply(Message::Pods(1, complete(vec![])));
    assert!(!index.is_ready());
    index.apply(Message::Objectives(complete(vec![])));
    assert!(!index.is_ready());
    index.apply(Message::Rewrites(Change::Unavailable));
    assert!(index.is_ready());
}

#[test]
fn another_selector_changes_pods_and_ports_in_one_step() {
    let (mut index, follower) = (index(), Follower::new());
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    index.apply(Message::Pods(1, complete(vec![pod("old", 1, 0, None)])));
    follower.take(&mut index);
    index.apply(Message::Pool(Change::Applied(pool_facts("a=c", &[90]))));
    assert_eq!(index.pod_watch().unwrap().number, 2);
    assert!(!follower.take(&mut index) && index.is_ready(), "the old set stays until the new list is complete");
    index.apply(Message::Pods(1, Change::Gone("old".into())));
    index.apply(Message::Pods(1, complete(vec![])));
    assert!(!follower.take(&mut index), "the old watch has no say any more");
    index.apply(Message::Pods(2, complete(vec![pod("new", 2, 0, None)])));
    assert!(follower.take(&mut index));
    assert_eq!(follower.names(), ["new-rank-0"]);
    assert_eq!(follower.0.snapshot().topology.endpoints().next().unwrap().destination(), "10.0.0.2:90");
}

#[test]
fn other_ports_apply_at_once_to_what_is_held() {
    let (mut index, follower) = (index(), Follower::new());
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80, 81]))));
    index.apply(Message::Pods(1, complete(vec![pod("p", 1, 0, None), pod("q", 2, 0, Some("81"))])));
    follower.take(&mut index);
    assert_eq!(follower.names(), ["p-rank-0", "p-rank-1", "q-rank-1"]);
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[81]))));
    assert!(follower.take(&mut index));
    assert_eq!(follower.names(), ["p-rank-0", "q-rank-0"]);
    assert_eq!(index.pod_watch().unwrap().number, 1, "the watch goes on");
}

#[test]
fn a_pool_that_is_gone_takes_everything_and_brings_it_back() {
    let (mut index, follower) = (index(), Follower::new());
    index.apply(Message::Objectives(complete(vec![ObjectiveSpec { name: "o".into(), priority: 1 }])));
    index.apply(Message::Pool(complete(vec![pool_facts("a=b", &[80])])));
    index.apply(Message::Pods(1, complete(vec![pod("p", 1, 0, None)])));
    follower.take(&mut index);
    assert_ne!(index.policies(), Some(Policies::default()));
    index.apply(Message::Pool(Change::Gone("p".into())));
    assert!(follower.take(&mut index) && follower.names().is_empty());
    assert!(!index.is_ready() && index.pod_watch().is_none());
    assert_eq!(index.policies(), Some(Policies::default()));
    index.apply(Message::Pods(1, Change::Applied(pod("late", 3, 0, None))));
    assert!(!follower.take(&mut index), "a word from before");
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    assert!(!index.is_ready());
    index.apply(Message::Pods(2, complete(vec![pod("p", 1, 0, None)])));
    assert!(follower.take(&mut index) && index.is_ready());
    assert!(index.policies().is_some_and(|p| p != Policies::default()));
    assert!(index.policies().is_none(), "nothing new");
}

#[test]
fn failures_and_an_unreadable_pool_take_nothing_away() {
    let (mut index, follower) = (index(), Follower::new());
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    index.apply(Message::Pods(1, complete(vec![pod("p", 1, 0, None)])));
    follower.take(&mut index);
    index.apply(Message::Pool(Change::Unavailable));
    index.apply(Message::Pods(1, Change::Unavailable));
    index.apply(Message::Objectives(Change::Unavailable));
    index.apply(Message::Pool(Change::Complete { objects: vec![], unreadable: 1 }));
    assert!(!follower.take(&mut index) && index.is_ready());
    index.apply(Message::Pool(complete(vec![])));
    assert!(follower.take(&mut index) && !index.is_ready());
}

#[test]
fn changes_that_cancel_out_are_no_edit() {
    let (mut index, follower) = (index(), Follower::new());
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    index.apply(Message::Pods(1, complete(vec![pod("p", 1, 0, None)])));
    follower.take(&mut index);
    index.apply(Message::Pods(1, Change::Gone("p".into())));
    index.apply(Message::Pods(1, Change::Applied(pod("p", 1, 0, None))));
    index.apply(Message::Pods(1, Change::Applied(pod("q", 2, 0, None))));
    index.apply(Message::Pods(1, Change::Gone("q".into())));
    assert_eq!(index.edit(), None);
}

#[test]
fn pods_beyond_the_bound_are_passed_over() {
    let mut index = index();
    index.apply(Message::Pool(Change::Applied(pool_facts("a=b", &[80]))));
    let mut one = pod("x", 1, 0, None);
    let many = (0..MAX_ENDPOINTS + 2).map(|i| {
        one.name = format!("p{i}").into();
        one.clone()
    });
    index.apply(Message::Pods(1, complete(many.collect())));
    assert_eq!((index.held()[1], index.refused()), (MAX_ENDPOINTS, 2));
    index.apply(Message::Pods(1, Change::Applied(pod("z", 1, 0, None))));
    assert_eq!((index.held()[1], index.refused()), (MAX_ENDPOINTS, 3));
}

/// One thing that happens to the cluster.
#[derive(Clone, Debug)]
enum Step {
    Pod(u8, Option<(u8, u8, Option<&'static str>)>),
    Ports(Vec<u16>),
    Selector(u8),
    PoolGone,
    Relist,
    /// The picker catches up: what is pending is applied as one batch.
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let active = prop_oneof![Just(None), Just(Some("80")), Just(Some("81,82")), Just(Some(""))];
    let step = prop_oneof![
        6 => (0u8..6, proptest::option::weighted(0.7, (0u8..4, 0u8..2, active))).prop_map(|(n, p)| Step::Pod(n, p)),
        1 => prop_oneof![Just(vec![80]), Just(vec![80, 81]), Just(vec![82, 80])].prop_map(Step::Ports),
        1 => (0u8..2).prop_map(Step::Selector),
        1 => Just(Step::PoolGone),
        1 => Just(Step::Relist),
        3 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn any_order_of_events_leads_to_what_the_objects_say(steps in steps()) {
        let (mut index, follower) = (index(), Follower::new());
        let mut pods: BTreeMap<u8, PodFacts> = BTreeMap::new();
        let mut pool: Option<PoolFacts> = None;
        let set = |index: &mut Index, pool: &PoolFacts| index.apply(Message::Pool(Change::Applied(pool.clone())));
        for step in steps {
            let watch = index.pod_watch().map(|w| w.number);
            match step.clone() {
                Step::Pod(n, state) => {
                    let name = format!("pod-{n}");
                    let change = match state {
                        Some((ip, label, active)) => {
                            let facts = pod(&name, n * 8 + ip, label, active);
                            pods.insert(n, facts.clone());
                            Change::Applied(facts)
                        }
                        None => {
                            pods.remove(&n);
                            Change::Gone(name)
                        }
                    };
                    if let Some(number) = watch {
                        index.apply(Message::Pods(number, change));
                    }
                }
                Step::Ports(ports) => {
                    let facts = PoolFacts { ports, ..pool.clone().unwrap_or(pool_facts("s=0", &[])) };
                    set(&mut index, &facts);
                    pool = Some(facts);
                }
                Step::Selector(s) => {
                    let facts = PoolFacts { selector: format!("s={s}"), ..pool.clone().unwrap_or(pool_facts("", &[80])) };
                    set(&mut index, &facts);
                    pool = Some(facts);
                }
                Step::PoolGone => {
                    pool = None;
                    index.apply(Message::Pool(Change::Gone("p".into())));
                }
                Step::Relist => {}
                Step::Flush => {
                    follower.take(&mut index);
                    continue;
                }
            }
            // A watch that is new, or was told to, lists.
            let now = index.pod_watch().map(|w| w.number);
            if now.is_some() && (now != watch || matches!(step, Step::Relist)) {
                index.apply(Message::Pods(now.unwrap_or(0), complete(pods.values().cloned().collect())));
            }
        }
        follower.take(&mut index);
        let ports = pool.map(|p| p.ports).unwrap_or_default();
        let expected: Vec<_> = pods.values().flat_map(|p| p.endpoints("n", &ports)).collect();
        let mut seen: Vec<_> = follower.0.snapshot().topology.endpoints().map(|e| e.spec.clone()).collect();
        seen.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(seen, expected);
    }
}
