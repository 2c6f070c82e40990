//! A document and flags become a [`Config`]: defaults filled in, references followed, plugins built.
//!
//! Order of work: declare the plugins, build producers (by what they may read: tokens, sessions,
//! prefixes, load), build the rest in the order of the file, create the default producers that
//! somebody asked for until none is missing, then profiles, handler, parsers, data layer, saturation.
//! Each step records problems and goes on, so that one run shows all of them; a plugin that failed
//! to build is not reported again by those that refer to it.
//!
//! Where the original takes "some" plugin in map order, the first one in the file is taken.

pub(super) mod layers;
pub(super) mod plugins;
pub(super) mod profiles;
#[cfg(test)]
mod tests;

use super::document::Document;
use super::features;
use super::render::{self, Outline};
use super::{Config, ConfigError, Gates, NamedProducer, Settings, Tables, conformance, legacy, yaml};
use crate::discovery::kubernetes::{GROUP_V1, GROUP_V1ALPHA2, selector};
use crate::domain::PoolIdentity;
use crate::domain::node::{Node, Position, Problem, Problems, Value, nearest};
use crate::scheduling::scheduler::Scheduler;
use plugins::Plugins;

/// The configuration when there is none; also the first sample.
const DEFAULT: &str = include_str!("../../config/default.yaml");

/// Most plugins, profiles, and plugins of one profile. Real files have a few dozen; without a bound a
/// file of a megabyte could take minutes, since names are looked up one by one.
const MAX_ENTRIES: usize = 1000;
/// Most errors that are reported, and most warnings; how many more there were is said.
const MAX_PROBLEMS: usize = 200;

/// What the result is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run: there must be a place that endpoints come from.
    Serve,
    /// To look at the file alone.
    Check,
}

/// Resolves the document in `bytes` (absent or blank: the default configuration), called `file` in
/// messages, together with the flags.
///
/// # Errors
/// Every problem found, in the order of the file.
pub fn resolve(
    file: &str,
    bytes: Option<&[u8]>,
    settings: Settings,
    tables: &Tables,
    purpose: Purpose,
) -> Result<Config, ConfigError> {
    let mut problems = Problems::default();
    let resolved = attempt(file, bytes, settings, tables, purpose, &mut problems);
    problems.errors.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
    problems.warnings.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
    shorten(&mut problems.errors);
    shorten(&mut problems.warnings);
    match resolved {
        Some(mut config) if problems.errors.is_empty() => {
            config.warnings = problems.warnings;
            Ok(config)
        }
        _ => {
            if problems.errors.is_empty() {
                // A plugin may only fail to build after it said why; this names it if it did not.
                problems.error(Position::default(), "plugins", "a plugin could not be built and did not say why", "");
            }
            Err(ConfigError { file: file.to_owned(), errors: problems.errors, warnings: problems.warnings })
        }
    }
}

fn shorten(problems: &mut Vec<Problem>) {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    if more > 0 {
        problems.truncate(MAX_PROBLEMS);
        let message = format!("{more} more problems are not shown");
        problems.push(Problem { at: Position::default(), path: "(file)".into(), message, fix: String::new() });
    }
}

/// Refuses lists that are too long to be meant; the rest of the document is then not looked at.
fn too_long(document: &Document, problems: &mut Problems) -> bool {
    let profiles = &document.scheduling_profiles;
    let lists = std::iter::once((document.plugins.len(), "plugins".to_owned()))
        .chain(std::iter::once((profiles.len(), "schedulingProfiles".to_owned())))
        .chain(profiles.iter().map(|p| (p.value.plugins.len(), format!("{}.plugins", p.path))))
        .chain(std::iter::once((document.request_handler.parsers.len(), "requestHandler.parsers".to_owned())))
        .chain(std::iter::once((document.data_layer.sources.len(), "dataLayer.sources".to_owned())));
    let errors = problems.errors.len();
    for (length, path) in lists {
        if length > MAX_ENTRIES {
            let message = format!("{length} entries are more than the limit of {MAX_ENTRIES}");
            problems.error(Position::default(), path, message, "is this file generated? remove what is not used");
        }
    }
    problems.errors.len() > errors
}

fn attempt(
    file: &str,
    bytes: Option<&[u8]>,
    settings: Settings,
    tables: &Tables,
    purpose: Purpose,
    problems: &mut Problems,
) -> Option<Config> {
    let mut node = read(bytes, problems)?;
    legacy::translate(&mut node, problems);
    conformance::apply(&mut node, &settings, problems);
    let document = Document::decode(&node, problems);
    if too_long(&document, problems) {
        return None;
    }

    let gates = gates(&document, tables, problems);
    let mut plugins = Plugins::new(tables);
    plugins.declare(&document, settings.allow_experimental, problems);
    plugins.build(problems);

    let profiles = profiles::resolve(&document, &mut plugins, problems);
    let handler = profiles::handler(profiles.names.len(), &mut plugins, problems);
    let layers = layers::resolve(&document, gates, &mut plugins, problems);
    plugins.build_missing(problems);
    layers::custom_metrics(&layers, &plugins, problems);
    layers::stale_between_reads(&layers, &plugins, &settings, problems);
    let dispatch = plugins.dispatch(problems);
    plugins.warn_unused(problems);
    let pool = pool(&settings, layers.discovery.is_some(), purpose, problems);
    if !problems.errors.is_empty() {
        return None;
    }

    let parsers: Vec<_> = layers.parsers.iter().map(|i| plugins.declared(*i)).collect();
    let sources: Vec<super::DataSource> = layers
        .sources
        .iter()
        .map(|(source, extractors)| super::DataSource {
            source: plugins.declared(*source),
            extractors: extractors.iter().map(|i| plugins.declared(*i)).collect(),
        })
        .collect();
    let saturation = plugins.declared(layers.saturation?);
    let detector = plugins.entry(layers.saturation?).built.saturation.clone();
    let discovery = layers.discovery.map(|i| plugins.declared(i));
    let features = features::of(plugins.registry(), &parsers, &sources, &settings);
    let rendered = render::document(&Outline {
        node: &node,
        gates,
        features: &features,
        inject_defaults: document.data_layer.inject_defaults,
        plugins: &plugins,
        profiles: &profiles,
        layers: &layers,
    });
    let producers = plugins
        .producers()
        .map(|(declared, producer)| NamedProducer { name: declared.name.clone(), kind: declared.kind, producer })
        .collect();
    let names = plugins.names();
    let registry = plugins.into_registry();
    let commits = registry.instances.iter().filter_map(|(name, b)| Some((name.clone(), b.commit.clone()?))).collect();
    Some(Config {
        file: file.to_owned(),
        settings,
        pool,
        gates,
        scheduler: Scheduler { profiles: profiles.profiles, handler: handler? },
        producers,
        commits,
        names,
        registry,
        parsers,
        sources,
        discovery,
        saturation,
        detector,
        dispatch,
        features,
        flow_control: document.flow_control.map(|f| f.value).unwrap_or_default(),
        warnings: Vec::new(),
        rendered,
    })
}

/// The document, or the default one if nothing is written.
fn read(bytes: Option<&[u8]>, problems: &mut Problems) -> Option<Node> {
    let node = match bytes {
        Some(bytes) => yaml::read(bytes, problems)?,
        None => Node::default(),
    };
    if node.value != Value::Null {
        return Some(node);
    }
    let mut node = yaml::read(DEFAULT.as_bytes(), problems)?;
    forget_places(&mut node);
    Some(node)
}

/// Values of the built-in document have no place in the operator's file.
fn forget_places(node: &mut Node) {
    node.at = Position::default();
    match &mut node.value {
        Value::Sequence(items) => items.iter_mut().for_each(forget_places),
        Value::Mapping(entries) => {
            for (_, at, value) in entries {
                *at = Position::default();
                forget_places(value);
            }
        }
        _ => {}
    }
}

const GATES: [&str; 2] = ["flowControl", "haPopulateNonLeaderDatastore"];

fn gates(document: &Document, tables: &Tables, problems: &mut Problems) -> Gates {
    let mut gates = Gates::default();
    for gate in &document.feature_gates {
        let (name, switch) = match gate.value.split_once('=') {
            Some((name, switch)) => (name.trim(), switch.trim()),
            None => (gate.value.trim(), "true"),
        };
        let Some(on) = go_bool(switch) else {
            let message = format!("`{switch}` is not a boolean");
            problems.error(gate.at, &gate.path, message, format!("write `{name}=true` or `{name}=false`"));
            continue;
        };
        match name {
            "flowControl" => {
                if on && !tables.flow_control {
                    problems.error(
                        gate.at,
                        &gate.path,
                        "the feature gate `flowControl` is known to llm-d-router but not supported by this version",
                        "remove it; the plugin just-in-time-dispatch holds requests by priority, and those of negative priority are refused when the pool is full",
                    );
                }
                gates.flow_control = on;
            }
            "haPopulateNonLeaderDatastore" => gates.populate_standby = on,
            _ => {
                let known = GATES.join(", ");
                let fix = match nearest(name, GATES) {
                    Some(near) => format!("did you mean `{near}`? known: {known}"),
                    None => format!("remove it; known: {known}"),
                };
                problems.error(gate.at, &gate.path, format!("unknown feature gate `{name}`"), fix);
            }
        }
    }
    gates
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Checks that endpoints can come from somewhere, and names the pool.
fn pool(settings: &Settings, has_discovery: bool, purpose: Purpose, problems: &mut Problems) -> PoolIdentity {
    let pool = &settings.pool;
    let nowhere = Position::default();
    if has_discovery {
        if settings.leader_election {
            problems.warn(
                nowhere,
                "--ha-enable-leader-election",
                "there is no Lease without Kubernetes: the flag has no effect with dataLayer.discovery",
                "remove it",
            );
        }
        // Said aloud, because nobody should believe the port protected.
        if settings.metrics.cert_dir.is_some() && settings.metrics.client_ca.is_none() {
            problems.warn(
                nowhere,
                "--metrics-endpoint-auth",
                "nobody can check tokens with dataLayer.discovery: the metrics port is encrypted, and open to all",
                "set --metrics-client-ca-file, or let only the monitoring reach the port",
            );
        }
    } else if purpose == Purpose::Serve {
        cluster(settings, problems);
    }
    let owner = || pool.pod_name.as_deref().filter(|_| pool.selector.is_some()).map(workload_of);
    let name = pool.name.clone().or_else(owner).unwrap_or_else(|| "epp".into());
    PoolIdentity { name, namespace: pool.namespace.clone() }
}

/// Checks what says which pods of a cluster are the endpoints.
fn cluster(settings: &Settings, problems: &mut Problems) {
    let pool = &settings.pool;
    let nowhere = Position::default();
    match (&pool.name, &pool.selector) {
        (Some(_), Some(_)) => problems.error(
            nowhere,
            "--endpoint-selector",
            "`--pool-name` and `--endpoint-selector` are both set, and exactly one is allowed",
            "remove one of them",
        ),
        (None, None) => problems.error(
            nowhere,
            "--pool-name",
            "nothing says where endpoints come from: neither `--pool-name` nor `--endpoint-selector` is set, and exactly one is needed",
            "set `--pool-name` to the InferencePool; without a cluster, declare a plugin of type file-discovery and name it in dataLayer.discovery.pluginRef",
        ),
        (Some(_), None) => {
            if ![GROUP_V1, GROUP_V1ALPHA2].contains(&pool.group.as_str()) {
                let message = format!("`{}` is no API group of an InferencePool", pool.group);
                problems.error(nowhere, "--pool-group", message, format!("write {GROUP_V1} or {GROUP_V1ALPHA2}"));
            }
        }
        (None, Some(text)) => {
            if let Err(message) = selector::check(text) {
                problems.error(nowhere, "--endpoint-selector", message, "write labels as in `app=vllm,tier in (a,b)`");
            }
            if pool.pod_name.is_none() {
                let message = "the pool is named after this picker's pod, and `POD_NAME` is not set: its name is `epp`";
                let fix = "set the environment variable POD_NAME from metadata.name";
                if settings.leader_election {
                    // Two pickers of one name would share a lease.
                    problems.error(nowhere, "--ha-enable-leader-election", message, fix);
                } else {
                    problems.warn(nowhere, "--endpoint-selector", message, fix);
                }
            } else if let Some(pod) = pool.pod_name.as_ref().filter(|pod| workload_of(pod) == **pod)
                && settings.leader_election
            {
                // Each replica would have a lease of its own, and all would lead.
                problems.error(
                    nowhere,
                    "--ha-enable-leader-election",
                    format!("with `--endpoint-selector` the lease is named after the Deployment, and `{pod}` is no name of a Deployment's pod"),
                    "run the picker as a Deployment, or name an InferencePool with `--pool-name`",
                );
            }
        }
    }
}

/// The workload that a pod of a Deployment belongs to: its name without the two parts at its end that
/// are made up for each pod. Any other name stays as it is.
fn workload_of(pod: &str) -> String {
    let made_up = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let mut parts = pod.rsplitn(3, '-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(last), Some(hash), Some(name)) if made_up(last) && made_up(hash) && !name.is_empty() => name.to_owned(),
        _ => pod.to_owned(),
    }
}
