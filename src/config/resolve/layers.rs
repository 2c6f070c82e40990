//! Parsers, data sources, discovery and saturation: the plugins whose objects other rooms build.

use super::plugins::{Group, Plugins};
use crate::collector::{MetricSpec, decode_extractor};
use crate::config::document::{Document, FlowControl, Placed, Reference};
use crate::config::{Gates, Settings};
use crate::domain::node::{Position, Problems};
use crate::scheduling::detectors::utilization;
use crate::scheduling::params::Params;
use crate::scheduling::plugin::{Metric, Need};

/// Parsers when none is named, in the order in which they are tried.
const PARSERS: [&str; 4] = ["openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser"];
const SOURCE: &str = "metrics-data-source";
const EXTRACTOR: &str = "core-metrics-extractor";
const DETECTOR: &str = "utilization-detector";

/// Indices into the plugins.
pub(in crate::config) struct Layers {
    pub parsers: Vec<usize>,
    pub sources: Vec<(usize, Vec<usize>)>,
    pub discovery: Option<usize>,
    pub saturation: Option<usize>,
}

pub(super) fn resolve(document: &Document, gates: Gates, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Layers {
    let flow = document.flow_control.as_ref();
    if let Some(flow) = flow {
        flow_control(flow, gates, problems);
    }
    Layers {
        parsers: parsers(document, plugins, problems),
        sources: sources(document, plugins, problems),
        discovery: discovery(document, plugins, problems),
        saturation: saturation(document, plugins, problems),
    }
}

/// Refuses custom metrics that some plugin reads and nothing can fill: neither has an engine a metric of this
/// key, nor is the key the name of a series.
pub(super) fn custom_metrics(layers: &Layers, plugins: &Plugins<'_>, problems: &mut Problems) {
    let extractor = layers.sources.first().and_then(|(_, extractors)| extractors.first());
    let parameters = extractor.and_then(|i| plugins.entry(*i).declared.parameters.as_ref());
    // What is wrong with them was reported when the extractor was built.
    let engines = decode_extractor(parameters, "", &mut Problems::default());
    for (need, readers) in &plugins.registry().needs {
        let Need::Metric(Metric::Attribute(key)) = need else { continue };
        if engines.describes(key) || MetricSpec::parse(key).is_ok() {
            continue;
        }
        for declared in readers.iter().filter_map(|name| plugins.find(name)).map(|i| &plugins.entry(i).declared) {
            problems.error(
                declared.at,
                &declared.path,
                format!("no engine has a custom metric `{key}`, and it is not the name of a series"),
                "describe it in customMetrics of core-metrics-extractor, or write `name` or `name{label=value}`",
            );
        }
    }
}

fn parsers(document: &Document, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Vec<usize> {
    let tables = plugins.tables;
    let group = Group { noun: "a parser", kinds: &tables.parsers };
    let mut written: Vec<&Placed<Reference>> = document.request_handler.parsers.iter().collect();
    if let Some(old) = &document.parser {
        let (message, fix) = if written.is_empty() {
            written.push(old);
            ("`parser` at the top is the old place", "write `requestHandler: {parsers: [{pluginRef: …}]}`")
        } else {
            ("`parser` at the top is ignored because requestHandler.parsers is there", "remove it")
        };
        problems.warn(old.at, &old.path, message, fix);
    }
    let mut parsers = Vec::new();
    if written.is_empty() {
        for kind in PARSERS {
            let index = plugins.first_of(kind).or_else(|| plugins.add(kind, "no parsers are named", problems));
            if let Some(index) = index {
                plugins.mark_used(index);
                parsers.push(index);
            }
        }
        return parsers;
    }
    for Placed { value, at, path } in written {
        if let Some(index) = plugins.follow_to(value.plugin_ref.as_ref(), (*at, path), &group, problems) {
            if parsers.contains(&index) {
                problems.warn(*at, path, "the parser is listed twice", "remove one of the two");
            } else {
                parsers.push(index);
            }
        }
    }
    parsers
}

fn sources(document: &Document, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Vec<(usize, Vec<usize>)> {
    let tables = plugins.tables;
    let layer = &document.data_layer;
    let source_group = Group { noun: "a data source", kinds: &tables.sources };
    let extractor_group = Group { noun: "an extractor", kinds: &tables.extractors };
    let mut sources: Vec<(usize, Vec<usize>)> = Vec::new();
    for Placed { value, at, path } in &layer.sources {
        let source = plugins.follow_to(value.plugin_ref.as_ref(), (*at, path), &source_group, problems);
        let mut extractors = Vec::new();
        for Placed { value, at, path } in &value.extractors {
            extractors.extend(plugins.follow_to(value.plugin_ref.as_ref(), (*at, path), &extractor_group, problems));
        }
        let Some(source) = source else { continue };
        if sources.iter().any(|(known, _)| *known == source) {
            problems.error(*at, path, "the data source is listed twice", "list all extractors under one entry");
            continue;
        }
        if !sources.is_empty() {
            problems.error(
                *at,
                path,
                "this version reads one data source per endpoint",
                "put the metrics of both into `engineConfigs` of one core-metrics-extractor",
            );
            continue;
        }
        if let Some(Placed { at, path, .. }) = value.extractors.get(1) {
            let message = "this version reads one extractor per data source";
            problems.error(*at, path, message, "put what both read into `engineConfigs` of one core-metrics-extractor");
        }
        sources.push((source, extractors));
    }
    if !layer.inject_defaults {
        return sources;
    }
    const WHY: &str = "dataLayer.injectDefaults";
    let core =
        sources.iter().any(|(_, extractors)| extractors.iter().any(|i| plugins.entry(*i).declared.kind == EXTRACTOR));
    let position = match sources.iter().position(|(i, _)| plugins.entry(*i).declared.kind == SOURCE) {
        Some(position) => Some(position),
        None => plugins.first_of(SOURCE).or_else(|| plugins.add(SOURCE, WHY, problems)).map(|index| {
            plugins.mark_used(index);
            sources.push((index, Vec::new()));
            sources.len() - 1
        }),
    };
    if !core
        && let Some(position) = position
        && let Some(index) = plugins.first_of(EXTRACTOR).or_else(|| plugins.add(EXTRACTOR, WHY, problems))
    {
        plugins.mark_used(index);
        sources[position].1.push(index);
    }
    sources
}

fn discovery(document: &Document, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Option<usize> {
    let tables = plugins.tables;
    let layer = &document.data_layer;
    if let Some(Placed { value, at, path }) = &layer.peer_discovery {
        let group = Group { noun: "a peer discovery", kinds: &[] };
        plugins.follow_to(value.plugin_ref.as_ref(), (*at, path), &group, problems);
    }
    if let Some(name) = &layer.cross_replica_syncer {
        let group = Group { noun: "a cross-replica syncer", kinds: &[] };
        plugins.follow_to(Some(name), (name.at, &name.path), &group, problems);
    }
    let Placed { value, at, path } = layer.discovery.as_ref()?;
    let group = Group { noun: "a discovery", kinds: &tables.discovery };
    plugins.follow_to(value.plugin_ref.as_ref(), (*at, path), &group, problems)
}

fn saturation(document: &Document, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Option<usize> {
    let tables = plugins.tables;
    let group = Group { noun: "a saturation detector", kinds: &tables.saturation };
    let current = document.flow_control.as_ref().and_then(|f| f.value.saturation_detector.as_ref());
    if let Some(old) = &document.saturation_detector {
        let (message, fix) = if current.is_none() {
            (
                "`saturationDetector` at the top is the old place",
                "write `flowControl: {saturationDetector: {pluginRef: …}}`",
            )
        } else {
            ("`saturationDetector` at the top is ignored because flowControl.saturationDetector is there", "remove it")
        };
        problems.warn(old.at, &old.path, message, fix);
    }
    match current.or(document.saturation_detector.as_ref()) {
        Some(Placed { value, at, path }) => plugins.follow_to(value.plugin_ref.as_ref(), (*at, path), &group, problems),
        None => match plugins.first_of(DETECTOR) {
            Some(index) => {
                plugins.mark_used(index);
                Some(index)
            }
            None => {
                let index = plugins.add(DETECTOR, "no saturation detector is named", problems)?;
                // Nobody asked for it, so it makes do with the metrics that others read.
                plugins.withdraw_needs(index);
                Some(index)
            }
        },
    }
}

/// Warns where every sample is too old for the detector most of the time.
pub(super) fn stale_between_reads(
    layers: &Layers,
    plugins: &Plugins<'_>,
    settings: &Settings,
    problems: &mut Problems,
) {
    let Some(entry) = layers.saturation.map(|i| plugins.entry(i)).filter(|e| e.declared.kind == DETECTOR) else {
        return;
    };
    if entry.origin.is_some() {
        return;
    }
    let declared = &entry.declared;
    // What is wrong with them was reported when the detector was built.
    let params: utilization::Params = Params::decode_fields(declared.parameters.as_ref(), "", &mut Problems::default());
    let (interval, limit) = (settings.intervals.refresh_metrics, params.metrics_staleness_threshold);
    if interval > limit {
        problems.warn(
            declared.at,
            format!("{}.metricsStalenessThreshold", declared.path),
            format!(
                "metrics are read every {interval:?} and count as stale after {limit:?}, so mostly nothing is known"
            ),
            "raise it above --refresh-metrics-interval",
        );
    }
}

/// Checks what the queue would be given; what it does with it is `admission`'s.
fn flow_control(flow: &Placed<FlowControl>, gates: Gates, problems: &mut Problems) {
    let FlowControl { priority_bands, usage_limit_policy, .. } = &flow.value;
    let mut seen: Vec<(i64, Position)> = Vec::new();
    for Placed { value, at, path } in priority_bands {
        let Some(priority) = &value.priority else {
            problems.error(*at, format!("{path}.priority"), "the band has no priority", "add `priority:`");
            continue;
        };
        match seen.iter().find(|(p, _)| *p == priority.value) {
            Some((_, first)) => problems.error(
                priority.at,
                &priority.path,
                format!("two bands have the priority {}, the first on line {}", priority.value, first.line),
                "merge the two",
            ),
            None => seen.push((priority.value, priority.at)),
        }
    }
    let queue = flow.value.max_bytes.is_some()
        || flow.value.max_requests.is_some()
        || flow.value.default_priority_band.is_some()
        || flow.value.default_negative_priority_band.is_some()
        || !priority_bands.is_empty()
        || usage_limit_policy.is_some()
        || flow.value.enable_eviction;
    if queue && !gates.flow_control {
        problems.warn(
            flow.at,
            &flow.path,
            "nothing here has an effect: requests are not queued by it, because the feature gate `flowControl` is off",
            "remove the fields, or keep them for a version that queues",
        );
    }
}
