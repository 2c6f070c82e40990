//! Records as JSON, for people and for `pointsman explain`. Made when the page is read.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Times;
use crate::domain::record::{Column, DecidedBy, Verdict};
use crate::domain::{Explanation, ProfileResult, Record, Signals, Slot};

/// One record under its name.
pub(super) fn record(name: &str, record: &Record, times: Option<Times>) -> Value {
    let decision = &record.decision;
    let at = times.and_then(|(now, wall)| wall.checked_sub(now.since(record.at)));
    let profiles: Vec<Value> = decision.profiles.iter().map(|p| profile(p, &record.signals)).collect();
    json!({
        "id": name,
        "requestId": record.request_id,
        "at": at.map(|at| humantime::format_rfc3339_millis(at).to_string()),
        "heldMs": millis(record.held),
        "path": record.path,
        "model": record.model,
        "targetModel": record.target_model.as_ref().unwrap_or(&record.model),
        "priority": record.priority,
        "fairnessId": record.fairness_id,
        "promptTokens": prompt_tokens(&record.signals),
        "destination": decision.destination().destination(),
        "primary": decision.primary().profile.as_ref(),
        "profiles": profiles,
        "outcome": record.ended().map(|ended| json!({
            "outcome": ended.outcome.as_str(),
            "status": ended.status,
            "ttftMs": ended.ttft.map(millis),
            "totalMs": millis(ended.total),
            "promptTokens": ended.usage.prompt_tokens,
            "cachedTokens": ended.usage.cached_tokens,
            "outputTokens": ended.usage.completion_tokens,
            "servedBy": ended.served_by,
        })),
    })
}

/// Endpoints that a record names.
pub(super) fn rows(record: &Record) -> usize {
    let explained = record.decision.profiles.iter().filter_map(|p| p.explanation.as_deref());
    explained.map(|why| why.candidates.len() + why.removed.len()).sum()
}

fn prompt_tokens(signals: &Signals) -> Option<u64> {
    signals.prompt_tokens.or_else(|| signals.prefix.iter().find_map(|m| m.prompt_tokens))
}

fn profile(profile: &ProfileResult, signals: &Signals) -> Value {
    let picked: Vec<Value> = profile
        .picked
        .iter()
        .map(
            |r| json!({ "endpoint": r.endpoint.name(), "address": r.endpoint.destination(), "score": number(r.score) }),
        )
        .collect();
    json!({
        "profile": profile.profile.as_ref(),
        "picked": picked,
        "explanation": profile.explanation.as_deref().map(|why| explanation(why, signals)),
        "verdict": profile.explanation.as_deref().zip(Verdict::of(profile)).map(|(why, v)| verdict(why, &v)),
    })
}

fn explanation(why: &Explanation, signals: &Signals) -> Value {
    let scorers: Vec<Value> =
        why.scorers.iter().map(|(name, weight)| json!({ "name": name.as_ref(), "weight": number(*weight) })).collect();
    let candidates: Vec<Value> = (0..why.candidates.len()).filter_map(|i| candidate(why, i, signals)).collect();
    let removed: Vec<Value> = why
        .removed
        .iter()
        .map(|(slot, filter)| {
            json!({
                "endpoint": name(why, *slot),
                "slot": slot.0,
                "filter": why.filters.get(usize::from(*filter)).map(|name| name.as_ref()),
            })
        })
        .collect();
    json!({
        "picker": why.picker.as_ref(),
        "scorers": scorers,
        "costs": why.costs.as_ref().map(|costs| json!({
            "terms": costs.terms,
            "unit": costs.unit,
            "tolerance": number(costs.tolerance),
        })),
        "candidates": candidates,
        "removed": removed,
    })
}

fn candidate(why: &Explanation, index: usize, signals: &Signals) -> Option<Value> {
    let endpoint = why.endpoint(index)?;
    let slot = endpoint.slot;
    let mut fields = Map::new();
    let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    set("endpoint", endpoint.name().into());
    set("address", endpoint.destination().into());
    set("values", (0..why.scorers.len()).map(|s| number(why.value(s, index))).collect());
    set("total", number(why.total(index)));
    set("prefixBlocks", signals.prefix.iter().map(|m| m.blocks(slot)).collect());
    if let Some(costs) = &why.costs {
        set("costs", costs.of(index).iter().map(|v| number(*v)).collect());
        set("cost", number(costs.total(index)));
    }
    if let Some(accounts) = &signals.accounts {
        let account = accounts.of(slot);
        set("outstandingPrefillSeconds", number(account.outstanding));
        set("prefillRate", number(account.rate));
    }
    if let Some(in_flight) = &signals.in_flight {
        set("inFlight", in_flight.requests(slot).into());
    }
    Some(Value::Object(fields))
}

fn verdict(why: &Explanation, verdict: &Verdict) -> Value {
    let endpoint = |index: usize| why.endpoint(index).map(|e| e.name());
    let decided_by = match verdict.decided_by {
        DecidedBy::Alone => "only-candidate",
        DecidedBy::Margin => "margin",
        DecidedBy::Tie => "tie-rule",
        DecidedBy::Picker => "picker",
    };
    let flips: Vec<Value> = verdict
        .flips
        .iter()
        .map(|flip| {
            let column = match flip.column {
                Column::Scorer(i) => why.scorers.get(i).map(|(name, _)| name.as_ref()),
                Column::Term(i) => why.costs.as_ref().and_then(|c| c.terms.get(i).copied()),
            };
            json!({
                "endpoint": endpoint(flip.candidate),
                "column": column,
                "from": number(flip.from),
                "to": number(flip.to),
            })
        })
        .collect();
    json!({
        "winner": endpoint(verdict.winner),
        "runnerUp": verdict.runner_up.and_then(endpoint),
        "margin": number(verdict.margin),
        "unit": why.costs.as_ref().map(|c| c.unit),
        "decidedBy": decided_by,
        "tieRule": why.tie,
        "flips": flips,
    })
}

fn name(why: &Explanation, slot: Slot) -> Option<&str> {
    why.topology.get(slot).map(|e| e.name())
}

fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}

/// Six digits of `value`, as many as an f32 is sure of after a few sums; nothing for what is no number.
fn number(value: f32) -> Value {
    if value.is_finite() { format!("{value:.5e}").parse::<f64>().map_or(Value::Null, Value::from) } else { Value::Null }
}
