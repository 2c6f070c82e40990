//! `EndpointPickerConfig` as it is written: typed, strict, with the place of every value.
//!
//! Nothing is filled in here beyond the defaults of single fields; what a missing section means is
//! decided in [`resolve`](mod@super::resolve). Deprecated places (`saturationDetector` and `parser` at
//! the top) are fields of their own, so that resolving can warn about them.

use std::time::Duration;

use crate::domain::node::{Node, Position, Problems};
use crate::params;
use crate::scheduling::params::{Param, Params, Quantity};

/// The API version that is written today.
pub const API_VERSION: &str = "llm-d.ai/v1alpha1";
/// The API version of older generations.
pub const OLD_API_VERSION: &str = "inference.networking.x-k8s.io/v1alpha1";
/// The kind of the document.
pub const KIND: &str = "EndpointPickerConfig";

/// A decoded value that knows where it was written.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it starts.
    pub at: Position,
    /// Its path in the document.
    pub path: String,
}

impl<T: Param> Param for Placed<T> {
    const TYPE: &'static str = T::TYPE;
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        Some(Self { value: T::decode(node, path, problems)?, at: node.at, path: path.to_owned() })
    }
}

params! {
    /// A reference to a plugin.
    pub struct Reference {
        /// Name of the plugin.
        plugin_ref: Option<Placed<String>> = None, "pluginRef";
    }
}

params! {
    /// One entry of `plugins`.
    pub struct PluginEntry {
        /// Name of this instance; the type if absent.
        name: Option<Placed<String>> = None, "name";
        /// Plugin type.
        kind: Option<Placed<String>> = None, "type";
        /// Parameters of the type.
        parameters: Option<Placed<Node>> = None, "parameters";
    }
}

params! {
    /// One plugin of a profile.
    pub struct ProfilePlugin {
        /// Name of the plugin.
        plugin_ref: Option<Placed<String>> = None, "pluginRef";
        /// Factor of a scorer.
        weight: Option<Placed<Node>> = None, "weight";
    }
}

params! {
    /// One entry of `schedulingProfiles`.
    pub struct ProfileEntry {
        /// Name of the profile.
        name: Option<Placed<String>> = None, "name";
        /// Its filters, scorers and picker.
        plugins: Vec<Placed<ProfilePlugin>> = Vec::new(), "plugins";
    }
}

params! {
    /// `requestHandler`.
    pub struct RequestHandler {
        /// Parsers, tried by path.
        parsers: Vec<Placed<Reference>> = Vec::new(), "parsers";
    }
}

params! {
    /// One data source with its extractors.
    pub struct SourceEntry {
        /// Name of the source.
        plugin_ref: Option<Placed<String>> = None, "pluginRef";
        /// Extractors of what it reads.
        extractors: Vec<Placed<Reference>> = Vec::new(), "extractors";
    }
}

params! {
    /// `dataLayer`.
    pub struct DataLayer {
        /// Add the metrics source and extractor when they are not listed.
        inject_defaults: bool = true, "injectDefaults";
        /// Data sources.
        sources: Vec<Placed<SourceEntry>> = Vec::new(), "sources";
        /// Where endpoints come from instead of Kubernetes.
        discovery: Option<Placed<Reference>> = None, "discovery";
        /// How other replicas are found.
        peer_discovery: Option<Placed<Reference>> = None, "peerDiscovery";
        /// What shares state between replicas.
        cross_replica_syncer: Option<Placed<String>> = None, "crossReplicaSyncerPluginRef";
        /// How often state is shared.
        cross_replica_sync_interval: Duration = Duration::from_millis(200), "crossReplicaSyncInterval";
    }
}

params! {
    /// Limits and policies of a priority band that is not listed.
    pub struct BandDefaults {
        /// Queued bytes.
        max_bytes: Option<Quantity> = None, "maxBytes";
        /// Queued requests.
        max_requests: Option<Quantity> = None, "maxRequests";
        /// Fairness between flows.
        fairness_policy_ref: Option<String> = None, "fairnessPolicyRef";
        /// Order within a flow.
        ordering_policy_ref: Option<String> = None, "orderingPolicyRef";
    }
}

params! {
    /// One entry of `flowControl.priorityBands`.
    pub struct Band {
        /// Priority of the band.
        priority: Option<Placed<i64>> = None, "priority";
        /// Queued bytes.
        max_bytes: Quantity = Quantity(1_000_000_000), "maxBytes";
        /// Queued requests.
        max_requests: Quantity = Quantity(5000), "maxRequests";
        /// Fairness between flows.
        fairness_policy_ref: String = "global-strict-fairness-policy".into(), "fairnessPolicyRef";
        /// Order within a flow.
        ordering_policy_ref: String = "fcfs-ordering-policy".into(), "orderingPolicyRef";
    }
}

params! {
    /// `flowControl`.
    pub struct FlowControl {
        /// Queued bytes over all bands; absent or 0 is no limit.
        max_bytes: Option<Quantity> = None, "maxBytes";
        /// Queued requests over all bands; absent or 0 is no limit.
        max_requests: Option<Quantity> = None, "maxRequests";
        /// Longest wait of a request; 0 switches the limit off.
        default_request_ttl: Duration = Duration::from_secs(60), "defaultRequestTTL";
        /// Longest wait while there is no endpoint; follows `defaultRequestTTL`.
        no_endpoint_request_ttl: Option<Duration> = None, "noEndpointRequestTTL";
        /// Bands that are not listed.
        default_priority_band: Option<BandDefaults> = None, "defaultPriorityBand";
        /// Bands below zero that are not listed.
        default_negative_priority_band: Option<BandDefaults> = None, "defaultNegativePriorityBand";
        /// Bands.
        priority_bands: Vec<Placed<Band>> = Vec::new(), "priorityBands";
        /// How much of the pool a priority may use.
        usage_limit_policy: Option<Placed<String>> = None, "usageLimitPolicyPluginRef";
        /// What says that the pool is full.
        saturation_detector: Option<Placed<Reference>> = None, "saturationDetector";
        /// Revoke running requests of low priority.
        enable_eviction: bool = false, "enableEviction";
    }
}

params! {
    /// The whole document.
    pub struct Document {
        /// API version.
        api_version: Option<Placed<String>> = None, "apiVersion";
        /// Kind.
        kind: Option<Placed<String>> = None, "kind";
        /// Feature gates.
        feature_gates: Vec<Placed<String>> = Vec::new(), "featureGates";
        /// Plugins.
        plugins: Vec<Placed<PluginEntry>> = Vec::new(), "plugins";
        /// Scheduling profiles.
        scheduling_profiles: Vec<Placed<ProfileEntry>> = Vec::new(), "schedulingProfiles";
        /// Parsers.
        request_handler: RequestHandler = RequestHandler::default(), "requestHandler";
        /// Data sources and discovery.
        data_layer: DataLayer = DataLayer::default(), "dataLayer";
        /// Queueing.
        flow_control: Option<Placed<FlowControl>> = None, "flowControl";
        /// Deprecated place of `flowControl.saturationDetector`.
        saturation_detector: Option<Placed<Reference>> = None, "saturationDetector";
        /// Deprecated place of `requestHandler.parsers`.
        parser: Option<Placed<Reference>> = None, "parser";
    }
}

impl Document {
    /// Decodes a document and checks what it says it is.
    pub fn decode(node: &Node, problems: &mut Problems) -> Self {
        let document = Self::decode_fields(Some(node), "", problems);
        match &document.api_version {
            Some(v) if v.value == API_VERSION => {}
            Some(v) if v.value == OLD_API_VERSION => problems.warn(
                v.at,
                &v.path,
                format!("`{OLD_API_VERSION}` is the old API group"),
                format!("write `apiVersion: {API_VERSION}`"),
            ),
            Some(v) => problems.error(
                v.at,
                &v.path,
                format!("`{}` is not an API version of {KIND}", v.value),
                format!("write `apiVersion: {API_VERSION}`"),
            ),
            None => problems.error(
                node.at,
                "apiVersion",
                "the document does not say its API version",
                format!("write `apiVersion: {API_VERSION}`"),
            ),
        }
        match &document.kind {
            Some(k) if k.value == KIND => {}
            Some(k) => {
                let message = format!("`{}` is not the kind of a configuration", k.value);
                problems.error(k.at, &k.path, message, format!("write `kind: {KIND}`"));
            }
            None => {
                problems.error(node.at, "kind", "the document does not say its kind", format!("write `kind: {KIND}`"))
            }
        }
        document
    }
}
