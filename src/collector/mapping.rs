//! Which series of which engine mean what, and the plan that a page is read with.
//!
//! [`BUILT_IN`] is the table of known engines; a new engine is one more row. A [`Plan`] is the table row
//! (or the operator's own mapping) cut down to the metrics that plugins asked for, compiled once for
//! each engine and shared by all its endpoints.
//!
//! Differences from the picker we replace, on purpose: series of several data-parallel ranks behind one
//! port are added up instead of one of them being taken; vLLM's older name of the KV usage gauge
//! is understood; Triton's `nv_inference_exec_count` is not read as running requests, because it
//! counts since start and only grows; and a mapping that an operator gives for a known engine keeps the
//! built-in series that it does not mention.

use std::collections::{BTreeMap, BTreeSet};

use super::parse::{LabelValue, Labels, Names};
use crate::domain::Endpoint;
use crate::scheduling::plugin::Metric;

/// Most custom metrics of one engine; more is a configuration error.
pub const MAX_CUSTOM: usize = 100;

/// One series, or several of one name: `name` or `name{label=value,...}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSpec {
    /// Sample name.
    pub name: String,
    /// Labels that must have these values.
    pub matchers: Vec<(String, String)>,
}

impl MetricSpec {
    /// Reads `name` or `name{label=value,label2="value"}`. `Err` says what is wrong in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (name, labels) = match text.split_once('{') {
            None => (text, ""),
            Some((name, rest)) => {
                (name.trim_end(), rest.strip_suffix('}').ok_or("the labels must end with `}`")?.trim())
            }
        };
        let plain = |s: &str, colon: bool| {
            let mut chars = s.bytes();
            chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_' || (colon && c == b':'))
                && chars.all(|c| c.is_ascii_alphanumeric() || c == b'_' || (colon && c == b':'))
        };
        if !plain(name, true) {
            return Err(format!("`{name}` is not a metric name"));
        }
        if name.len() > 256 {
            return Err("a metric name has at most 256 bytes".into());
        }
        let mut matchers = Vec::new();
        for pair in labels.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (label, value) =
                pair.split_once('=').ok_or_else(|| format!("`{pair}` is not of the form label=value"))?;
            let (label, value) = (label.trim_end(), value.trim_start());
            if !plain(label, false) {
                return Err(format!("`{label}` is not a label name"));
            }
            let value = match value.strip_prefix('"') {
                Some(rest) => rest.strip_suffix('"').ok_or_else(|| format!("{value} lacks its closing quote"))?,
                None => value,
            };
            matchers.push((label.to_owned(), value.to_owned()));
        }
        Ok(Self { name: name.to_owned(), matchers })
    }
}

/// Where an engine's page holds what the picker wants to know. Of a list the first entry is the current name
/// and the others are older ones, used where the first is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineMapping {
    /// Engine name, as the value of the engine label.
    pub name: String,
    /// Waiting requests; several series are added up.
    pub waiting: Vec<MetricSpec>,
    /// Running requests; several series are added up.
    pub running: Vec<MetricSpec>,
    /// KV cache usage 0 to 1; the mean of several series counts.
    pub kv_usage: Vec<MetricSpec>,
    /// LoRA information in labels, with the time of the state as value.
    pub lora: Option<MetricSpec>,
    /// Cache geometry in labels; blocks of several series are added up, unless `blocks_in_total`.
    pub cache_info: Option<MetricSpec>,
    /// Each series of `cache_info` states the blocks of all ranks: vLLM's front end adds them up itself
    /// (`tests/data/metrics/vllm-metrics-dp2.txt`: two ranks of 48 blocks, and 96 in each series).
    pub blocks_in_total: bool,
    /// Label of `cache_info` with the tokens per block.
    pub block_size_label: String,
    /// Label of `cache_info` with the number of blocks.
    pub num_blocks_label: String,
    /// Tokens per block as a gauge; wins over `cache_info`.
    pub block_size: Option<MetricSpec>,
    /// Number of blocks as a gauge; wins over `cache_info`; several series are added up.
    pub num_blocks: Option<MetricSpec>,
    /// Custom metrics by attribute key; several series are added up.
    pub attributes: BTreeMap<String, MetricSpec>,
}

/// A row of the table of known engines; specs as in the configuration, empty for "does not say".
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    /// Value of the engine label.
    pub name: &'static str,
    /// Waiting requests.
    pub waiting: &'static str,
    /// Running requests.
    pub running: &'static str,
    /// KV cache usage.
    pub kv_usage: &'static str,
    /// Older name of `kv_usage`.
    pub kv_usage_before: &'static str,
    /// LoRA information.
    pub lora: &'static str,
    /// Cache geometry in labels: series, label of the block size, label of the number of blocks.
    pub cache_info: (&'static str, &'static str, &'static str),
    /// See [`EngineMapping::blocks_in_total`].
    pub blocks_in_total: bool,
    /// Cache geometry in gauges: block size, number of blocks.
    pub cache_gauges: (&'static str, &'static str),
}

const SILENT: Engine = Engine {
    name: "",
    waiting: "",
    running: "",
    kv_usage: "",
    kv_usage_before: "",
    lora: "",
    cache_info: ("", "", ""),
    blocks_in_total: false,
    cache_gauges: ("", ""),
};

/// The engines that need no configuration (`llm-d-router.md` 3.7).
pub const BUILT_IN: &[Engine] = &[
    Engine {
        name: "vllm",
        waiting: "vllm:num_requests_waiting",
        running: "vllm:num_requests_running",
        kv_usage: "vllm:kv_cache_usage_perc",
        kv_usage_before: "vllm:gpu_cache_usage_perc",
        lora: "vllm:lora_requests_info",
        cache_info: ("vllm:cache_config_info", "block_size", "num_gpu_blocks"),
        blocks_in_total: true,
        ..SILENT
    },
    Engine {
        name: "sglang",
        waiting: "sglang:num_queue_reqs",
        running: "sglang:num_running_reqs",
        kv_usage: "sglang:token_usage",
        cache_info: ("sglang:cache_config_info", "page_size", "num_pages"),
        ..SILENT
    },
    Engine {
        name: "trtllm-serve",
        waiting: "trtllm_num_requests_waiting",
        running: "trtllm_num_requests_running",
        kv_usage: "trtllm_kv_cache_utilization",
        cache_gauges: ("trtllm_kv_cache_tokens_per_block", "trtllm_kv_cache_max_blocks"),
        ..SILENT
    },
    Engine {
        name: "triton-tensorrt-llm",
        waiting: "nv_trt_llm_request_metrics{request_type=waiting}",
        running: "nv_trt_llm_request_metrics{request_type=scheduled}",
        kv_usage: "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
        cache_gauges: (
            "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}",
            "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}",
        ),
        ..SILENT
    },
    Engine { name: "triton", waiting: "nv_inference_pending_request_count", ..SILENT },
];

impl From<&Engine> for EngineMapping {
    fn from(engine: &Engine) -> Self {
        // The table is ours and a test reads all of it, so what does not parse is what is empty.
        let spec = |text: &str| MetricSpec::parse(text).ok();
        let list = |texts: &[&str]| texts.iter().filter_map(|t| spec(t)).collect();
        Self {
            name: engine.name.to_owned(),
            waiting: list(&[engine.waiting]),
            running: list(&[engine.running]),
            kv_usage: list(&[engine.kv_usage, engine.kv_usage_before]),
            lora: spec(engine.lora),
            cache_info: spec(engine.cache_info.0),
            blocks_in_total: engine.blocks_in_total,
            block_size_label: engine.cache_info.1.to_owned(),
            num_blocks_label: engine.cache_info.2.to_owned(),
            block_size: spec(engine.cache_gauges.0),
            num_blocks: spec(engine.cache_gauges.1),
            attributes: BTreeMap::new(),
        }
    }
}

/// All known engines as mappings.
pub fn built_in() -> Vec<EngineMapping> {
    BUILT_IN.iter().map(EngineMapping::from).collect()
}

/// Index of the mapping for `endpoint`: by the first of the label `keys` that it has, else `default`. The
/// second value is the label's value if no engine is called so (then the default is used as well).
pub fn choose<'e>(
    engines: &[EngineMapping],
    keys: &[String],
    default: &str,
    endpoint: &'e Endpoint,
) -> (Option<usize>, Option<&'e str>) {
    let find = |name: &str| engines.iter().position(|e| e.name == name);
    match keys.iter().find_map(|k| endpoint.label(k)) {
        None => (find(default), None),
        Some(label) => match find(label) {
            Some(index) => (Some(index), None),
            None => (find(default), Some(label)),
        },
    }
}

/// How several series become one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    Sum,
    Mean,
    Newest,
}

/// What a series of a wanted name contributes to.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The tally with this index.
    Tally(usize),
    CacheInfo {
        block_size: String,
        num_blocks: String,
        in_total: bool,
    },
    Lora,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub matchers: Vec<(String, String)>,
    pub target: Target,
}

impl Rule {
    pub fn applies(&self, labels: Labels<'_>) -> bool {
        self.matchers.iter().all(|(key, wanted)| match labels.get(key) {
            Some(value) => LabelValue::is(&value, wanted),
            // To Prometheus an absent label and an empty one are the same.
            None => wanted.is_empty(),
        })
    }
}

/// A value that is read from one tally, or from the next one where the first saw nothing.
#[derive(Clone, Debug)]
pub(super) struct Quantity {
    pub fold: Fold,
    pub tallies: Vec<usize>,
}

/// What to look for on the pages of one engine and what it means.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) names: Names,
    /// Rules by index of the name.
    pub(super) rules: Vec<Vec<Rule>>,
    pub(super) tallies: usize,
    pub(super) waiting: Option<Quantity>,
    pub(super) running: Option<Quantity>,
    pub(super) kv_usage: Option<Quantity>,
    pub(super) block_size: Option<Quantity>,
    pub(super) num_blocks: Option<Quantity>,
    pub(super) attributes: Vec<(Box<str>, Quantity)>,
    pub(super) cache_info: bool,
    /// For each name, the index of the current name if it is an older spelling.
    pub(super) stands_for: Vec<Option<usize>>,
    filter: String,
}

#[derive(Default)]
struct Planner {
    names: Vec<(String, bool)>,
    rules: Vec<Vec<Rule>>,
    stands_for: Vec<Option<usize>>,
    tallies: usize,
}

impl Planner {
    fn add(&mut self, spec: &MetricSpec, stands_for: Option<usize>, target: Target) -> usize {
        let known = self.names.iter().position(|(n, _)| *n == spec.name);
        let index = known.unwrap_or_else(|| {
            self.names.push((spec.name.clone(), false));
            self.rules.push(Vec::new());
            self.stands_for.push(stands_for);
            self.names.len() - 1
        });
        if stands_for.is_none() {
            self.names[index].1 = true;
            self.stands_for[index] = None;
        }
        self.rules[index].push(Rule { matchers: spec.matchers.clone(), target });
        index
    }

    fn quantity<'s>(&mut self, fold: Fold, specs: impl IntoIterator<Item = &'s MetricSpec>) -> Option<Quantity> {
        let (mut tallies, mut current) = (Vec::new(), None);
        for spec in specs {
            let index = self.add(spec, current, Target::Tally(self.tallies));
            current = current.or(Some(index));
            tallies.push(self.tallies);
            self.tallies += 1;
        }
        (!tallies.is_empty()).then_some(Quantity { fold, tallies })
    }
}

impl Plan {
    /// Cuts `mapping` down to `wanted`. Empty if the engine reports nothing of it.
    pub fn new(mapping: &EngineMapping, wanted: &BTreeSet<Metric>) -> Self {
        let mut planner = Planner::default();
        let wants = |m: Metric| wanted.contains(&m);
        let p = &mut planner;
        let waiting = wants(Metric::Waiting).then(|| p.quantity(Fold::Sum, &mapping.waiting)).flatten();
        let running = wants(Metric::Running).then(|| p.quantity(Fold::Sum, &mapping.running)).flatten();
        let kv_usage = wants(Metric::KvUsage).then(|| p.quantity(Fold::Mean, &mapping.kv_usage)).flatten();
        let (mut block_size, mut num_blocks, mut cache_info) = (None, None, false);
        if wants(Metric::CacheInfo) {
            block_size = p.quantity(Fold::Newest, &mapping.block_size);
            num_blocks = p.quantity(Fold::Sum, &mapping.num_blocks);
            if let Some(spec) = &mapping.cache_info {
                let (block_size, num_blocks) = (mapping.block_size_label.clone(), mapping.num_blocks_label.clone());
                let in_total = mapping.blocks_in_total;
                p.add(spec, None, Target::CacheInfo { block_size, num_blocks, in_total });
                cache_info = true;
            }
        }
        if let (true, Some(spec)) = (wants(Metric::Lora), &mapping.lora) {
            p.add(spec, None, Target::Lora);
        }
        let attributes = mapping
            .attributes
            .iter()
            .filter(|(key, _)| wants(Metric::Attribute((*key).clone())))
            .take(MAX_CUSTOM)
            .filter_map(|(key, spec)| Some((key.as_str().into(), p.quantity(Fold::Sum, [spec])?)))
            .collect();
        let Planner { names, rules, stands_for, tallies } = planner;
        let filter = filter(names.iter().map(|(n, _)| n.as_str()));
        let names = Names::new(names.iter().map(|(n, awaited)| (n.as_str(), *awaited)));
        Self {
            names,
            rules,
            tallies,
            waiting,
            running,
            kv_usage,
            block_size,
            num_blocks,
            attributes,
            cache_info,
            stands_for,
            filter,
        }
    }

    /// Whether pages of this engine hold nothing that was asked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The query that asks for the wanted names only: `name[]=a&name[]=b`, percent-encoded.
    pub fn query(&self) -> &str {
        &self.filter
    }
}

fn filter<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut query = String::new();
    for name in names {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str("name%5B%5D=");
        // A metric name has letters, digits, `_` and `:`; only the last needs escaping.
        query.push_str(&name.replace(':', "%3A"));
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_as_operators_write_them() {
        let spec = |name: &str, matchers: &[(&str, &str)]| MetricSpec {
            name: name.into(),
            matchers: matchers.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        };
        assert_eq!(MetricSpec::parse(" vllm:x "), Ok(spec("vllm:x", &[])));
        assert_eq!(MetricSpec::parse("a{b=c, d = \"e f\"}"), Ok(spec("a", &[("b", "c"), ("d", "e f")])));
        assert_eq!(MetricSpec::parse("a{}"), Ok(spec("a", &[])));
        for wrong in ["", "1a", "a b", "a{b}", "a{b=c", "a{b=\"c}", "{b=c}", "a{:b=c}", "a}"] {
            assert!(MetricSpec::parse(wrong).is_err(), "{wrong}");
        }
        assert!(MetricSpec::parse(&"a".repeat(257)).is_err());
    }

    #[test]
    fn the_whole_table_is_readable() {
        for engine in BUILT_IN {
            let texts = [engine.waiting, engine.running, engine.kv_usage, engine.kv_usage_before, engine.lora];
            let cache = [engine.cache_info.0, engine.cache_gauges.0, engine.cache_gauges.1];
            for text in texts.into_iter().chain(cache).filter(|t| !t.is_empty()) {
                MetricSpec::parse(text).unwrap_or_else(|e| panic!("{}: {text}: {e}", engine.name));
            }
        }
    }

    #[test]
    fn a_plan_asks_for_nothing_that_is_not_wanted() {
        let vllm = EngineMapping::from(&BUILT_IN[0]);
        let plan = Plan::new(&vllm, &BTreeSet::from([Metric::Waiting, Metric::KvUsage]));
        assert_eq!(
            plan.query(),
            "name%5B%5D=vllm%3Anum_requests_waiting&name%5B%5D=vllm%3Akv_cache_usage_perc&name%5B%5D=vllm%3Agpu_cache_usage_perc"
        );
        assert!(Plan::new(&vllm, &BTreeSet::from([Metric::Attribute("unknown".into())])).is_empty());
        assert!(Plan::new(&vllm, &BTreeSet::new()).is_empty());
    }
}
