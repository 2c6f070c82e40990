//! The few fields of each object that routing needs, read straight from the API server's JSON.
//!
//! Nothing else of an object is ever held: a whole pod is some 10 KB, its facts here are about a
//! hundredth of it, in four allocations. The types of `crds` describe the objects completely and
//! are not used at run time.
//!
//! What a pod must be to count (protocol 2.3): not terminating, condition `Ready` is `True`, and an IP
//! address, which the picker we replace does not check. A pod that does not count reads as
//! [`Read::Absent`], the same as one that is gone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::jiff;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::{EndpointSpec, ObjectiveSpec, RewriteRule, RewriteSpec, RewriteTarget};

use super::selector;
use super::{GROUP_V1, GROUP_V1ALPHA2};

/// Most target ports of a pool (protocol 2.1); each is an endpoint of every pod.
pub const MAX_PORTS: usize = 8;
/// Most ports of one `active-ports` annotation that are read; a pool has at most [`MAX_PORTS`].
const MAX_ACTIVE: usize = 64;

/// What an object comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read<T> {
    /// It counts.
    Present(T),
    /// It is there, and does not count (a pod that is not ready, an object of another pool).
    Absent,
}

/// What every object has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// Object name.
    pub name: String,
    /// Version of this state of the object, to watch on from.
    pub resource_version: String,
}

/// An object reduced to what it has in common with others.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Headed {
    /// Its metadata.
    pub metadata: Meta,
}

/// What a watch can be for: an object that reads from JSON.
pub trait Object: Sized + Send + 'static {
    /// What reading needs to know, such as which pool is meant.
    type Scope: Clone + Send + Sync + 'static;

    /// Reads the object.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn read(json: &str, scope: &Self::Scope) -> Result<Read<Self>, String>;
}

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

/// What routing needs of an InferencePool (protocol 2.1, 2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// Selector of its pods, in the text form of the API.
    pub selector: String,
    /// Target ports, without duplicates.
    pub ports: Vec<u16>,
}

#[derive(Deserialize)]
struct RawPool {
    spec: RawPoolSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPoolSpec {
    selector: serde_json::Value,
    #[serde(default)]
    target_ports: Vec<RawPort>,
    target_port_number: Option<i64>,
}

#[derive(Deserialize)]
struct RawPort {
    number: i64,
}

impl Object for PoolFacts {
    /// The API group, which says which of the two shapes the object has.
    type Scope = String;

    fn read(json: &str, group: &String) -> Result<Read<Self>, String> {
        let RawPool { spec } = parse(json)?;
        let (labels, numbers) = match group.as_str() {
            GROUP_V1ALPHA2 => (spec.selector, spec.target_port_number.into_iter().collect()),
            _ => {
                let labels = match spec.selector {
                    serde_json::Value::Object(mut selector) => selector.remove("matchLabels").unwrap_or_default(),
                    _ => serde_json::Value::Null,
                };
                (labels, spec.target_ports.iter().map(|p| p.number).collect::<Vec<_>>())
            }
        };
        let labels: BTreeMap<String, String> =
            serde_json::from_value(labels).map_err(|e| format!("the selector is no map of labels: {e}"))?;
        if labels.is_empty() {
            return Err("the selector is empty, which would take every pod of the namespace".into());
        }
        let mut ports = Vec::with_capacity(MAX_PORTS);
        for number in numbers {
            match u16::try_from(number) {
                Ok(port) if port > 0 => {
                    if !ports.contains(&port) {
                        ports.push(port);
                    }
                }
                _ => return Err(format!("{number} is not a port: it must be between 1 and 65535")),
            }
        }
        if ports.is_empty() || ports.len() > MAX_PORTS {
            return Err(format!("{} target ports, where 1 to {MAX_PORTS} are allowed", ports.len()));
        }
        let selector: Vec<String> =
            labels.iter().map(|(key, value)| selector::equal(key, value)).collect::<Result<_, _>>()?;
        Ok(Read::Present(Self { selector: selector.join(","), ports }))
    }
}

/// What routing needs of a pod that may be sent requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Pod name.
    pub name: Box<str>,
    /// Hash of its uid, which another pod of this name does not have: a pod of a StatefulSet that is
    /// deleted comes back under its name, at times with its address.
    uid: u64,
    ip: IpAddr,
    /// Ports of the `active-ports` annotation; absent means all.
    active: Option<Box<[u16]>>,
    /// Labels as `key NUL value NUL …` in the order of their keys: one allocation instead of one per
    /// key and value, for 10,000 pods. They are taken apart when the pod becomes endpoints.
    labels: Box<str>,
}

#[derive(Deserialize)]
struct RawPod<'a> {
    #[serde(borrow)]
    metadata: RawPodMeta<'a>,
    #[serde(borrow)]
    status: Option<RawPodStatus<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPodMeta<'a> {
    name: Box<str>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    deletion_timestamp: Option<IgnoredAny>,
    labels: Option<Packed>,
    #[serde(borrow)]
    annotations: Option<RawAnnotations<'a>>,
}

#[derive(Default, Deserialize)]
struct RawAnnotations<'a> {
    #[serde(rename = "llm-d.ai/active-ports", borrow)]
    active: Option<Cow<'a, str>>,
    #[serde(rename = "inference.networking.k8s.io/active-ports", borrow)]
    active_before: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawPodStatus<'a> {
    #[serde(rename = "podIP", borrow)]
    ip: Option<Cow<'a, str>>,
    #[serde(borrow)]
    conditions: Option<Vec<RawCondition<'a>>>,
}

#[derive(Deserialize)]
struct RawCondition<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
}

/// Labels in one string; see [`PodFacts`].
#[derive(Default)]
struct Packed(Box<str>);

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Labels;
        impl<'de> Visitor<'de> for Labels {
            type Value = Packed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of labels")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Packed, A::Error> {
                let mut labels: BTreeMap<Cow<'de, str>, Cow<'de, str>> = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<Cow<'de, str>, Cow<'de, str>>()? {
                    if key.contains('\0') || value.contains('\0') {
                        return Err(serde::de::Error::custom("a label holds a NUL"));
                    }
                    labels.insert(key, value);
                }
                let bytes = labels.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
                let mut packed = String::with_capacity(bytes);
                for (key, value) in &labels {
                    packed.extend([key, "\0", value, "\0"]);
                }
                Ok(Packed(packed.into_boxed_str()))
            }
        }
        deserializer.deserialize_map(Labels)
    }
}

impl Object for PodFacts {
    type Scope = ();

    fn read(json: &str, (): &()) -> Result<Read<Self>, String> {
        let RawPod { metadata, status } = parse(json)?;
        let Some(status) = status.filter(|_| metadata.deletion_timestamp.is_none()) else { return Ok(Read::Absent) };
        let ready = |c: &RawCondition<'_>| c.kind == "Ready" && c.status == "True";
        if !status.conditions.iter().flatten().any(ready) {
            return Ok(Read::Absent);
        }
        let Some(text) = status.ip.filter(|ip| !ip.is_empty()) else { return Ok(Read::Absent) };
        let ip: IpAddr = text.parse().map_err(|_| format!("the pod's address `{text}` is not an IP address"))?;
        // `::ffff:10.0.0.7` is 10.0.0.7; subset hints are read the same way.
        let ip = ip.to_canonical();
        if ip.is_unspecified() {
            return Err(format!("the pod's address `{text}` is no destination"));
        }
        let annotations = metadata.annotations.unwrap_or_default();
        let active = annotations.active.or(annotations.active_before).map(|list| active_ports(&list));
        let uid = metadata.uid.map_or(0, |uid| xxh3_64(uid.as_bytes()));
        let labels = metadata.labels.unwrap_or_default().0;
        Ok(Read::Present(Self { name: metadata.name, uid, ip, active, labels }))
    }
}

/// The ports of an `active-ports` annotation; what is no port is passed over.
fn active_ports(list: &str) -> Box<[u16]> {
    list.split(',').filter_map(|port| port.trim().parse().ok()).take(MAX_ACTIVE).collect()
}

impl PodFacts {
    /// The pod's endpoints: one per target port that is live in it (protocol 2.4).
    pub fn endpoints(&self, namespace: &str, ports: &[u16]) -> Vec<EndpointSpec> {
        let live = |port: &u16| self.active.as_ref().is_none_or(|active| active.contains(port));
        let ranks = ports.iter().enumerate().filter(|(_, port)| live(port));
        ranks
            .map(|(rank, port)| EndpointSpec {
                name: endpoint_name(&self.name, rank),
                namespace: namespace.to_owned(),
                address: SocketAddr::new(self.ip, *port),
                rank: rank as u32,
                incarnation: self.uid,
                labels: self.labels(),
            })
            .collect()
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut parts = self.labels.split_terminator('\0');
        let mut labels = BTreeMap::new();
        while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }
}

/// The name of the endpoint of a pod's port.
pub fn endpoint_name(pod: &str, rank: usize) -> String {
    format!("{pod}-rank-{rank}")
}

/// The pool that objectives and rewrites must refer to.
#[derive(Clone, Debug)]
pub struct PoolRef {
    /// Pool name.
    pub name: String,
    /// API group of the pool.
    pub group: String,
}

#[derive(Deserialize)]
struct RawPoolRef {
    #[serde(default)]
    group: Option<String>,
    name: String,
}

impl RawPoolRef {
    fn is(&self, pool: &PoolRef) -> bool {
        self.name == pool.name && self.group.as_deref().unwrap_or(GROUP_V1) == pool.group
    }
}

#[derive(Deserialize)]
struct RawObject<S> {
    metadata: RawObjectMeta,
    spec: S,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawObjectMeta {
    name: String,
    creation_timestamp: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawObjective {
    pool_ref: RawPoolRef,
    priority: Option<i32>,
}

impl Object for ObjectiveSpec {
    type Scope = PoolRef;

    fn read(json: &str, pool: &PoolRef) -> Result<Read<Self>, String> {
        let RawObject::<RawObjective> { metadata, spec } = parse(json)?;
        Ok(match spec.pool_ref.is(pool) {
            true => Read::Present(Self { name: metadata.name, priority: spec.priority.unwrap_or(0) }),
            false => Read::Absent,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRewrite {
    pool_ref: RawPoolRef,
    #[serde(default)]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
struct RawRule {
    #[serde(default)]
    matches: Vec<RawMatch>,
    #[serde(default)]
    targets: Vec<RawTarget>,
}

#[derive(Deserialize)]
struct RawMatch {
    model: RawModel,
}

#[derive(Deserialize)]
struct RawModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTarget {
    model_rewrite: String,
    weight: Option<u32>,
}

impl Object for RewriteSpec {
    type Scope = PoolRef;

    fn read(json: &str, pool: &PoolRef) -> Result<Read<Self>, String> {
        let RawObject::<RawRewrite> { metadata, spec } = parse(json)?;
        if !spec.pool_ref.is(pool) {
            return Ok(Read::Absent);
        }
        let mut rules = Vec::with_capacity(spec.rules.len());
        for rule in spec.rules {
            let mut models = Vec::with_capacity(rule.matches.len());
            for RawMatch { model } in rule.matches {
                match model.kind.as_deref() {
                    None | Some("Exact") => models.push(model.value),
                    // A rule that lost a match would concern other models than its author meant.
                    Some(other) => return Err(format!("models are matched by `Exact`, and `{other}` is not known")),
                }
            }
            let targets = rule.targets.into_iter();
            let targets = targets.map(|t| RewriteTarget { model: t.model_rewrite, weight: t.weight }).collect();
            rules.push(RewriteRule { models, targets });
        }
        // An object without a time cannot be the oldest.
        let created = metadata.creation_timestamp.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        Ok(Read::Present(Self { name: metadata.name, created: created.map_or(i64::MAX, |t| t.as_second()), rules }))
    }
}

#[cfg(test)]
mod tests;
