//! The flags of `replay` and what they mean together.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Wanted;
use crate::replay::compare::Plan;
use crate::replay::picker::MAX_PODS;
use crate::replay::pod::Hardware;
use crate::replay::run::{Scene, SlowPod};
use crate::replay::trace::Trace;
use crate::replay::trace::generate::Shape;
use crate::scheduling::params::parse_duration;

/// Most runs of one command.
const MAX_RUNS: usize = 100_000;

/// Arguments of `replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Speak the picker protocol on standard input and output: a simulator in another process drives the decisions.
    #[arg(long)]
    pub picker_protocol: bool,
    /// Trace to replay: JSON lines, Mooncake's form or the picker's own decision log.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Generated traffic instead of a trace: sessions, shared, tools, zipf or unique, with numbers of its own.
    #[arg(long, value_name = "PRESET[,KEY=VALUE…]")]
    pub generate: Option<String>,
    /// Spread requests of one timestamp over the gap until the next one (Mooncake's traces come in batches).
    #[arg(long)]
    pub spread: bool,
    /// A configuration: a file, `default` (the shipped one) or `llm-d-default`. Several are compared with the first.
    #[arg(long, value_name = "NAME|FILE")]
    pub config: Vec<String>,
    /// The same as --config with a file.
    #[arg(long, value_name = "FILE")]
    pub config_file: Vec<PathBuf>,
    /// A configuration as text.
    #[arg(long, value_name = "YAML")]
    pub config_text: Vec<String>,
    /// Loads to replay at, 1.0 being the most that the pods could do with one shared cache; `as-is` is the rate of the
    /// trace.
    #[arg(long, value_name = "LOAD,…", default_value = "0.5,0.8,0.95")]
    pub load: String,
    /// Seeds, as numbers and ranges.
    #[arg(long, value_name = "SEED,…", default_value = "1-3")]
    pub seeds: String,
    /// Longest run, in seconds or as a duration.
    #[arg(long, value_name = "TIME", default_value = "1800", value_parser = seconds)]
    pub duration: Duration,
    /// Share of each run that is left out of the figures, at its begin.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    pub warm_up: f64,
    /// First token within this time is in time (goodput).
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = seconds)]
    pub goodput_ttft: Duration,
    /// Model servers.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub pods: usize,
    /// Speed of each pod, 1 being --prefill-rate; those that are not named have 1.
    #[arg(long, value_name = "SPEED,…")]
    pub pod_speeds: Option<String>,
    /// Tokens of KV cache of a pod.
    #[arg(long, value_name = "TOKENS", default_value_t = 1_000_000)]
    pub kv_tokens: u64,
    /// Prefill tokens per second of a pod, at the begin of a prompt.
    #[arg(long, value_name = "RATE", default_value_t = 15_000.0)]
    pub prefill_rate: f64,
    /// Position in a prompt at which a token costs twice as much.
    #[arg(long, value_name = "TOKENS", default_value_t = 64_000.0)]
    pub slow_position: f64,
    /// Tokens of one step of a pod.
    #[arg(long, value_name = "TOKENS", default_value_t = 2_048)]
    pub step_tokens: u32,
    /// Sequences that a pod runs at once.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_sequences: usize,
    /// Time between two scrapes of a pod; 0 shows every decision the state of that moment.
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = seconds)]
    pub scrape_interval: Duration,
    /// Time that a scrape takes to arrive.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = seconds)]
    pub scrape_delay: Duration,
    /// Pickers that share nothing; requests are dealt to them at random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pickers: usize,
    /// Restart the pickers at this share of the run: what they know is lost.
    #[arg(long, value_name = "SHARE")]
    pub restart: Option<f64>,
    /// A pod that becomes slower, such as 0:0.5@0.6: pod 0, half its speed, from 60 % of the run on.
    #[arg(long, value_name = "POD:SPEED[@SHARE]")]
    pub slow_pod: Option<String>,
    /// Answers come in one piece: the picker sees nothing of them but their end.
    #[arg(long)]
    pub not_streamed: bool,
    /// Threads; one per core by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// One JSON object a run on standard output instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Write a report with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// A time, as a duration or as a number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    number.or_else(|| parse_duration(text)).ok_or_else(|| "a time is written 50ms, 2s, 1m30s or 1800".into())
}

impl ReplayArgs {
    /// What is to be replayed, and where the traffic comes from.
    ///
    /// # Errors
    /// Everything that is wrong, one line each.
    pub(super) fn settle(&self) -> Result<(Plan, Wanted), Vec<String>> {
        let mut wrong = Vec::new();
        let mut within = |flag: &str, value: f64, least: f64, most: f64| {
            if !(least..=most).contains(&value) {
                wrong.push(format!("{flag}: `{value}` is out of range: must be from {least} to {most}"));
            }
        };
        within("--pods", self.pods as f64, 1.0, MAX_PODS as f64);
        within("--kv-tokens", self.kv_tokens as f64, 1_024.0, 1e10);
        within("--prefill-rate", self.prefill_rate, 1.0, 1e9);
        within("--slow-position", self.slow_position, 1.0, 1e12);
        within("--step-tokens", f64::from(self.step_tokens), 16.0, 1e6);
        within("--max-sequences", self.max_sequences as f64, 1.0, 1e5);
        within("--warm-up", self.warm_up, 0.0, 0.9);
        within("--pickers", self.pickers as f64, 1.0, 64.0);
        within("--duration", self.duration.as_secs_f64(), 1.0, 1e7);
        within("--goodput-ttft", self.goodput_ttft.as_secs_f64(), 1e-3, 1e6);
        within("--scrape-delay", self.scrape_delay.as_secs_f64(), 0.0, 1e5);
        within("--restart", self.restart.unwrap_or(0.5), 0.0, 1.0);
        within("--threads", self.threads.unwrap_or(1) as f64, 1.0, 1024.0);
        let interval = self.scrape_interval.as_secs_f64();
        if interval > 0.0 {
            within("--scrape-interval", interval, 1e-3, 1e5);
        }
        let wanted = match (&self.trace, &self.generate) {
            (Some(path), None) => Some(Wanted::File(path.clone())),
            (None, Some(text)) => keep(Shape::parse(text).map(Wanted::Generated), &mut wrong),
            (Some(_), Some(_)) => keep(Err("--trace and --generate are both given; remove one".into()), &mut wrong),
            (None, None) => {
                let what = "give --trace FILE or --generate PRESET (or --picker-protocol)";
                keep(Err(what.into()), &mut wrong)
            }
        };
        let loads = keep(loads(&self.load), &mut wrong);
        let seeds = keep(seeds(&self.seeds), &mut wrong);
        let speeds = keep(self.speeds(), &mut wrong);
        let slow_pod = keep(self.slow_pod(), &mut wrong);
        let (Some(wanted), Some(loads), Some(seeds), Some(speeds), Some(slow_pod), true) =
            (wanted, loads, seeds, speeds, slow_pod, wrong.is_empty())
        else {
            return Err(wrong);
        };
        let hardware = Hardware {
            kv_tokens: self.kv_tokens,
            prefill_rate: self.prefill_rate,
            slow_position: self.slow_position,
            step_tokens: self.step_tokens,
            max_sequences: self.max_sequences,
            ..Hardware::default()
        };
        let scene = Scene {
            hardware,
            speeds,
            scrape_interval: interval,
            scrape_delay: self.scrape_delay.as_secs_f64(),
            pickers: self.pickers,
            restart: self.restart,
            slow_pod,
            streamed: !self.not_streamed,
            warm: self.warm_up,
        };
        Ok((Plan { loads, seeds, seconds: self.duration.as_secs_f64(), scene }, wanted))
    }

    fn speeds(&self) -> Result<Vec<f64>, String> {
        let mut speeds = vec![1.0; self.pods.min(MAX_PODS)];
        let Some(text) = &self.pod_speeds else { return Ok(speeds) };
        let given = numbers("--pod-speeds", text, 0.001, 1e3)?;
        if given.len() > speeds.len() {
            return Err(format!("--pod-speeds: {} speeds for {} pods; raise --pods", given.len(), self.pods));
        }
        speeds[..given.len()].copy_from_slice(&given);
        Ok(speeds)
    }

    fn slow_pod(&self) -> Result<Option<SlowPod>, String> {
        let Some(text) = &self.slow_pod else { return Ok(None) };
        let (what, from) = text.split_once('@').unwrap_or((text, "0"));
        let parsed = what.split_once(':').and_then(|(pod, speed)| {
            let slow = SlowPod { pod: pod.parse().ok()?, speed: speed.parse().ok()?, from: from.parse().ok()? };
            let sound = slow.pod < self.pods && (0.001..=1e3).contains(&slow.speed) && (0.0..=1.0).contains(&slow.from);
            sound.then_some(slow)
        });
        let form = "it is written POD:SPEED@SHARE, such as 0:0.5@0.6, with a pod that exists";
        parsed.map(Some).ok_or_else(|| format!("--slow-pod: `{text}` is not understood: {form}"))
    }

    /// What a report says of the runs.
    pub(super) fn facts(&self, trace: &Trace, plan: &Plan) -> Vec<(&'static str, String)> {
        let scene = &plan.scene;
        let traffic = match (&self.trace, &self.generate) {
            (Some(path), _) => path.display().to_string(),
            (None, text) => format!("generated: {}", text.as_deref().unwrap_or_default()),
        };
        let mean = |of: fn(&crate::replay::trace::Request) -> u32| {
            trace.requests.iter().map(|r| f64::from(of(r))).sum::<f64>() / trace.requests.len().max(1) as f64
        };
        let mut facts = vec![
            ("Traffic", traffic),
            ("Requests", format!("{} in {:.0} s", trace.requests.len(), trace.seconds)),
            ("Tokens in, out", format!("{:.0}, {:.0} on average", mean(|r| r.input), mean(|r| r.output))),
            ("Pods", format!("{}, speeds {:?}", scene.speeds.len(), scene.speeds)),
            ("KV cache", format!("{} tokens a pod, blocks of {}", scene.hardware.kv_tokens, trace.block_tokens)),
            ("Prefill", format!("{} tokens/s", scene.hardware.prefill_rate)),
            ("Scrapes", format!("every {} s, {} s late", scene.scrape_interval, scene.scrape_delay)),
            ("Seeds", self.seeds.clone()),
            ("Run", format!("{:.0} s, the first {:.0} % left out", plan.seconds, scene.warm * 100.0)),
        ];
        if scene.pickers > 1 {
            facts.push(("Pickers", scene.pickers.to_string()));
        }
        if let Some(share) = scene.restart {
            facts.push(("Restart", format!("at {:.0} % of the run", share * 100.0)));
        }
        if let Some(slow) = &self.slow_pod {
            facts.push(("Slow pod", slow.clone()));
        }
        if self.not_streamed {
            facts.push(("Answers", "in one piece".into()));
        }
        facts
    }
}

/// The value, or its problem in `wrong`.
fn keep<T>(result: Result<T, String>, wrong: &mut Vec<String>) -> Option<T> {
    result.map_err(|what| wrong.push(what)).ok()
}

fn numbers(flag: &str, text: &str, least: f64, most: f64) -> Result<Vec<f64>, String> {
    let number = |part: &str| match part.trim().parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{flag}: `{part}` is not a number from {least} to {most}")),
    };
    text.split(',').map(number).collect()
}

/// Loads; none for the rate of the trace.
fn loads(text: &str) -> Result<Vec<f64>, String> {
    if text == "as-is" {
        return Ok(Vec::new());
    }
    numbers("--load", text, 0.01, 20.0)
}

fn seeds(text: &str) -> Result<Vec<u64>, String> {
    let mut seeds = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        match (from.trim().parse::<u64>(), to.trim().parse::<u64>()) {
            (Ok(from), Ok(to)) if from <= to && to - from < MAX_RUNS as u64 => seeds.extend(from..=to),
            _ => return Err(format!("--seeds: `{part}` is not a number or a range such as 1-5")),
        }
        if seeds.len() > MAX_RUNS {
            return Err(format!("--seeds: more than {MAX_RUNS}"));
        }
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests;
