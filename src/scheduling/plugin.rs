//! What a plugin is: the traits by extension point, its row in a table, and how it is built.
//!
//! A plugin is one file with its `Params`, its implementation and its tests, plus one [`Row`] in the
//! table next door. Everything else (known names in errors, parameter parsing, the generated
//! reference, sample-config and property tests, metric labels) iterates over the tables.
//!
//! Extension points, in the order of a request: [`Producer`] (before scheduling), [`Filter`],
//! [`Scorer`], [`Picker`], [`Handler`], then [`Commit`] (after the choice), whose [`Watch`] sees the
//! response headers, the first token and the end. A [`SaturationDetector`] is asked before all of them, and
//! only for requests that may be shed. One plugin may implement several.
//!
//! Rejected: one trait with defaulted methods for all points (it grows for ever and hides what a
//! plugin does), and link-time registration (order and duplicates would only show at run time).

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::dispatch::Dispatch;
use super::params::{ParamSpec, Params};
use crate::domain::node::{Node, Position, Problems, nearest};
use crate::domain::{
    Costs, Decision, Endpoint, Headers, InferenceRequest, Outcome, ProfileResult, Served, Signals, Slot, Snapshot,
    Timestamp, Usage,
};

/// What filters and scorers read. Nothing in it changes during a decision.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    /// The request.
    pub request: &'a InferenceRequest,
    /// The pool.
    pub snapshot: &'a Snapshot,
    /// What the producers found.
    pub signals: &'a Signals,
    /// The time of the decision.
    pub now: Timestamp,
}

/// Shrinks the list of candidates.
pub trait Filter: Send + Sync {
    /// Removes from `candidates` (ascending slots) what must not be picked; order is kept.
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>);
}

/// Rates candidates.
pub trait Scorer: Send + Sync {
    /// Writes a value from 0 (worst) to 1 (best) for each candidate; `out` has their length and
    /// holds zeros. Values are clamped afterwards and a NaN counts as 0.
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]);
}

/// Chooses among scored candidates.
pub trait Picker: Send + Sync {
    /// Appends indices into `candidates`, best first, at least one if there is any candidate.
    fn pick(
        &self,
        cx: &Cycle<'_>,
        candidates: &[Slot],
        totals: &[f32],
        rng: &mut fastrand::Rng,
        picked: &mut Vec<usize>,
    );

    /// What the choice rests on besides the totals: called after [`Picker::pick`], with the same arguments, for
    /// decisions that are recorded. A picker that minimises a cost gives its terms.
    fn costs(&self, _cx: &Cycle<'_>, _candidates: &[Slot], _totals: &[f32]) -> Option<Costs> {
        None
    }

    /// [`Picker::pick`] and [`Picker::costs`] in one, for a picker whose terms are dear to compute twice.
    fn pick_explained(
        &self,
        cx: &Cycle<'_>,
        candidates: &[Slot],
        totals: &[f32],
        rng: &mut fastrand::Rng,
        picked: &mut Vec<usize>,
    ) -> Option<Costs> {
        self.pick(cx, candidates, totals, rng, picked);
        self.costs(cx, candidates, totals)
    }

    /// What decides among candidates that count as equal, to follow "equals are decided by", for decisions that
    /// are recorded.
    fn tie_rule(&self) -> Option<&'static str> {
        None
    }
}

/// Which profile to run next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run the profile with this index.
    Run(usize),
    /// All needed profiles have run; the result at this index of the finished ones is the primary.
    Finish(usize),
}

/// Decides which profiles run and which result is the destination.
pub trait Handler: Send + Sync {
    /// Called before each profile with what has run so far, as (profile index, result); a profile
    /// that found no endpoint has `None`.
    fn next(&self, cx: &Cycle<'_>, finished: &[(usize, Option<ProfileResult>)]) -> Next;

    /// Headers that the finished profiles add to the request.
    fn headers(&self, _finished: &[(usize, Option<ProfileResult>)]) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Finds facts about the request before scheduling. Reads shared state, changes none.
pub trait Producer: Send + Sync {
    /// Adds this producer's facts to `signals`. Producers run in dependency order.
    fn produce(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals);

    /// Brings the facts of a request that waits up to date; `signals` holds those of before. Overridden where
    /// asking again is cheaper than asking anew.
    fn refresh(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        self.produce(request, snapshot, signals);
    }

    /// Whether the facts change with every reservation, so that a decision which was overtaken by
    /// another one must ask again.
    fn is_volatile(&self) -> bool {
        false
    }

    /// Entries held, for the size gauge, if this producer keeps an index.
    fn size(&self) -> Option<u64> {
        None
    }

    /// A bounded JSON picture of the state for `/debug/plugins/state`.
    fn debug_state(&self) -> Option<serde_json::Value> {
        None
    }
}

/// A choice that was made, as committers see it.
#[derive(Clone, Copy)]
pub struct Routed<'a> {
    /// The request.
    pub request: &'a InferenceRequest,
    /// The choice.
    pub decision: &'a Decision,
    /// What the producers found.
    pub signals: &'a Signals,
    /// The time of the decision.
    pub now: Timestamp,
}

/// Learns from a choice and reserves what it will use. The first side effect of a request.
pub trait Commit: Send + Sync {
    /// Called once per routed request, before the answer leaves. What must be given back lives in
    /// the returned watch and is given back by its `Drop`, on every path.
    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>>;

    /// Whether a volatile producer reads what this commit writes. Such commits are made in order, so
    /// they must take nanoseconds.
    fn reserves(&self) -> bool {
        false
    }

    /// An endpoint left the pool: forget what was learnt about its slot before it is reused.
    fn endpoint_removed(&self, _endpoint: &Endpoint) {}
}

/// The start of a model server's answer.
#[derive(Clone, Copy)]
pub struct ResponseStart<'a> {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: &'a Headers,
    /// What the data plane reports of the endpoint that answered.
    pub served: &'a Served,
    /// When the headers arrived.
    pub now: Timestamp,
}

/// The end of a request.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// How it ended.
    pub outcome: Outcome,
    /// What the model server counted.
    pub usage: Usage,
    /// When it ended.
    pub now: Timestamp,
}

/// Follows one routed request to its end. `finished` is called at most once; `Drop` must release
/// whatever is still held, so that a cancelled request leaks nothing.
pub trait Watch: Send {
    /// Response headers arrived; the watch may add headers for the client (lower-case names).
    fn response_headers(&mut self, _start: &ResponseStart<'_>, _add: &mut Vec<(&'static str, String)>) {}
    /// The first body bytes of the answer arrived.
    fn first_token(&mut self, _now: Timestamp) {}
    /// The request ended.
    fn finished(&mut self, _end: &End) {}
}

/// Says how full endpoints are, for those who may only use what is left over.
pub trait SaturationDetector: Send + Sync {
    /// Work of `endpoints` (live slots of `snapshot`) over what they should have at most: 1 is full, more is
    /// possible. `None` if nothing is known of any of them, which must not read as full.
    fn saturation(&self, snapshot: &Snapshot, endpoints: &[Slot], now: Timestamp) -> Option<f64>;
}

/// How far a plugin is promised to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Kept compatible.
    Beta,
    /// May change; needs `--allow-experimental-plugins`.
    Alpha,
}

/// What every table says of a plugin, whatever it does.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The `type` in the configuration.
    pub kind: &'static str,
    /// Older names of the type, accepted with a warning.
    pub aliases: &'static [&'static str],
    /// Promise.
    pub stability: Stability,
    /// One sentence for the reference.
    pub summary: &'static str,
    /// Its parameters.
    pub params: &'static [ParamSpec],
    /// A `plugins:` entry in YAML that loads as it stands.
    pub sample: &'static str,
}

/// A row of the tables of this room and of `signals`.
#[derive(Clone, Copy)]
pub struct Row {
    /// Name, parameters, sample.
    pub about: About,
    /// Builds an instance. Problems go to the context; `None` only after recording one.
    pub build: fn(&mut Build<'_>) -> Option<Built>,
}

/// An instance, by the extension points it serves.
#[derive(Clone, Default)]
pub struct Built {
    /// As filter.
    pub filter: Option<Arc<dyn Filter>>,
    /// As scorer.
    pub scorer: Option<Arc<dyn Scorer>>,
    /// As picker.
    pub picker: Option<Arc<dyn Picker>>,
    /// Whether the picker looks at load itself. A profile that picks by anything else needs scorers.
    pub weighs_load: bool,
    /// As profile handler.
    pub handler: Option<Arc<dyn Handler>>,
    /// As producer.
    pub producer: Option<Arc<dyn Producer>>,
    /// As committer.
    pub commit: Option<Arc<dyn Commit>>,
    /// As saturation detector.
    pub saturation: Option<Arc<dyn SaturationDetector>>,
    /// As what says when requests are sent; at most one of a configuration.
    pub dispatch: Option<Arc<Dispatch>>,
    /// A typed handle for plugins that must reach this instance (looked up by plugin name).
    pub handle: Option<Arc<dyn Any + Send + Sync>>,
}

impl Built {
    /// An instance that is a filter.
    pub fn filter(filter: impl Filter + 'static) -> Self {
        Self { filter: Some(Arc::new(filter)), ..Self::default() }
    }

    /// An instance that is a scorer.
    pub fn scorer(scorer: impl Scorer + 'static) -> Self {
        Self { scorer: Some(Arc::new(scorer)), ..Self::default() }
    }

    /// An instance that is a picker and goes by the totals, by lot or in turn.
    pub fn picker(picker: impl Picker + 'static) -> Self {
        Self { picker: Some(Arc::new(picker)), ..Self::default() }
    }

    /// An instance that is a picker and looks at the load of the candidates itself.
    pub fn picker_by_load(picker: impl Picker + 'static) -> Self {
        Self { weighs_load: true, ..Self::picker(picker) }
    }

    /// An instance that is a profile handler.
    pub fn handler(handler: impl Handler + 'static) -> Self {
        Self { handler: Some(Arc::new(handler)), ..Self::default() }
    }
}

/// Work that is done only because a plugin asked for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// Prompts of the body (otherwise only the model name is looked for).
    Prompts,
    /// Token counts of the answer.
    Usage,
    /// Sizes and ages of caches, from a prefix producer that knows them.
    Caches,
    /// A metric of the model server.
    Metric(Metric),
}

/// Metrics that plugins can ask the collector for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Waiting requests.
    Waiting,
    /// Running requests.
    Running,
    /// KV cache usage.
    KvUsage,
    /// Block size and number of blocks.
    CacheInfo,
    /// LoRA adapters.
    Lora,
    /// A custom metric by attribute key.
    Attribute(String),
}

/// Kinds of signal that are addressed by ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignalKind {
    /// [`Signals::prefix`].
    Prefix,
    /// [`Signals::in_flight`]; there is one.
    InFlight,
    /// [`Signals::accounts`]; there is one.
    Account,
    /// [`Signals::sessions`].
    Session,
    /// [`Signals::prompt_tokens`]; there is one.
    PromptTokens,
}

impl SignalKind {
    /// The plugin type that is created when a consumer names no producer and none is configured.
    pub const fn default_producer(self) -> &'static str {
        match self {
            SignalKind::Prefix => "mirror-prefix-cache-producer",
            SignalKind::InFlight => "inflight-load-producer",
            SignalKind::Account => "prefill-account-producer",
            SignalKind::Session => "session-id-producer",
            SignalKind::PromptTokens => "token-producer",
        }
    }
}

/// What the plugins of one configuration share while they are built.
#[derive(Default)]
pub struct Registry {
    /// Instances by plugin name, in order of creation.
    pub instances: Vec<(Arc<str>, Built)>,
    /// Needs and the plugins that have them.
    pub needs: BTreeMap<Need, Vec<String>>,
    /// What test plugins change outside of themselves.
    pub test_switches: TestSwitches,
    asked: Vec<(Need, Arc<AtomicBool>)>,
    producers: Vec<(SignalKind, Arc<str>)>,
    missing: Vec<SignalKind>,
}

/// What the plugins for conformance tests change outside of themselves; all off without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestSwitches {
    /// Request header whose presence makes the subset hint of the data plane void.
    pub beats_subset: Option<&'static str>,
    /// Whether the echo servers of the conformance suite are asked to return the destination.
    pub echo_destination: bool,
}

impl Registry {
    /// Names of the producers of `kind`, by ordinal.
    pub fn producers(&self, kind: SignalKind) -> impl Iterator<Item = &Arc<str>> {
        self.producers.iter().filter(move |(k, _)| *k == kind).map(|(_, name)| name)
    }

    /// Signal kinds that a consumer took by default and that nobody produces yet. The configuration
    /// builds [`SignalKind::default_producer`] for each; ordinal 0 is theirs.
    pub fn take_missing(&mut self) -> Vec<SignalKind> {
        let producers = &self.producers;
        let mut missing: Vec<_> =
            std::mem::take(&mut self.missing).into_iter().filter(|k| !producers.iter().any(|(p, _)| p == k)).collect();
        missing.sort();
        missing.dedup();
        missing
    }

    /// Takes back what the plugin called `name` asked for.
    pub fn withdraw_needs(&mut self, name: &str) {
        self.needs.retain(|_, names| {
            names.retain(|n| n != name);
            !names.is_empty()
        });
    }

    /// Whether some plugin has `need`.
    pub fn needs(&self, need: &Need) -> bool {
        self.needs.contains_key(need)
    }

    /// Whether some plugin has `need`, for a plugin that is built before all others are: true until
    /// [`Registry::settle`] knows.
    pub fn watch(&mut self, need: Need) -> Arc<AtomicBool> {
        let flag = Arc::new(AtomicBool::new(true));
        self.asked.push((need, Arc::clone(&flag)));
        flag
    }

    /// Answers those who [watch](Registry::watch), once every plugin is built.
    pub fn settle(&mut self) {
        for (need, flag) in std::mem::take(&mut self.asked) {
            flag.store(self.needs.contains_key(&need), Ordering::Relaxed);
        }
    }
}

/// The context in which one plugin instance is built.
pub struct Build<'a> {
    /// Instance name.
    pub name: &'a str,
    /// Path of the parameters in the document.
    pub path: String,
    /// Where the plugin's entry stands.
    pub at: Position,
    /// The parameters as written.
    pub parameters: Option<&'a Node>,
    /// What the instances share.
    pub registry: &'a mut Registry,
    /// Errors and warnings so far.
    pub problems: &'a mut Problems,
}

impl Build<'_> {
    /// The typed parameters; wrong ones keep their default and are recorded as errors.
    pub fn params<P: Params>(&mut self) -> P {
        P::decode_fields(self.parameters, &self.path, self.problems)
    }

    /// Records an error about parameter `key`.
    pub fn error(&mut self, key: &str, message: impl Into<String>, fix: impl Into<String>) {
        let at = self.parameters.and_then(|p| p.get(key)).map_or(self.at, |n| n.at);
        self.problems.error(at, format!("{}.{key}", self.path), message, fix);
    }

    /// Records a warning about parameter `key`.
    pub fn warn(&mut self, key: &str, message: impl Into<String>, fix: impl Into<String>) {
        let at = self.parameters.and_then(|p| p.get(key)).map_or(self.at, |n| n.at);
        self.problems.warn(at, format!("{}.{key}", self.path), message, fix);
    }

    /// Switches on work that this plugin needs.
    pub fn need(&mut self, need: Need) {
        let names = self.registry.needs.entry(need).or_default();
        if !names.iter().any(|n| n == self.name) {
            names.push(self.name.to_owned());
        }
    }

    /// Declares this instance as a producer of `kind` and returns its ordinal.
    pub fn produces(&mut self, kind: SignalKind) -> usize {
        let ordinal = self.registry.producers(kind).count();
        self.registry.producers.push((kind, Arc::from(self.name)));
        ordinal
    }

    /// The ordinal of the producer of `kind` called `producer`, which parameter `key` named, or of
    /// the first (possibly still to be created) one. Producers are built before their consumers.
    pub fn consumes(&mut self, kind: SignalKind, key: &str, producer: Option<&str>) -> usize {
        let Some(wanted) = producer else {
            self.registry.missing.push(kind);
            return 0;
        };
        let known: Vec<Arc<str>> = self.registry.producers(kind).cloned().collect();
        match known.iter().position(|name| name.as_ref() == wanted) {
            Some(ordinal) => ordinal,
            None => {
                let names = known.iter().map(AsRef::as_ref).collect::<Vec<_>>();
                let fix = match nearest(wanted, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => {
                        format!("add a plugin of type {} with this name, or remove the field", kind.default_producer())
                    }
                };
                self.error(key, format!("no producer is called `{wanted}` (known: {})", names.join(", ")), fix);
                0
            }
        }
    }
}
