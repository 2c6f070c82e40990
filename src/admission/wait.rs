//! What a plan reads of an endpoint: its wait, a request's own prefill there, and room in its cache.
//!
//! Pure functions over one [`Cycle`]; times in seconds, amounts in tokens.

use crate::domain::{InferenceRequest, LoadTable, Signals, Slot, Timestamp};
use crate::scheduling::plugin::Cycle;

/// Output tokens that a request is granted in the cache before it is sent.
pub const OUTPUT_ROOM: f32 = 400.0;

/// Time until `slot` would start on a request, without what is promised to those ahead in the queue:
/// the backlog, at least a tenth of what is outstanding and at most all of it, and the mean prefill for
/// each waiting request that the endpoint reports beyond our own.
pub fn wait(cx: &Cycle<'_>, slot: Slot) -> f32 {
    let Some(view) = &cx.signals.accounts else { return 0.0 };
    let account = view.of(slot);
    let outstanding = account.outstanding.max(0.0);
    let own = account.backlog.clamp(0.1 * outstanding, outstanding);
    let loads = &cx.snapshot.loads;
    let waiting = loads.since(loads.oldest_fresh(cx.now), LoadTable::waiting, slot).unwrap_or(0.0);
    own + (waiting - account.prefilling as f32).max(0.0) * view.mean_prefill.max(0.0)
}

/// Prompt tokens of `request` that `slot` would have to compute, by prefix producer `prefix`.
pub fn uncached(signals: &Signals, request: &InferenceRequest, prefix: usize, slot: Slot) -> f32 {
    let found = signals.prefix.get(prefix);
    let prompt = found
        .and_then(|found| found.prompt_tokens)
        .or(signals.prompt_tokens)
        .unwrap_or_else(|| request.estimated_prompt_tokens());
    prompt.saturating_sub(found.map_or(0, |found| found.tokens(slot))) as f32
}

/// Time that `slot` would need for the prefill of `request`; zero while its rate is unknown.
pub fn prefill(signals: &Signals, request: &InferenceRequest, prefix: usize, slot: Slot) -> f32 {
    let rate = signals.accounts.as_ref().map_or(0.0, |view| view.of(slot).rate);
    if rate > 0.0 { uncached(signals, request, prefix, slot) / rate } else { 0.0 }
}

/// The least own prefill time over `candidates`.
pub fn least_prefill(cx: &Cycle<'_>, prefix: usize, candidates: &[Slot]) -> f32 {
    let own = |slot: &Slot| prefill(cx.signals, cx.request, prefix, *slot);
    let least = candidates.iter().map(own).fold(f32::INFINITY, f32::min);
    if least.is_finite() { least } else { 0.0 }
}

/// Whether the cache of `slot` has room for the request, or nothing runs there that could make room.
pub fn has_room(cx: &Cycle<'_>, prefix: usize, slot: Slot) -> bool {
    let Some(view) = &cx.signals.accounts else { return true };
    let account = view.of(slot);
    if account.in_flight == 0 {
        return true;
    }
    let Some(capacity) = capacity(cx, prefix, slot) else { return true };
    let Some(usage) = cx.snapshot.loads.kv_usage(slot) else { return true };
    usage * capacity + account.prefill_tokens + uncached(cx.signals, cx.request, prefix, slot) + OUTPUT_ROOM <= capacity
}

/// Tokens that the cache of `slot` has room for, if that is known.
fn capacity(cx: &Cycle<'_>, prefix: usize, slot: Slot) -> Option<f32> {
    let mirrored = cx.signals.prefix.get(prefix).and_then(|found| found.caches.as_ref()?.capacity(slot));
    mirrored.or_else(|| {
        let detail = cx.snapshot.loads.detail(slot)?;
        let tokens = detail.block_size? as f32 * detail.num_blocks? as f32;
        (tokens > 0.0).then_some(tokens)
    })
}

/// Where a request stands in the order, in microseconds: its arrival and `weight` times its least own
/// prefill time. The epoch is that of `arrival`.
pub fn order_key(arrival: Timestamp, weight: f64, prefill: f32) -> u64 {
    // A float that is too large for the integer saturates.
    arrival.0.saturating_add((f64::from(prefill.max(0.0)) * weight * 1e6) as u64)
}
