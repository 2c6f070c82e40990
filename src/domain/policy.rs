//! What an operator says about requests apart from the configuration: objectives (priority) and model
//! rewrites. Discovery fills it, a decision reads it.
//!
//! The specs here are what a source (Kubernetes objects) is reduced to; [`Policies`] is built from them
//! once per change and only read afterwards. Precedence is settled then, so that a request costs one
//! look-up by name for its objective and one by model for its rule, and a pool without any costs two
//! tests of emptiness.
//!
//! Precedence of rules (protocol 2.7): an exact match beats a generic rule, whichever object it is in;
//! among equals the older object; ties by object name, the smaller first; within one object the first rule.
//!
//! Targets: drawn in proportion to their weights. Without any weight all are equally likely; where some have a
//! weight, the others are never chosen, which [`Policies::warnings`] says.
//!
//! Rejected: walking the rules per request (O(rules) for every model that has none), and drawing by a list
//! of repeated names (a weight may be a million).

use std::collections::HashMap;
use std::sync::Arc;

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
    /// What they become. A rule without targets decides, too: it leaves the model as it is, so an exact one
    /// exempts a model from a generic one.
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

/// All that is in force for one pool. Equal specs give equal policies, in whatever order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    objectives: HashMap<String, i32>,
    rules: Vec<Rule>,
    /// Rule by model that it names.
    exact: HashMap<String, usize>,
    /// The rule for all other models.
    generic: Option<usize>,
    warnings: Vec<String>,
}

/// A rule in force, ready to be drawn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    rewrite: Arc<str>,
    /// Targets that can be chosen, each with the sum of the weights up to and with its own.
    targets: Vec<(u64, String)>,
}

impl Policies {
    /// Puts the specs in their order of precedence. Names are unique in a namespace; should one come twice, the
    /// lower priority counts for an objective, and rules of two rewrites are taken as they come.
    pub fn new(objectives: Vec<ObjectiveSpec>, mut rewrites: Vec<RewriteSpec>) -> Self {
        let mut policies = Self::default();
        for ObjectiveSpec { name, priority } in objectives {
            let known = policies.objectives.entry(name).or_insert(priority);
            *known = priority.min(*known);
        }
        rewrites.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        for RewriteSpec { name, rules, .. } in rewrites {
            let name: Arc<str> = name.into();
            for (position, rule) in rules.into_iter().enumerate() {
                policies.add(&name, position, rule);
            }
        }
        policies
    }

    /// Adds the next rule in order of precedence; one that can never decide is left out.
    fn add(&mut self, rewrite: &Arc<str>, position: usize, RewriteRule { models, targets }: RewriteRule) {
        let index = self.rules.len();
        let mut decides = false;
        if models.is_empty() && self.generic.is_none() {
            self.generic = Some(index);
            decides = true;
        }
        for model in models {
            self.exact.entry(model).or_insert_with(|| {
                decides = true;
                index
            });
        }
        let weighted = targets.iter().filter(|t| t.weight.is_some()).count();
        if weighted > 0 && weighted < targets.len() {
            self.warnings.push(format!(
                "InferenceModelRewrite `{rewrite}`, rules[{position}]: {weighted} of {} targets have a weight; \
                 those without one are never chosen: give all a weight, or none",
                targets.len()
            ));
        }
        if decides {
            self.rules.push(Rule::new(Arc::clone(rewrite), targets));
        }
    }

    /// Priority of the objective called `name`; `None` if there is none, which counts as 0.
    #[inline]
    pub fn priority(&self, name: &str) -> Option<i32> {
        if self.objectives.is_empty() { None } else { self.objectives.get(name).copied() }
    }

    /// The rule that decides for requests whose body names `model`.
    #[inline]
    pub fn rule(&self, model: &str) -> Option<&Rule> {
        if self.rules.is_empty() {
            return None;
        }
        self.exact.get(model).copied().or(self.generic).and_then(|index| self.rules.get(index))
    }

    /// The models that rules name or choose; names may come several times.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        let targets = self.rules.iter().flat_map(|rule| rule.targets.iter().map(|(_, model)| model.as_str()));
        self.exact.keys().map(String::as_str).chain(targets)
    }

    /// What an operator should change, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many objectives are in force.
    pub fn objectives(&self) -> usize {
        self.objectives.len()
    }

    /// How many rules can decide.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }
}

impl Rule {
    fn new(rewrite: Arc<str>, targets: Vec<RewriteTarget>) -> Self {
        let uniform = targets.iter().all(|t| t.weight.unwrap_or(0) == 0);
        let mut sum = 0;
        let mut chances = Vec::with_capacity(targets.len());
        for RewriteTarget { model, weight } in targets {
            let weight = if uniform { 1 } else { u64::from(weight.unwrap_or(0)) };
            if weight > 0 {
                sum += weight;
                chances.push((sum, model));
            }
        }
        Self { rewrite, targets: chances }
    }

    /// Name of the object that the rule is in.
    pub fn rewrite(&self) -> &str {
        &self.rewrite
    }

    /// Draws a target; `draw` gives a number below the one that it is given, and is not asked where there is no
    /// choice. `None` if the rule has no targets.
    pub fn choose(&self, draw: impl FnOnce(u64) -> u64) -> Option<&str> {
        let chosen = match self.targets.as_slice() {
            [] | [_] => self.targets.first(),
            [.., (sum, _)] => {
                let drawn = draw(*sum);
                self.targets.get(self.targets.partition_point(|(upto, _)| *upto <= drawn))
            }
        };
        chosen.map(|(_, model)| model.as_str())
    }
}

#[cfg(test)]
mod tests;
