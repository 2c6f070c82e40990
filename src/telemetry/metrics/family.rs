//! Bounded families of children by label values, and bounded sets of label values.
//!
//! Children are found by the exact values, without allocating. The `prometheus` crate's own vectors
//! are not used: they identify a child by a hash over its values strung together, so that model `a`
//! with target `bc` and model `ab` with target `c` would be one child, and they have no bound.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{Equivalent, HashMap, HashSet};
use parking_lot::RwLock;
use prometheus::core::Metric as _;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts};

use super::catalog::Spec;

/// What stands for label values beyond a bound.
pub const OTHER: &str = "other";
/// Longer label values count as beyond the bound.
pub const MAX_VALUE_BYTES: usize = 256;

/// At most `max` distinct values for the life of the process; everything else is [`OTHER`].
#[derive(Debug)]
pub struct LabelCap {
    max: usize,
    seen: RwLock<HashSet<Box<str>, foldhash::fast::RandomState>>,
    pinned: RwLock<HashSet<Box<str>, foldhash::fast::RandomState>>,
}

impl LabelCap {
    /// A cap; zero folds everything.
    pub fn new(max: usize) -> Self {
        Self { max, seen: RwLock::default(), pinned: RwLock::default() }
    }

    /// `value` or [`OTHER`].
    pub fn bound<'a>(&self, value: &'a str) -> &'a str {
        if value.len() > MAX_VALUE_BYTES {
            return OTHER;
        }
        // Nothing is gained by counting the empty value, which stands for "none".
        if value.is_empty() || self.seen.read().contains(value) || self.pinned.read().contains(value) {
            return value;
        }
        let mut seen = self.seen.write();
        if seen.contains(value) {
            return value;
        }
        if seen.len() >= self.max {
            return OTHER;
        }
        seen.insert(value.into());
        value
    }

    /// Lets these configured values through whatever the cap says, at most `max` of them, in the place of those
    /// of the last call.
    pub fn pin<'a>(&self, values: impl IntoIterator<Item = &'a str>) {
        let mut pinned = self.pinned.write();
        pinned.clear();
        for value in values {
            if value.len() <= MAX_VALUE_BYTES && pinned.len() < self.max {
                pinned.insert(value.into());
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Key(Box<[Box<str>]>);

struct Values<'a>(&'a [&'a str]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for value in &self.0 {
            value.hash(state);
        }
    }
}

impl Hash for Values<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for value in self.0 {
            value.hash(state);
        }
    }
}

impl Equivalent<Key> for Values<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0.len() == key.0.len() && self.0.iter().zip(&key.0).all(|(a, b)| **a == **b)
    }
}

/// Children by label values, at most `max` and one for the rest.
#[derive(Debug)]
pub struct Family<M> {
    max: usize,
    children: RwLock<HashMap<Key, Arc<M>, foldhash::fast::RandomState>>,
}

impl<M: Default> Family<M> {
    /// An empty family.
    pub fn new(max: usize) -> Self {
        Self { max, children: RwLock::default() }
    }

    /// The child with these values, if it exists.
    pub fn get(&self, values: &[&str]) -> Option<Arc<M>> {
        self.children.read().get(&Values(values)).cloned()
    }

    /// The child with these values, made if there is room; `None` at the bound.
    pub fn try_with(&self, values: &[&str]) -> Option<Arc<M>> {
        if let Some(child) = self.get(values) {
            return Some(child);
        }
        let mut children = self.children.write();
        if let Some(child) = children.get(&Values(values)) {
            return Some(Arc::clone(child));
        }
        if children.len() >= self.max {
            return None;
        }
        Some(insert(&mut children, values))
    }

    /// The child with these values; at the bound the one whose values all are [`OTHER`].
    pub fn with(&self, values: &[&str]) -> Arc<M> {
        self.try_with(values).unwrap_or_else(|| {
            let other = vec![OTHER; values.len()];
            let mut children = self.children.write();
            match children.get(&Values(&other)) {
                Some(child) => Arc::clone(child),
                None => insert(&mut children, &other),
            }
        })
    }

    /// Number of children.
    pub fn len(&self) -> usize {
        self.children.read().len()
    }

    /// Whether there is no child.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with values and child, in the order of the values.
    pub fn for_each(&self, mut each: impl FnMut(&[Box<str>], &M)) {
        // Copied out, so that a slow scrape does not keep a request from making a child.
        let mut children: Vec<_> =
            self.children.read().iter().map(|(key, child)| (key.0.clone(), Arc::clone(child))).collect();
        children.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (values, child) in &children {
            each(values, child);
        }
    }
}

fn insert<M: Default, S: BuildHasher>(children: &mut HashMap<Key, Arc<M>, S>, values: &[&str]) -> Arc<M> {
    let child = Arc::new(M::default());
    let key = Key(values.iter().map(|v| Box::from(*v)).collect());
    children.insert(key, Arc::clone(&child));
    child
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram that takes memory and a place on the page from its first observation on.
#[derive(Debug, Default)]
pub struct Lazy(OnceLock<Histogram>);

impl Lazy {
    /// Counts one value. What is not a finite number is not counted, since it would spoil the sum.
    pub fn observe(&self, spec: &Spec, value: f64) {
        if value.is_finite() {
            self.0.get_or_init(|| histogram(spec.buckets)).observe(value);
        }
    }

    /// The state for the page, if anything was observed.
    pub fn read(&self) -> Option<Metric> {
        self.0.get().map(prometheus::core::Metric::metric)
    }
}

/// A histogram without a name: the name belongs to the family on the page.
pub fn histogram(buckets: &[f64]) -> Histogram {
    #[expect(clippy::expect_used, reason = "name and buckets are constants of the catalog, and a test builds them all")]
    Histogram::with_opts(HistogramOpts::new("h", "h").buckets(buckets.to_vec())).expect("constant options")
}

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    /// Adds a value to a counter or gauge family. `values` pair up with the labels of `spec`.
    pub fn value<V: AsRef<str>>(&mut self, spec: &Spec, values: &[V], value: f64) {
        let mut metric = Metric::from_label(pairs(spec, values));
        if spec.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.family(spec).mut_metric().push(metric);
    }

    /// Adds a histogram to its family.
    pub fn histogram<V: AsRef<str>>(&mut self, spec: &Spec, values: &[V], mut read: Metric) {
        read.set_label(pairs(spec, values));
        self.family(spec).mut_metric().push(read);
    }

    /// Adds a histogram that may not have been observed yet.
    pub fn lazy<V: AsRef<str>>(&mut self, spec: &Spec, values: &[V], lazy: &Lazy) {
        if let Some(read) = lazy.read() {
            self.histogram(spec, values, read);
        }
    }

    /// Adds the state of a histogram that always has a place on the page.
    pub fn always(&mut self, spec: &Spec, histogram: &Histogram) {
        self.histogram::<&str>(spec, &[], histogram.metric());
    }

    fn family(&mut self, spec: &Spec) -> &mut MetricFamily {
        let is = |f: &MetricFamily| spec.is_called(f.name());
        // A few dozen families: a scan is cheaper than hashing names.
        let index = match self.families.iter().rposition(is) {
            Some(index) => index,
            None => {
                let mut family = MetricFamily::default();
                family.set_name(spec.full_name());
                family.set_help(spec.help.to_owned());
                family.set_field_type(spec.kind);
                self.families.push(family);
                self.families.len() - 1
            }
        };
        &mut self.families[index]
    }

    /// The families, none empty, by name.
    pub fn into_families(mut self) -> Vec<MetricFamily> {
        self.families.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        self.families
    }
}

fn pairs<V: AsRef<str>>(spec: &Spec, values: &[V]) -> Vec<LabelPair> {
    debug_assert_eq!(spec.labels.len(), values.len(), "{}", spec.name);
    spec.labels.iter().zip(values).map(|(name, value)| pair(name, value.as_ref())).collect()
}

/// One label.
pub fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_concatenate_alike_stay_apart() {
        let family: Family<Count> = Family::new(10);
        family.with(&["a", "bc"]).inc();
        family.with(&["ab", "c"]).add(5);
        assert_eq!(family.with(&["a", "bc"]).get(), 1);
        assert_eq!(family.with(&["ab", "c"]).get(), 5);
    }

    #[test]
    fn a_full_family_folds() {
        let family: Family<Count> = Family::new(2);
        for name in ["a", "b", "c", "d", "a"] {
            family.with(&[name]).inc();
        }
        let mut seen = Vec::new();
        family.for_each(|values, count| seen.push((values[0].to_string(), count.get())));
        assert_eq!(seen, [("a".into(), 2), ("b".into(), 1), ("other".into(), 2)]);
    }

    #[test]
    fn a_cap_keeps_what_it_saw_first_and_what_is_pinned() {
        let cap = LabelCap::new(2);
        assert_eq!(["a", "b", "c", "a", ""].map(|v| cap.bound(v)), ["a", "b", "other", "a", ""]);
        cap.pin(["c"]);
        assert_eq!(cap.bound("c"), "c");
        let long = "x".repeat(MAX_VALUE_BYTES + 1);
        assert_eq!(LabelCap::new(2).bound(&long), "other");
        assert_eq!(LabelCap::new(0).bound("a"), "other");
    }

    #[test]
    fn what_is_no_number_is_not_observed() {
        let lazy = Lazy::default();
        lazy.observe(&super::super::catalog::TTFT, f64::NAN);
        assert!(lazy.read().is_none());
    }
}
