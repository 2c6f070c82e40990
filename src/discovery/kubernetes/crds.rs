//! The custom resources, completely typed: what tests create, and the definitions that a cluster needs.
//!
//! Field rules, defaults and columns are those of protocol 2.1, 2.6 and 2.7; the definitions accept the
//! same objects as those that the projects publish. At run time only `objects` reads them, which looks
//! at a handful of fields.
//!
//! Rejected: the published YAML as a file of ours. The types are needed anyway, and two descriptions
//! of one object drift apart.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

const DNS_OR_EMPTY: &str = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const DNS_LABEL: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const KIND: &str = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$";
const LABEL_VALUE: &str = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
const CONTROLLER: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$";
const REASON: &str = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";
const CONDITION_TYPE: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";

/// The definitions: InferencePool v1, InferenceObjective and InferenceModelRewrite v1alpha2.
pub fn all() -> Vec<CustomResourceDefinition> {
    [InferencePool::crd(), InferenceObjective::crd(), InferenceModelRewrite::crd()].into_iter().map(strict).collect()
}

/// The definition without `nullable`, which the derive gives every optional field: the published ones
/// do not take a null there, and to CEL a field that is null is a field that is there.
fn strict(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let names = &mut definition.spec.names;
    names.list_kind = Some(format!("{}List", names.kind));
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            not_nullable(schema);
        }
    }
    definition
}

fn not_nullable(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(not_nullable);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        not_nullable(items);
    }
}

/// The pods that serve a model, and who picks among them.
#[derive(Clone, Debug, PartialEq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "inference.networking.k8s.io",
    version = "v1",
    kind = "InferencePool",
    plural = "inferencepools",
    shortname = "infpool",
    namespaced,
    status = "InferencePoolStatus",
    derive = "PartialEq",
    doc = "The pods that serve a model, and who picks among them.",
    annotation(
        "api-approved.kubernetes.io",
        "https://github.com/kubernetes-sigs/gateway-api-inference-extension/pull/1173"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct InferencePoolSpec {
    /// Chooses the pods, in the namespace of the pool.
    pub selector: LabelSelector,
    /// Ports on which each pod serves; each port of a pod is an endpoint.
    #[schemars(schema_with = "target_ports")]
    pub target_ports: Vec<Port>,
    /// What the pods speak on these ports.
    #[serde(default)]
    pub app_protocol: AppProtocol,
    /// Who picks an endpoint for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_picker_ref: Option<EndpointPickerRef>,
}

/// Labels that a pod must have, all of them.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Keys and values that must be equal.
    #[schemars(schema_with = "match_labels")]
    pub match_labels: BTreeMap<String, String>,
}

fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "minLength": 0, "maxLength": 63, "pattern": LABEL_VALUE },
    })
}

fn target_ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 8,
        "items": {
            "type": "object",
            "required": ["number"],
            "properties": { "number": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 } },
        },
        "x-kubernetes-list-type": "atomic",
        "x-kubernetes-validations": [{
            "message": "port number must be unique",
            "rule": "self.all(p1, self.exists_one(p2, p1.number==p2.number))",
        }],
    })
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Port {
    /// 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub number: i32,
}

/// Protocol of the pods' ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub enum AppProtocol {
    #[default]
    #[serde(rename = "http")]
    #[allow(missing_docs, reason = "a comment on a variant changes the shape of the schema")]
    Http,
    #[serde(rename = "kubernetes.io/h2c")]
    #[allow(missing_docs, reason = "a comment on a variant changes the shape of the schema")]
    H2c,
}

/// Who picks an endpoint for each request.
#[derive(Clone, Debug, PartialEq, KubeSchema, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.kind != 'Service' || has(self.port)")
    .message("port is required when kind is 'Service' or unspecified (defaults to 'Service')"))]
#[serde(rename_all = "camelCase")]
pub struct EndpointPickerRef {
    /// API group; empty is the core group.
    #[serde(default)]
    #[schemars(length(max = 253), regex(pattern = DNS_OR_EMPTY))]
    pub group: String,
    /// Kind of the object.
    #[serde(default = "service")]
    #[schemars(length(min = 1, max = 63), regex(pattern = KIND))]
    pub kind: String,
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// What happens to requests while the picker does not answer.
    #[serde(default)]
    pub failure_mode: FailureMode,
}

fn service() -> String {
    "Service".into()
}

/// What happens to requests while the picker does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[allow(missing_docs, reason = "a comment on a variant changes the shape of the schema")]
pub enum FailureMode {
    FailOpen,
    #[default]
    FailClose,
}

/// What gateways say of the pool. A picker never writes it (protocol R-05).
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct InferencePoolStatus {
    /// One entry per gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub parents: Vec<ParentStatus>,
}

/// What one gateway says.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The gateway.
    pub parent_ref: ParentRef,
    /// Who wrote the entry, as domain and path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = CONTROLLER))]
    pub controller_name: Option<String>,
    /// Conditions by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// A gateway that the pool is used by.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct ParentRef {
    /// API group.
    #[serde(default = "gateway_group")]
    #[schemars(length(max = 253), regex(pattern = DNS_OR_EMPTY))]
    pub group: String,
    /// Kind.
    #[serde(default = "gateway")]
    #[schemars(length(min = 1, max = 63), regex(pattern = KIND))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace, if another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = DNS_LABEL))]
    pub namespace: Option<String>,
}

fn gateway_group() -> String {
    "gateway.networking.k8s.io".into()
}

fn gateway() -> String {
    "Gateway".into()
}

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// The schema of a list of conditions; the one of the library lacks the field rules.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "message": { "type": "string", "maxLength": 32768 },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024, "pattern": REASON },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "type": { "type": "string", "maxLength": 316, "pattern": CONDITION_TYPE },
            },
        },
    })
}

/// A list of conditions that starts with one of type `kind` whose state nobody knows yet.
fn pending(kind: &str, generator: &mut SchemaGenerator) -> Schema {
    let mut schema = conditions(generator);
    let first = serde_json::json!([{
        "type": kind,
        "status": "Unknown",
        "reason": "Pending",
        "message": "Waiting for controller",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]);
    schema.insert("default".into(), first);
    schema
}

fn pending_ready(generator: &mut SchemaGenerator) -> Schema {
    pending("Ready", generator)
}

fn pending_accepted(generator: &mut SchemaGenerator) -> Schema {
    pending("Accepted", generator)
}

/// The pool that an object is for.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct PoolObjectReference {
    /// API group.
    #[serde(default = "pool_group")]
    #[schemars(length(max = 253), regex(pattern = DNS_OR_EMPTY))]
    pub group: String,
    /// Kind.
    #[serde(default = "pool_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = KIND))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl PoolObjectReference {
    /// The InferencePool v1 of this name.
    pub fn to(name: impl Into<String>) -> Self {
        Self { group: pool_group(), kind: pool_kind(), name: name.into() }
    }
}

fn pool_group() -> String {
    super::GROUP_V1.into()
}

fn pool_kind() -> String {
    "InferencePool".into()
}

/// How important the requests are that name this object.
#[derive(Clone, Debug, PartialEq, CustomResource, JsonSchema, Serialize, Deserialize)]
#[kube(
    group = "llm-d.ai",
    version = "v1alpha2",
    kind = "InferenceObjective",
    plural = "inferenceobjectives",
    namespaced,
    status = "InferenceObjectiveStatus",
    derive = "PartialEq",
    doc = "How important the requests are that name this object.",
    printcolumn = r#"{"name":"Inference Pool","type":"string","jsonPath":".spec.poolRef.name"}"#,
    printcolumn = r#"{"name":"Priority","type":"string","jsonPath":".spec.priority"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceObjectiveSpec {
    /// Higher goes first; negative may be refused while the pool is saturated; absent is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// The pool, in the same namespace.
    pub pool_ref: PoolObjectReference,
}

/// What a controller says of an objective.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct InferenceObjectiveStatus {
    /// Conditions by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "pending_ready")]
    pub conditions: Vec<Condition>,
}

/// Other names for models, by weight.
#[derive(Clone, Debug, PartialEq, CustomResource, JsonSchema, Serialize, Deserialize)]
#[kube(
    group = "llm-d.ai",
    version = "v1alpha2",
    kind = "InferenceModelRewrite",
    plural = "inferencemodelrewrites",
    namespaced,
    status = "InferenceModelRewriteStatus",
    derive = "PartialEq",
    doc = "Other names for models, by weight.",
    printcolumn = r#"{"name":"Inference Pool","type":"string","jsonPath":".spec.poolRef.name"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceModelRewriteSpec {
    /// The pool, in the same namespace.
    pub pool_ref: PoolObjectReference,
    /// Rules; of several that match, the first.
    pub rules: Vec<InferenceModelRewriteRule>,
}

/// What becomes of which models.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct InferenceModelRewriteRule {
    /// Models that the rule is for; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// What they become.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub targets: Vec<TargetModel>,
}

/// A sort of request.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Match {
    /// By the model in the body.
    pub model: ModelMatch,
}

/// A model, by its name.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct ModelMatch {
    /// How names are compared.
    #[serde(rename = "type", default)]
    pub kind: MatchType,
    /// The name.
    #[schemars(length(min = 1))]
    pub value: String,
}

/// How names are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[allow(missing_docs, reason = "a comment on a variant changes the shape of the schema")]
pub enum MatchType {
    #[default]
    Exact,
}

/// A model that requests become.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetModel {
    /// Its name.
    pub model_rewrite: String,
    /// Share of requests, relative to the other weights of the rule; all have one, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: Option<i32>,
}

/// What a controller says of a rewrite.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct InferenceModelRewriteStatus {
    /// Conditions by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "pending_accepted")]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests;
