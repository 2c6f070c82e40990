//! The plugin rows of the collector: where the metrics pages are and what their series mean.
//!
//! These two plugins build no filter or scorer; their parameters become the [`Settings`](super::Settings)
//! of the one collector of the process. Wrong values are errors with their place, like everywhere else.

use std::collections::BTreeSet;
use std::time::Duration;

use super::mapping::{BUILT_IN, EngineMapping, MAX_CUSTOM, MetricSpec, built_in};
use crate::domain::node::{Node, Position, Problems, Value, nearest};
use crate::scheduling::params::{IfGiven, Param, Params, Rule};
use crate::scheduling::plugin::{About, Metric, Stability};

/// Shortest poll interval; shorter ones are raised to it with a warning, as the picker we replace does.
pub const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Label that names an endpoint's engine.
pub const ENGINE_LABEL: &str = "llm-d.ai/engine-type";

/// Older spelling of [`ENGINE_LABEL`], used where the new one is absent.
pub const OLD_ENGINE_LABEL: &str = "inference.networking.k8s.io/engine-type";

crate::choice! {
    /// How pages are fetched.
    pub enum Scheme {
        /// Plain HTTP.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
    }
}

struct IsPath;

impl Rule<String> for IsPath {
    fn check(&self, path: &String) -> Result<(), String> {
        match http::uri::PathAndQuery::try_from(path.as_str()) {
            Ok(_) if path.starts_with('/') => Ok(()),
            _ => Err("must be a URL path that starts with `/`".into()),
        }
    }
}

struct UpTo(Duration);

impl Rule<Duration> for UpTo {
    fn check(&self, value: &Duration) -> Result<(), String> {
        if *value <= self.0 { Ok(()) } else { Err(format!("must be at most {}", humantime::format_duration(self.0))) }
    }
}

struct NotEmpty;

impl Rule<String> for NotEmpty {
    fn check(&self, value: &String) -> Result<(), String> {
        if value.trim().is_empty() { Err("must not be empty".into()) } else { Ok(()) }
    }
}

/// A metric spec of the configuration; empty text switches a built-in series off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecParam(pub Option<MetricSpec>);

impl Param for SpecParam {
    const TYPE: &'static str = "metric spec (name or name{label=value,...})";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        let Some(text) = node.as_str() else {
            problems.error(
                node.at,
                path,
                format!("expected {}, found {}", Self::TYPE, node.describe()),
                "write a metric name",
            );
            return None;
        };
        if text.trim().is_empty() {
            return Some(Self(None));
        }
        match MetricSpec::parse(text) {
            Ok(spec) => Some(Self(Some(spec))),
            Err(why) => {
                let fix = "write `name` or `name{label=value,...}`";
                problems.error(node.at, path, format!("`{text}` is not a metric spec: {why}"), fix);
                None
            }
        }
    }
}

crate::params! {
    /// Parameters of `metrics-data-source`.
    pub struct SourceParams {
        /// Scheme of the metrics URL.
        scheme: Scheme = Scheme::Http, "scheme";
        /// Path of the metrics page.
        path: String = "/metrics".to_owned(), "path", IsPath;
        /// Port of the metrics page; without it, the port that serves inference.
        port: Option<u16> = None, "port", IfGiven(1..=65535);
        /// With https, whether the server's certificate is taken unseen.
        insecure_skip_verify: bool = true, "insecureSkipVerify";
        /// PEM file with the certificate authorities that may sign the server's certificate.
        ca_cert_path: Option<String> = None, "caCertPath", IfGiven(NotEmpty);
        /// PEM file with the certificate shown to the server.
        client_cert_path: Option<String> = None, "clientCertPath", IfGiven(NotEmpty);
        /// PEM file with the key of `clientCertPath`.
        client_key_path: Option<String> = None, "clientKeyPath", IfGiven(NotEmpty);
        /// Time between two polls of an endpoint; without it, the value of the refresh flag. At least 50ms.
        interval: Option<Duration> = None, "interval", IfGiven(UpTo(Duration::from_secs(3600)));
    }
}

crate::params! {
    /// A custom metric that becomes an attribute of the endpoint.
    pub struct CustomMetric {
        /// Name under which plugins find the value.
        attribute_key: String = String::new(), "attributeKey";
        /// Series to read; several are added up.
        metric_spec: Option<SpecParam> = None, "metricSpec";
    }
}

crate::params! {
    /// Series of one engine. For a built-in engine, what is not given keeps its built-in series.
    pub struct EngineConfig {
        /// Engine name, as the value of the engine label.
        name: String = String::new(), "name";
        /// Waiting requests.
        queued: Option<SpecParam> = None, "queuedRequestsSpec";
        /// Running requests.
        running: Option<SpecParam> = None, "runningRequestsSpec";
        /// KV cache usage, 0 to 1.
        kv_usage: Option<SpecParam> = None, "kvUsageSpec";
        /// LoRA adapters in labels, as vLLM reports them.
        lora: Option<SpecParam> = None, "loraSpec";
        /// Cache geometry in labels.
        cache_info: Option<SpecParam> = None, "cacheInfoSpec";
        /// Label of the cache geometry with the tokens per block; `block_size` if not built in.
        block_size_label: Option<String> = None, "cacheBlockSizeLabelName", IfGiven(NotEmpty);
        /// Label of the cache geometry with the number of blocks; `num_gpu_blocks` if not built in.
        num_blocks_label: Option<String> = None, "cacheNumBlocksLabelName", IfGiven(NotEmpty);
        /// Tokens per block as a gauge.
        block_size: Option<SpecParam> = None, "cacheBlockSizeSpec";
        /// Number of blocks as a gauge.
        num_blocks: Option<SpecParam> = None, "cacheNumBlocksSpec";
        /// Metrics that become attributes of the endpoint.
        custom: Vec<CustomMetric> = Vec::new(), "customMetrics";
    }
}

crate::params! {
    /// Parameters of `core-metrics-extractor`.
    pub struct ExtractorParams {
        /// Pod label that names the engine; the default also reads the label's older spelling.
        engine_label_key: String = "llm-d.ai/engine-type".to_owned(), "engineLabelKey", NotEmpty;
        /// Engine of endpoints without the label.
        default_engine: String = "vllm".to_owned(), "defaultEngine", NotEmpty;
        /// Series of engines, over and above the built-in ones.
        engine_configs: Vec<EngineConfig> = Vec::new(), "engineConfigs";
    }
}

/// Decodes the parameters of `metrics-data-source`.
pub fn decode_source(node: Option<&Node>, path: &str, problems: &mut Problems) -> SourceParams {
    let mut source = SourceParams::decode_fields(node, path, problems);
    let at = |key: &str| node.and_then(|n| n.get(key)).map_or_else(|| place(node), |n| n.at);
    if let Some(interval) = source.interval.filter(|i| *i < MIN_INTERVAL) {
        let message = format!(
            "`{}` is below the least interval and was raised to {}",
            humantime::format_duration(interval),
            humantime::format_duration(MIN_INTERVAL)
        );
        problems.warn(at("interval"), format!("{path}.interval"), message, "write 50ms or more");
        source.interval = Some(MIN_INTERVAL);
    }
    if source.client_cert_path.is_some() != source.client_key_path.is_some() {
        let (given, other) = match source.client_cert_path {
            Some(_) => ("clientCertPath", "clientKeyPath"),
            None => ("clientKeyPath", "clientCertPath"),
        };
        let message = format!("`{given}` is given without `{other}`; a client certificate needs both");
        problems.error(at(given), format!("{path}.{given}"), message, format!("add {other}, or remove {given}"));
    }
    for (key, given) in [("caCertPath", &source.ca_cert_path), ("clientCertPath", &source.client_cert_path)] {
        if given.is_some() && source.scheme == Scheme::Http {
            let message = format!("`{key}` has no effect with scheme http");
            problems.warn(at(key), format!("{path}.{key}"), message, "set scheme to https, or remove it");
        }
    }
    if source.scheme == Scheme::Https && source.insecure_skip_verify && source.ca_cert_path.is_some() {
        let message = "`caCertPath` has no effect while insecureSkipVerify is true";
        problems.warn(at("caCertPath"), format!("{path}.caCertPath"), message, "set insecureSkipVerify to false");
    }
    source
}

/// Decodes the parameters of `core-metrics-extractor`.
pub fn decode_extractor(node: Option<&Node>, path: &str, problems: &mut Problems) -> ExtractorParams {
    let extractor = ExtractorParams::decode_fields(node, path, problems);
    // A config that is no mapping was reported above and has become an empty one at the same index.
    let configs = node.and_then(|n| n.get("engineConfigs"));
    let mut names = BTreeSet::new();
    for (i, config) in extractor.engine_configs.iter().enumerate() {
        let node = item(configs, i);
        let path = format!("{path}.engineConfigs[{i}]");
        let at = |key: &str| node.and_then(|n| n.get(key)).map_or_else(|| place(node), |n| n.at);
        if config.name.trim().is_empty() {
            let fix = "add `name`, such as vllm or the value of your engine label";
            problems.error(at("name"), format!("{path}.name"), "an engine config needs a name", fix);
        } else if !names.insert(config.name.as_str()) {
            let message = format!("engine `{}` is configured twice", config.name);
            problems.error(at("name"), format!("{path}.name"), message, "merge the two entries, or rename one");
        }
        if config.custom.len() > MAX_CUSTOM {
            let message = format!("{} custom metrics; an engine has at most {MAX_CUSTOM}", config.custom.len());
            problems.error(
                at("customMetrics"),
                format!("{path}.customMetrics"),
                message,
                "remove what no plugin reads",
            );
        }
        check_custom(config, node.and_then(|n| n.get("customMetrics")), &path, problems);
    }
    let known: BTreeSet<&str> = BUILT_IN.iter().map(|e| e.name).chain(names).collect();
    if !known.contains(extractor.default_engine.as_str()) {
        let at = node.and_then(|n| n.get("defaultEngine")).map_or_else(|| place(node), |n| n.at);
        let list = known.iter().copied().collect::<Vec<_>>().join(", ");
        let fix = match nearest(&extractor.default_engine, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write a known engine, or describe this one in engineConfigs".to_owned(),
        };
        let message = format!("no engine is called `{}` (known: {list})", extractor.default_engine);
        problems.error(at, format!("{path}.defaultEngine"), message, fix);
    }
    extractor
}

fn check_custom(config: &EngineConfig, list: Option<&Node>, path: &str, problems: &mut Problems) {
    let mut keys = BTreeSet::new();
    for (i, custom) in config.custom.iter().enumerate() {
        let node = item(list, i);
        let path = format!("{path}.customMetrics[{i}]");
        let at = |key: &str| node.and_then(|n| n.get(key)).map_or_else(|| place(node), |n| n.at);
        if custom.attribute_key.trim().is_empty() {
            let fix = "add `attributeKey`, the name under which plugins find the value";
            problems.error(at("attributeKey"), format!("{path}.attributeKey"), "a custom metric needs a key", fix);
        } else if !keys.insert(custom.attribute_key.as_str()) {
            let message = format!("attribute `{}` is filled twice", custom.attribute_key);
            problems.error(at("attributeKey"), format!("{path}.attributeKey"), message, "use another key");
        }
        let absent = node.is_none_or(|n| n.get("metricSpec").is_none_or(|s| s.value == Value::Null));
        if absent || custom.metric_spec == Some(SpecParam(None)) {
            let fix = "add `metricSpec`, such as `name{label=value}`";
            problems.error(at("metricSpec"), format!("{path}.metricSpec"), "a custom metric needs a series", fix);
        }
    }
}

fn place(node: Option<&Node>) -> Position {
    node.map_or_else(Position::default, |n| n.at)
}

fn item(list: Option<&Node>, index: usize) -> Option<&Node> {
    match list.map(|n| &n.value) {
        Some(Value::Sequence(items)) => items.get(index),
        _ => None,
    }
}

impl ExtractorParams {
    /// The built-in engines with the operator's changes, then the operator's own.
    pub fn engines(&self) -> Vec<EngineMapping> {
        let mut engines = built_in();
        for config in &self.engine_configs {
            let known = engines.iter().position(|e| e.name == config.name);
            let index = known.unwrap_or_else(|| {
                engines.push(EngineMapping {
                    name: config.name.clone(),
                    block_size_label: "block_size".into(),
                    num_blocks_label: "num_gpu_blocks".into(),
                    ..EngineMapping::default()
                });
                engines.len() - 1
            });
            config.apply(&mut engines[index]);
        }
        engines
    }

    /// [`engines`](Self::engines) that also fill the wanted attributes that nobody described: such a key is the
    /// series itself, `name` or `name{label=value}`, on the pages of every engine.
    pub fn engines_for(&self, wanted: &BTreeSet<Metric>) -> Vec<EngineMapping> {
        let mut engines = self.engines();
        for metric in wanted {
            let Metric::Attribute(key) = metric else { continue };
            if !self.describes(key)
                && let Ok(spec) = MetricSpec::parse(key)
            {
                for engine in &mut engines {
                    engine.attributes.insert(key.clone(), spec.clone());
                }
            }
        }
        engines
    }

    /// Whether a custom metric of some engine has this key.
    pub fn describes(&self, key: &str) -> bool {
        self.engine_configs.iter().flat_map(|config| &config.custom).any(|custom| custom.attribute_key == key)
    }

    /// Label keys that name the engine, first match wins.
    pub fn label_keys(&self) -> Vec<String> {
        let mut keys = vec![self.engine_label_key.clone()];
        if self.engine_label_key == ENGINE_LABEL {
            keys.push(OLD_ENGINE_LABEL.to_owned());
        }
        keys
    }
}

impl EngineConfig {
    fn apply(&self, engine: &mut EngineMapping) {
        let list = |given: &Option<SpecParam>, into: &mut Vec<MetricSpec>| {
            if let Some(SpecParam(spec)) = given {
                *into = spec.iter().cloned().collect();
            }
        };
        let single = |given: &Option<SpecParam>, into: &mut Option<MetricSpec>| {
            if let Some(SpecParam(spec)) = given {
                into.clone_from(spec);
            }
        };
        list(&self.queued, &mut engine.waiting);
        list(&self.running, &mut engine.running);
        list(&self.kv_usage, &mut engine.kv_usage);
        single(&self.lora, &mut engine.lora);
        single(&self.cache_info, &mut engine.cache_info);
        single(&self.block_size, &mut engine.block_size);
        single(&self.num_blocks, &mut engine.num_blocks);
        if let Some(label) = &self.block_size_label {
            engine.block_size_label.clone_from(label);
        }
        if let Some(label) = &self.num_blocks_label {
            engine.num_blocks_label.clone_from(label);
        }
        for custom in &self.custom {
            if let Some(SpecParam(Some(spec))) = &custom.metric_spec {
                engine.attributes.insert(custom.attribute_key.clone(), spec.clone());
            }
        }
    }
}

/// A row of this room's plugin table.
#[derive(Clone, Copy)]
pub struct Row {
    /// Name, parameters, sample.
    pub about: About,
    /// Decodes the parameters at a path and records what is wrong with them.
    pub check: fn(Option<&Node>, &str, &mut Problems),
}

/// Type of the data source; the other row is its extractor.
pub const SOURCE_KIND: &str = "metrics-data-source";

/// The plugins of the collector.
pub const ROWS: &[Row] = &[
    Row {
        about: About {
            kind: SOURCE_KIND,
            aliases: &[],
            stability: Stability::Beta,
            summary: "Fetches the metrics page of every endpoint, if some plugin reads a metric.",
            params: SourceParams::SPEC,
            sample: "- type: metrics-data-source\n  parameters:\n    scheme: http\n    path: /metrics\n    interval: 50ms\n",
        },
        check: |node, path, problems| {
            decode_source(node, path, problems);
        },
    },
    Row {
        about: About {
            kind: "core-metrics-extractor",
            aliases: &[],
            stability: Stability::Beta,
            summary: "Says which series of which engine are queue length, KV cache usage and the like.",
            params: ExtractorParams::SPEC,
            sample: "- type: core-metrics-extractor\n  parameters:\n    defaultEngine: vllm\n    engineConfigs:\n    - name: vllm\n      customMetrics:\n      - attributeKey: deferred\n        metricSpec: vllm:num_requests_waiting_by_reason{reason=deferred}\n",
        },
        check: |node, path, problems| {
            decode_extractor(node, path, problems);
        },
    },
];

#[cfg(test)]
mod tests;
