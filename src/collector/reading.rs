//! From the series of one page to one [`LoadSample`].
//!
//! Invariants: a value that the page did not give, gave as NaN or infinite, or gave in a line that cannot be
//! read, is absent, never zero. If one of several series of a gauge is unusable the gauge is absent: half a
//! sum would look like an idle server. The rarer part of a sample is allocated only when it changed.

use std::sync::Arc;

use super::mapping::{Fold, Plan, Quantity, Target};
use super::parse::{Labels, Scanner, Visit};
use crate::domain::{LoadDetail, LoadSample, LoraState, Timestamp};

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    series: u32,
    sum: f64,
    newest: f64,
    unusable: bool,
}

#[derive(Debug, Default)]
struct Cache {
    block_size: Option<u32>,
    num_blocks: Option<u32>,
    unusable: bool,
}

#[derive(Debug, Default)]
struct Lora {
    at: Option<f64>,
    running: String,
    waiting: String,
    max: u32,
    /// The newest state of the page, once the page has ended.
    state: LoraState,
}

#[derive(Debug, Default)]
struct Values {
    tallies: Vec<Tally>,
    cache: Cache,
    lora: Lora,
    scratch: (String, String),
}

/// Reads pages with one [`Plan`]; reusable, so that a steady endpoint allocates nothing.
#[derive(Debug, Default)]
pub struct Reading {
    scanner: Scanner,
    values: Values,
}

impl Reading {
    /// Prepares for a new page; keeps the buffers.
    pub fn reset(&mut self, plan: &Plan) {
        self.scanner.reset(&plan.names);
        let values = &mut self.values;
        values.tallies.clear();
        values.tallies.resize(plan.tallies, Tally::default());
        values.cache = Cache::default();
        values.lora.at = None;
    }

    /// Looks through the next chunk.
    pub fn feed(&mut self, plan: &Plan, chunk: &[u8]) {
        self.scanner.feed(&plan.names, chunk, &mut Visitor { plan, values: &mut self.values });
    }

    /// Ends the page, before [`sample`](Self::sample); whether it was cut off inside a line.
    pub fn finish(&mut self) -> bool {
        let lora = &mut self.values.lora;
        if lora.at.is_some() {
            lora.state.set(adapters(&lora.running), adapters(&lora.waiting), lora.max);
        }
        self.scanner.finish()
    }

    /// Whether what came was no metrics page at all, but HTML or JSON.
    pub fn looks_foreign(&self) -> bool {
        matches!(self.scanner.first_byte(), Some(b'<' | b'{' | b'['))
    }

    /// Whether name `index` of the plan, or an older spelling of it, was on the page.
    pub fn saw(&self, plan: &Plan, index: usize) -> bool {
        let current = plan.stands_for[index].unwrap_or(index);
        self.scanner.saw(current)
            || plan.stands_for.iter().enumerate().any(|(i, s)| *s == Some(current) && self.scanner.saw(i))
    }

    /// Whether the page had any of the load gauges that the plan looks for. A plan without such gauges is
    /// always satisfied: adapters and custom metrics may be absent from a healthy server.
    pub fn has_load(&self, plan: &Plan) -> bool {
        let gauges = [&plan.waiting, &plan.running, &plan.kv_usage, &plan.block_size, &plan.num_blocks];
        let mut gauges = gauges.into_iter().flatten().peekable();
        if gauges.peek().is_none() && !plan.cache_info {
            return true;
        }
        let cache = &self.values.cache;
        let has_cache = cache.unusable || cache.block_size.is_some() || cache.num_blocks.is_some();
        has_cache || gauges.any(|q| q.tallies.iter().any(|t| self.values.tallies[*t].series > 0))
    }

    /// The sample; `previous` is its detail again if nothing in it changed.
    pub fn sample(&self, plan: &Plan, taken_at: Timestamp, previous: &Arc<LoadDetail>) -> LoadSample {
        // Checked once more as `f32`: a larger number would become infinite, and two of those have no order.
        let count =
            |q: &Option<Quantity>| self.value(q.as_ref()).map(|v| v as f32).filter(|v| *v >= 0.0 && v.is_finite());
        LoadSample {
            taken_at,
            waiting: count(&plan.waiting),
            running: count(&plan.running),
            kv_usage: count(&plan.kv_usage).map(|v| v.min(1.0)),
            detail: self.detail(plan, previous),
        }
    }

    fn value(&self, quantity: Option<&Quantity>) -> Option<f64> {
        let quantity = quantity?;
        let tally = quantity.tallies.iter().map(|i| self.values.tallies[*i]).find(|t| t.series > 0)?;
        let value = match quantity.fold {
            Fold::Sum => tally.sum,
            Fold::Mean => tally.sum / f64::from(tally.series),
            Fold::Newest => tally.newest,
        };
        (!tally.unusable && value.is_finite()).then_some(value)
    }

    fn detail(&self, plan: &Plan, previous: &Arc<LoadDetail>) -> Arc<LoadDetail> {
        let whole = |q: &Option<Quantity>| self.value(q.as_ref()).filter(|v| (1.0..4e9).contains(v)).map(|v| v as u32);
        let cache = &self.values.cache;
        let block_size = whole(&plan.block_size).or(cache.block_size);
        let num_blocks = whole(&plan.num_blocks).or(cache.num_blocks.filter(|_| !cache.unusable));
        let attributes = || plan.attributes.iter().filter_map(|(key, q)| self.value(Some(q)).map(|value| (key, value)));
        let same = previous.block_size == block_size
            && previous.num_blocks == num_blocks
            && self.lora() == previous.lora.as_ref()
            && attributes().eq(previous.attributes.iter().map(|(k, v)| (k, *v)));
        if same {
            return Arc::clone(previous);
        }
        let attributes = attributes().map(|(key, value)| (key.clone(), value)).collect();
        Arc::new(LoadDetail { block_size, num_blocks, lora: self.lora().cloned(), attributes })
    }

    fn lora(&self) -> Option<&LoraState> {
        self.values.lora.at.map(|_| &self.values.lora.state)
    }
}

fn adapters(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

struct Visitor<'a> {
    plan: &'a Plan,
    values: &'a mut Values,
}

impl Visit for Visitor<'_> {
    fn series(&mut self, name: usize, labels: Labels<'_>, value: f64) {
        let Some(rules) = self.plan.rules.get(name) else { return };
        for rule in rules {
            if !rule.applies(labels) {
                continue;
            }
            match &rule.target {
                Target::Tally(index) => {
                    let tally = &mut self.values.tallies[*index];
                    tally.series += 1;
                    tally.unusable |= !value.is_finite();
                    tally.sum += value;
                    tally.newest = value;
                }
                Target::CacheInfo { block_size, num_blocks, in_total } => {
                    let cache = &mut self.values.cache;
                    let number = |label: &str| labels.get(label).and_then(|v| v.parse::<u32>()).filter(|n| *n > 0);
                    // Ranks of one server share the block size; should they differ, the smaller one promises less.
                    cache.block_size = match (cache.block_size, number(block_size)) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                    match number(num_blocks) {
                        Some(n) => {
                            let before = cache.num_blocks.unwrap_or(0);
                            cache.num_blocks = Some(if *in_total { before.max(n) } else { before.saturating_add(n) });
                        }
                        None => cache.unusable = true,
                    }
                }
                Target::Lora => self.values.lora(labels, value),
            }
        }
    }

    fn malformed(&mut self, name: usize) {
        // Which of the rules of this name the line was for cannot be known.
        for rule in self.plan.rules.get(name).into_iter().flatten() {
            match rule.target {
                Target::Tally(index) => {
                    self.values.tallies[index].series += 1;
                    self.values.tallies[index].unusable = true;
                }
                Target::CacheInfo { .. } => self.values.cache.unusable = true,
                Target::Lora => {}
            }
        }
    }
}

impl Values {
    /// Keeps the newest of the LoRA states: vLLM leaves one series behind for each state that it was in, with the
    /// time as value.
    fn lora(&mut self, labels: Labels<'_>, at: f64) {
        if !at.is_finite() || self.lora.at.is_some_and(|newest| at < newest) {
            return;
        }
        let (running, waiting) = &mut self.scratch;
        let copy = |label: &str, into: &mut String| match labels.get(label) {
            Some(value) => value.copy_to(into),
            None => {
                into.clear();
                true
            }
        };
        if !copy("running_lora_adapters", running) || !copy("waiting_lora_adapters", waiting) {
            return;
        }
        self.lora.at = Some(at);
        self.lora.max = labels.get("max_lora").and_then(|v| v.parse()).unwrap_or(0);
        std::mem::swap(&mut self.lora.running, running);
        std::mem::swap(&mut self.lora.waiting, waiting);
    }
}

/// Reads one whole page. `None` if it is cut off or holds none of the load gauges.
pub fn read(plan: &Plan, page: &[u8], taken_at: Timestamp) -> Option<LoadSample> {
    let mut reading = Reading::default();
    reading.reset(plan);
    reading.feed(plan, page);
    let cut = reading.finish();
    (!cut && reading.has_load(plan)).then(|| reading.sample(plan, taken_at, &Arc::default()))
}

#[cfg(test)]
mod tests;
