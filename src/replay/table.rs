//! Figures of a comparison: averages over seeds, ratios to the first configuration, as a table and as JSON lines.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::compare::{Cell, Plan};
use super::run::Outcome;

/// Share of requests in time that the highest load is asked for.
const ENOUGH: f64 = 0.8;

/// Figures of one configuration at one load: means over the seeds, ratios geometric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Mean time to first token in seconds.
    pub mean: f64,
    /// Its median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Share of prompt tokens that were cached.
    pub hit: f64,
    /// Share of requests whose first token came in time.
    pub good: f64,
    /// Most loaded pod over the mean.
    pub imbalance: f64,
    /// Share of prompt tokens that the index foretold and that were not cached.
    pub false_hit: f64,
    /// Mean time held in seconds.
    pub held: f64,
    /// Share of the pods' time that is prefill.
    pub utilisation: f64,
    /// Requests measured, over all seeds.
    pub requests: usize,
    /// Of these without a first token.
    pub unfinished: usize,
    /// Refused besides.
    pub refused: usize,
    /// Mean time over that of the first configuration.
    pub ratio: f64,
    /// 99th percentile over that of the first configuration.
    pub ratio_p99: f64,
}

/// The value below which `share` of the ascending `values` lie.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    match values.len() {
        0 => 0.0,
        n => values[((n - 1) as f64 * share) as usize],
    }
}

/// Figures of one run, against `first`, that of the first configuration on the same traffic.
pub fn figures(outcome: &Outcome, first: Option<&Outcome>, goodput: f64) -> Figures {
    let ttft = &outcome.ttft;
    let mean = |o: &Outcome| o.ttft.iter().sum::<f64>() / o.ttft.len().max(1) as f64;
    let share = |part: u64| part as f64 / outcome.input_tokens.max(1) as f64;
    let asked = ttft.len() + outcome.refused;
    let over = |own: f64, base: f64| if base > 0.0 { own / base } else { 1.0 };
    Figures {
        mean: mean(outcome),
        p50: quantile(ttft, 0.5),
        p90: quantile(ttft, 0.9),
        p99: quantile(ttft, 0.99),
        hit: share(outcome.cached_tokens),
        good: ttft.partition_point(|t| *t < goodput) as f64 / asked.max(1) as f64,
        imbalance: outcome.imbalance,
        false_hit: share(outcome.false_tokens),
        held: outcome.held_seconds / ttft.len().max(1) as f64,
        utilisation: outcome.utilisation,
        requests: ttft.len(),
        unfinished: outcome.unfinished,
        refused: outcome.refused,
        ratio: first.map_or(1.0, |first| over(mean(outcome), mean(first))),
        ratio_p99: first.map_or(1.0, |first| over(quantile(ttft, 0.99), quantile(&first.ttft, 0.99))),
    }
}

fn average(of: &[Figures]) -> Figures {
    let n = of.len().max(1) as f64;
    let mean = |f: fn(&Figures) -> f64| of.iter().map(f).sum::<f64>() / n;
    let geometric = |f: fn(&Figures) -> f64| (of.iter().map(|x| f(x).max(1e-9).ln()).sum::<f64>() / n).exp();
    let sum = |f: fn(&Figures) -> usize| of.iter().map(f).sum::<usize>();
    Figures {
        mean: mean(|f| f.mean),
        p50: mean(|f| f.p50),
        p90: mean(|f| f.p90),
        p99: mean(|f| f.p99),
        hit: mean(|f| f.hit),
        good: mean(|f| f.good),
        imbalance: mean(|f| f.imbalance),
        false_hit: mean(|f| f.false_hit),
        held: mean(|f| f.held),
        utilisation: mean(|f| f.utilisation),
        requests: sum(|f| f.requests),
        unfinished: sum(|f| f.unfinished),
        refused: sum(|f| f.refused),
        ratio: geometric(|f| f.ratio),
        ratio_p99: geometric(|f| f.ratio_p99),
    }
}

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Results {
    /// Names of the configurations.
    pub names: Vec<String>,
    /// Loads; one of NaN if the trace was replayed at its own rate.
    pub loads: Vec<f64>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Seconds that count as in time.
    pub goodput: f64,
    /// The runs.
    pub cells: Vec<Cell>,
}

impl Results {
    /// Puts together what `plan` gave.
    pub fn new(names: Vec<String>, plan: &Plan, goodput: f64, cells: Vec<Cell>) -> Self {
        let loads = if plan.loads.is_empty() { vec![f64::NAN] } else { plan.loads.clone() };
        Self { names, loads, seeds: plan.seeds.clone(), goodput, cells }
    }

    /// The run of `config` at `load` with `seed`, all by index.
    pub fn cell(&self, config: usize, load: usize, seed: usize) -> Option<&Cell> {
        self.cells.iter().find(|c| (c.config, c.load, c.seed) == (config, load, seed))
    }

    fn of_seed(&self, config: usize, load: usize, seed: usize) -> Option<Figures> {
        let first = self.cell(0, load, seed).map(|c| &c.outcome);
        self.cell(config, load, seed).map(|c| figures(&c.outcome, first, self.goodput))
    }

    /// Figures of `config` at `load`, over all seeds.
    pub fn figures(&self, config: usize, load: usize) -> Figures {
        let each: Vec<_> = (0..self.seeds.len()).filter_map(|seed| self.of_seed(config, load, seed)).collect();
        average(&each)
    }

    /// The highest load replayed at which `share` of the requests were in time, and at all lower ones.
    pub fn highest_good_load(&self, config: usize, share: f64) -> Option<f64> {
        let mut by_load: Vec<usize> = (0..self.loads.len()).collect();
        by_load.sort_by(|a, b| self.loads[*a].total_cmp(&self.loads[*b]));
        let good = by_load.into_iter().take_while(|load| self.figures(config, *load).good >= share);
        good.last().map(|load| self.loads[load])
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let width = self.names.iter().map(|n| n.chars().count()).max().unwrap_or(0).clamp(6, 40);
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:>5}  {:width$}  {:>7} {:>7} {:>7} {:>7}  {:>5} {:>5} {:>6} {:>6}  {:>6} {:>6}",
            "load", "config", "mean s", "p50", "p90", "p99", "hit %", "good%", "imbal.", "false%", "ratio", "p99"
        );
        let mut remarks = Vec::new();
        for (l, load) in self.loads.iter().enumerate() {
            for (c, name) in self.names.iter().enumerate() {
                let f = self.figures(c, l);
                let load = if load.is_nan() { "as is".into() } else { load.to_string() };
                let shown: String = name.chars().take(width).collect();
                let _ = writeln!(
                    out,
                    "{load:>5}  {shown:width$}  {:>7} {:>7} {:>7} {:>7}  {:>5.1} {:>5.1} {:>6.2} {:>6.2}  {:>6.3} {:>6.3}",
                    seconds(f.mean),
                    seconds(f.p50),
                    seconds(f.p90),
                    seconds(f.p99),
                    f.hit * 100.0,
                    f.good * 100.0,
                    f.imbalance,
                    f.false_hit * 100.0,
                    f.ratio,
                    f.ratio_p99,
                );
                if f.unfinished > 0 || f.refused > 0 {
                    remarks.push(format!(
                        "{name} at load {load}: {} of {} requests had no first token when the run ended, {} were refused",
                        f.unfinished, f.requests, f.refused
                    ));
                }
            }
        }
        if self.names.len() > 1 && self.loads.len() > 1 {
            let _ = writeln!(
                out,
                "\nover all loads, ratios to {} (mean, p99), and the highest load with {:.0} % within {} s:",
                self.names[0],
                ENOUGH * 100.0,
                self.goodput
            );
            for (c, name) in self.names.iter().enumerate() {
                let each: Vec<_> = (0..self.loads.len()).map(|load| self.figures(c, load)).collect();
                let all = average(&each);
                let good = self.highest_good_load(c, ENOUGH).map_or("none".into(), |load| load.to_string());
                let _ = writeln!(out, "  {name:width$}  {:.3}  {:.3}  {good}", all.ratio, all.ratio_p99);
            }
        }
        for remark in remarks {
            let _ = writeln!(out, "note: {remark}");
        }
        out
    }

    /// One JSON object a run, with the names of the columns.
    pub fn json(&self) -> Vec<Value> {
        let line = |cell: &Cell| {
            let f = self.of_seed(cell.config, cell.load, cell.seed).unwrap_or_default();
            let load = self.loads[cell.load];
            let timeline: Vec<Value> = cell
                .outcome
                .timeline
                .iter()
                .map(|(sum, n)| json!(if *n > 0 { sum / f64::from(*n) } else { 0.0 }))
                .collect();
            json!({
                "config": self.names[cell.config],
                "load": if load.is_nan() { Value::Null } else { json!(load) },
                "seed": self.seeds[cell.seed],
                "speedup": cell.speedup,
                "seconds": cell.seconds,
                "requests": f.requests,
                "mean": f.mean,
                "p50": f.p50,
                "p90": f.p90,
                "p99": f.p99,
                "hit": f.hit,
                "good": f.good,
                "imbalance": f.imbalance,
                "falseHit": f.false_hit,
                "held": f.held,
                "utilisation": f.utilisation,
                "unfinished": f.unfinished,
                "refused": f.refused,
                "ratio": f.ratio,
                "ratioP99": f.ratio_p99,
                "timeline": timeline,
            })
        };
        self.cells.iter().map(line).collect()
    }
}

/// A time with three digits that matter.
fn seconds(value: f64) -> String {
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests;
