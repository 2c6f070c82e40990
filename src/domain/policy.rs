//! What an operator says about requests apart from the configuration: objectives (priority) and model
//! rewrites. Discovery fills it, a decision reads it.
//!
//! The specs here are what a source (Kubernetes objects) is reduced to; [`Policies`] is built from them
//! once per change and only read afterwards.

/// One InferenceObjective of the pool (protocol 2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectiveSpec {
    /// Object name, which requests name in their header.
    pub name: String,
    /// Higher goes first; negative may be shed. Absent in the object is 0.
    pub priority: i32,
}

/// One InferenceModelRewrite of the pool (protocol 2.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteSpec {
    /// Object name; ties go to the smaller one.
    pub name: String,
    /// `creationTimestamp` in seconds since the epoch; the older object wins.
    pub created: i64,
    /// Rules in the order of the object.
    pub rules: Vec<RewriteRule>,
}

/// One rule of a rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteRule {
    /// Models that it concerns, any of them; empty means every model ("generic").
    pub models: Vec<String>,
    /// What they become; empty targets leave the model as it is.
    pub targets: Vec<RewriteTarget>,
}

/// One weighted target of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteTarget {
    /// The model that the server is asked for.
    pub model: String,
    /// Share of requests, relative to the other weights of the rule.
    pub weight: Option<u32>,
}

/// All that is in force for one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    objectives: Vec<ObjectiveSpec>,
    rewrites: Vec<RewriteSpec>,
}

impl Policies {
    /// Puts the specs in their order of precedence.
    pub fn new(objectives: Vec<ObjectiveSpec>, rewrites: Vec<RewriteSpec>) -> Self {
        Self { objectives, rewrites }
    }
}
