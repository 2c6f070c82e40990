//! The last decisions, kept for `/debug/decisions` when `--debug-decisions` asks for them.
//!
//! Bounded by count; the oldest goes. Off by default: recording clones the scores of every candidate.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::domain::{Decision, InferenceRequest, Signals};

/// Most decisions that can be kept.
pub const MAX_KEPT: usize = 10_000;

/// A bounded ring of decisions.
#[derive(Default)]
pub struct DecisionLog {
    keep: usize,
    kept: Mutex<VecDeque<Arc<Value>>>,
}

impl DecisionLog {
    /// Keeps the last `keep` decisions, at most [`MAX_KEPT`]; zero switches recording off.
    pub fn new(keep: usize) -> Self {
        Self { keep: keep.min(MAX_KEPT), kept: Mutex::default() }
    }

    /// Whether decisions are recorded.
    pub fn is_on(&self) -> bool {
        self.keep > 0
    }

    /// Records one decision with its reasons.
    pub fn record(&self, request: &InferenceRequest, decision: &Decision, signals: &Signals) {
        if !self.is_on() {
            return;
        }
        let entry = describe(request, decision, signals);
        let mut kept = self.kept.lock();
        if kept.len() >= self.keep {
            kept.pop_front();
        }
        kept.push_back(Arc::new(entry));
    }

    /// The kept decisions, oldest first.
    pub fn to_json(&self) -> Value {
        // Requests take the lock to record, so only pointers are copied under it.
        let kept: Vec<Arc<Value>> = self.kept.lock().iter().cloned().collect();
        json!({ "kept": self.keep, "decisions": kept.iter().map(AsRef::as_ref).collect::<Vec<&Value>>() })
    }
}

/// One decision as data.
fn describe(request: &InferenceRequest, decision: &Decision, signals: &Signals) -> Value {
    let profiles: Vec<Value> = decision
        .profiles
        .iter()
        .map(|profile| {
            let picked: Vec<Value> = profile
                .picked
                .iter()
                .map(
                    |r| json!({ "endpoint": r.endpoint.name(), "address": r.endpoint.destination(), "score": r.score }),
                )
                .collect();
            let explanation = profile.explanation.as_ref().map(|explanation| {
                let scorers: Vec<Value> = explanation
                    .scorers
                    .iter()
                    .map(|(name, weight)| json!({ "name": name.as_ref(), "weight": weight }))
                    .collect();
                let candidates: Vec<Value> = explanation
                    .candidates
                    .iter()
                    .map(|c| {
                        let cached: Vec<u32> = signals.prefix.iter().map(|m| m.blocks(c.endpoint.slot)).collect();
                        json!({
                            "endpoint": c.endpoint.name(),
                            "address": c.endpoint.destination(),
                            "values": c.values,
                            "total": c.total,
                            "prefixBlocks": cached,
                        })
                    })
                    .collect();
                let removed: Vec<Value> = explanation
                    .removed
                    .iter()
                    .map(|(slot, filter)| json!({ "slot": slot.0, "filter": filter.as_ref() }))
                    .collect();
                json!({ "scorers": scorers, "candidates": candidates, "removed": removed })
            });
            json!({ "profile": profile.profile.as_ref(), "picked": picked, "explanation": explanation })
        })
        .collect();
    json!({
        "requestId": request.id,
        "path": request.path,
        "model": request.model,
        "targetModel": request.target_model,
        "promptTokens": signals.prompt_tokens,
        "destination": decision.destination().destination(),
        "profiles": profiles,
    })
}
