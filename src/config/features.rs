//! Work that costs something and is done only if somebody asks for it, with those who do.
//!
//! One list for three readers: the comments of `pointsman check` and `/debug/config`, the metric
//! `feature_enabled`, and whoever wonders what a request costs. It repeats the decisions of the rooms that
//! do the work; it does not make them.
//!
//! Names are stable, since they are label values. The list is bounded: metrics by attribute key share one
//! name.

use std::borrow::Cow;

use super::settings::Settings;
use super::{DataSource, Declared};
use crate::scheduling::plugin::{Metric, Need, Registry, SignalKind};

/// The parser that reads no bodies.
const PASSTHROUGH: &str = "passthrough-parser";

/// Something that can be switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Value of the label `feature`.
    pub name: &'static str,
    /// For people.
    pub what: Cow<'static, str>,
    /// Names of the plugins, and flags, that ask for it; empty if it is off.
    pub by: Vec<String>,
}

impl Feature {
    /// Whether somebody asks for it.
    pub fn is_on(&self) -> bool {
        !self.by.is_empty()
    }
}

/// All features of a configuration, those that are off included, in the order of a request.
pub(super) fn of(
    registry: &Registry,
    parsers: &[Declared],
    sources: &[DataSource],
    settings: &Settings,
) -> Vec<Feature> {
    let by = |need: Need| registry.needs.get(&need).cloned().unwrap_or_default();
    let made = |kind: SignalKind| registry.producers(kind).map(ToString::to_string).collect::<Vec<_>>();
    let flag = |on: bool, name: &str| if on { vec![name.to_owned()] } else { Vec::new() };
    let reading = parsers.iter().filter(|p| p.kind != PASSTHROUGH).map(|p| p.name.to_string()).collect();
    let usage = [by(Need::Usage), flag(settings.token_metrics, "--token-metrics")].concat();
    let export = settings.tracing && settings.trace_export.is_some();
    let recorded = [
        flag(settings.limits.debug_decisions > 0, "--debug-decisions"),
        flag(settings.allow_explain_header, "--allow-explain-header"),
    ];
    let recorded = recorded.concat();
    let mut all = vec![
        feature("body-parsing", "request bodies are parsed", reading),
        feature("prompts", "prompts of the request body", by(Need::Prompts)),
        feature("prefix-index", "prefix index", made(SignalKind::Prefix)),
        feature("in-flight", "accounting of work in flight", made(SignalKind::InFlight)),
        feature("sessions", "session ids", made(SignalKind::Session)),
        feature("prompt-tokens", "prompt token estimates", made(SignalKind::PromptTokens)),
        feature("usage", "token counts of the answer", usage),
    ];
    all.extend(scraping(registry, sources));
    all.extend([
        feature("endpoint-scores", "scores in the metadata", flag(settings.emit_scores, "--emit-endpoint-scores")),
        feature("decision-records", "records of decisions", recorded),
        feature("decision-log", "log for replays", flag(settings.decision_log.is_some(), "--decision-log")),
        feature("access-log", "access log", flag(settings.logging.access_log, "--access-log")),
        feature("traces", "traces", flag(export, "--tracing")),
    ]);
    all
}

/// Scraping as a whole, then each metric.
fn scraping(registry: &Registry, sources: &[DataSource]) -> Vec<Feature> {
    let wanted: Vec<(&Metric, &Vec<String>)> = registry
        .needs
        .iter()
        .filter_map(|(need, names)| if let Need::Metric(metric) = need { Some((metric, names)) } else { None })
        .collect();
    // Only the first source is read.
    let source = sources.first().filter(|_| !wanted.is_empty());
    let mut all = vec![feature(
        "scraping",
        "metrics pages of the endpoints",
        source.iter().map(|s| s.source.name.to_string()).collect(),
    )];
    if source.is_none() {
        return all;
    }
    let mut known = vec![
        feature("metric-waiting", "metric: waiting requests", Vec::new()),
        feature("metric-running", "metric: running requests", Vec::new()),
        feature("metric-kv-usage", "metric: KV cache usage", Vec::new()),
    ];
    for (metric, names) in wanted {
        let described = describe(metric);
        let at = known.iter().position(|f| f.name == described.name && f.what == described.what);
        let at = at.unwrap_or_else(|| {
            known.push(described);
            known.len() - 1
        });
        known[at].by.extend(names.iter().cloned());
    }
    // A page that is fetched anyway also feeds the gauges of the pool.
    for feature in &mut known[..3] {
        feature.by.push("pool gauges".into());
    }
    all.append(&mut known);
    all
}

fn describe(metric: &Metric) -> Feature {
    let (name, what): (_, Cow<'static, str>) = match metric {
        Metric::Waiting => ("metric-waiting", "metric: waiting requests".into()),
        Metric::Running => ("metric-running", "metric: running requests".into()),
        Metric::KvUsage => ("metric-kv-usage", "metric: KV cache usage".into()),
        Metric::CacheInfo => ("metric-cache-info", "metric: cache geometry".into()),
        Metric::Lora => ("metric-lora", "metric: LoRA adapters".into()),
        Metric::Attribute(key) => ("metric-attribute", format!("metric: attribute {key}").into()),
    };
    Feature { name, what, by: Vec::new() }
}

fn feature(name: &'static str, what: &'static str, by: Vec<String>) -> Feature {
    Feature { name, what: Cow::Borrowed(what), by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Purpose, Tables, resolve};

    fn features(document: &str, change: impl FnOnce(&mut Settings)) -> Vec<(&'static str, Vec<String>)> {
        let mut settings = Settings::default();
        change(&mut settings);
        let head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
        let text = format!("{head}{document}");
        let written = (!document.is_empty()).then_some(text.as_bytes());
        let config = resolve("t", written, settings, &Tables::standard(), Purpose::Check).unwrap();
        config.features.into_iter().map(|f| (f.name, f.by)).collect()
    }

    fn by<'a>(all: &'a [(&str, Vec<String>)], name: &str) -> Vec<&'a str> {
        all.iter().filter(|(n, _)| *n == name).flat_map(|(_, by)| by.iter().map(String::as_str)).collect()
    }

    #[test]
    fn the_default_configuration_says_who_asks() {
        let all = features("", |_| {});
        let reading =
            ["mirror-prefix-cache-producer", "prefill-account-producer", "cost-picker", "just-in-time-dispatch"];
        assert_eq!(by(&all, "prompts"), reading);
        assert_eq!(by(&all, "prefix-index"), ["mirror-prefix-cache-producer"]);
        assert_eq!(by(&all, "usage"), ["mirror-prefix-cache-producer", "cost-picker", "--token-metrics"]);
        assert_eq!(by(&all, "scraping"), ["metrics-data-source"]);
        assert_eq!(by(&all, "metric-waiting"), ["cost-picker", "pool gauges"]);
        assert_eq!(by(&all, "metric-running"), ["pool gauges"]);
        assert_eq!(
            by(&all, "metric-cache-info"),
            ["mirror-prefix-cache-producer", "cost-picker", "just-in-time-dispatch"]
        );
        assert_eq!(by(&all, "access-log"), ["--access-log"]);
        assert!(by(&all, "body-parsing").contains(&"openai-parser"));
        for off in ["in-flight", "sessions", "decision-log", "endpoint-scores", "traces"] {
            assert!(all.iter().any(|(name, by)| *name == off && by.is_empty()), "{off}");
        }
    }

    #[test]
    fn what_nobody_asks_for_is_off() {
        let document = "plugins: [{type: random-picker}, {type: passthrough-parser}]\n\
                        requestHandler: {parsers: [{pluginRef: passthrough-parser}]}\n";
        let all = features(document, |s| {
            s.token_metrics = false;
            s.limits.debug_decisions = 0;
            s.logging.access_log = false;
        });
        let on: Vec<_> = all.iter().filter(|(_, by)| !by.is_empty()).collect();
        assert!(on.is_empty(), "{on:?}");
    }

    #[test]
    fn flags_switch_on_too() {
        let all = features("plugins: [{type: active-request-scorer}]", |s| {
            (s.emit_scores, s.limits.debug_decisions) = (true, 5);
            s.decision_log = Some(("log".into(), 1));
        });
        assert_eq!(by(&all, "endpoint-scores"), ["--emit-endpoint-scores"]);
        assert_eq!(by(&all, "decision-records"), ["--debug-decisions"]);
        assert_eq!(by(&all, "decision-log"), ["--decision-log"]);
        assert_eq!(by(&all, "in-flight"), ["inflight-load-producer"]);
        assert!(by(&all, "scraping").is_empty() && !all.iter().any(|(name, _)| name.starts_with("metric-")));
    }
}
