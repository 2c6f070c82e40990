//! One endpoint: a model server port that a request can be sent to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::Slot;

/// Label that holds an endpoint's role in disaggregated serving.
pub const ROLE_LABEL: &str = "llm-d.ai/role";

/// What discovery knows about an endpoint; the pool turns it into an [`Endpoint`] with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// `<pod>-rank-<i>` for pods; the given name for endpoints from a file. Unique with `namespace`.
    pub name: String,
    /// Namespace of the pod, or the one given in the endpoints file.
    pub namespace: String,
    /// Where inference requests go.
    pub address: SocketAddr,
    /// Data-parallel rank: index of the port in the pool's target ports.
    pub rank: u32,
    /// Which of the servers that had or will have this name it is: two that differ are two servers, even
    /// at one address. A hash of the pod's uid; 0 where that is not known, as in the endpoints file.
    pub incarnation: u64,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
}

/// Requests and tokens that were routed to an endpoint and have not ended.
///
/// Written at commit and at the end of a request, read once per decision. They live beside the slot
/// because they change per request, far more often than a snapshot is published.
#[derive(Debug, Default)]
pub struct InFlightCounters {
    requests: AtomicI64,
    tokens: AtomicI64,
}

impl InFlightCounters {
    /// Adds to both counters; negative amounts release.
    pub fn add(&self, requests: i64, tokens: i64) {
        if requests != 0 {
            self.requests.fetch_add(requests, Ordering::AcqRel);
        }
        if tokens != 0 {
            self.tokens.fetch_add(tokens, Ordering::AcqRel);
        }
    }

    /// Requests in flight, never below zero.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Acquire).max(0) as u64
    }

    /// Uncached tokens in flight, never below zero.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Acquire).max(0) as u64
    }
}

/// The stages that an endpoint can serve, from its role label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    bits: u8,
}

impl Roles {
    const ENCODE: u8 = 1;
    const PREFILL: u8 = 2;
    const DECODE: u8 = 4;

    /// Reads the value of [`ROLE_LABEL`]. Without the label an endpoint may decode and nothing else;
    /// an unknown value serves no stage, as in the picker we replace.
    pub fn from_label(label: Option<&str>) -> Self {
        let bits = match label {
            None => Self::DECODE,
            Some("encode") => Self::ENCODE,
            Some("prefill") => Self::PREFILL,
            Some("decode") => Self::DECODE,
            Some("encode-prefill") => Self::ENCODE | Self::PREFILL,
            Some("prefill-decode" | "both") => Self::PREFILL | Self::DECODE,
            Some("encode-prefill-decode") => Self::ENCODE | Self::PREFILL | Self::DECODE,
            Some(_) => 0,
        };
        Self { bits }
    }

    /// May run the encode stage.
    pub fn encodes(self) -> bool {
        self.bits & Self::ENCODE != 0
    }

    /// May run the prefill stage for another endpoint.
    pub fn prefills(self) -> bool {
        self.bits & Self::PREFILL != 0
    }

    /// May run the decode stage, and with it whole requests.
    pub fn decodes(self) -> bool {
        self.bits & Self::DECODE != 0
    }
}

/// An endpoint in the pool. Immutable but for its in-flight counters.
#[derive(Debug)]
pub struct Endpoint {
    /// Its dense index.
    pub slot: Slot,
    /// Distinguishes successive endpoints of one slot; never reused in a process.
    pub generation: u64,
    /// What discovery said.
    pub spec: EndpointSpec,
    /// Stages it may serve.
    pub roles: Roles,
    /// Work routed to it that has not ended.
    pub in_flight: Arc<InFlightCounters>,
    destination: Box<str>,
}

impl Endpoint {
    /// Gives `spec` its place in the pool.
    pub fn new(slot: Slot, generation: u64, spec: EndpointSpec) -> Self {
        let roles = Roles::from_label(spec.labels.get(ROLE_LABEL).map(String::as_str));
        let destination = spec.address.to_string().into_boxed_str();
        Self { slot, generation, spec, roles, in_flight: Arc::default(), destination }
    }

    /// The same endpoint after a change of its labels: slot, generation and counters stay.
    pub fn relabelled(&self, spec: EndpointSpec) -> Self {
        Self { in_flight: Arc::clone(&self.in_flight), ..Self::new(self.slot, self.generation, spec) }
    }

    /// The text of the destination header: `v4:port` or `[v6]:port` (protocol R-02).
    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// The name that metrics and logs use.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.spec.labels.get(key).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_brackets_ipv6() {
        let spec = |address: &str| EndpointSpec {
            name: "a".into(),
            namespace: "default".into(),
            address: address.parse().unwrap(),
            rank: 0,
            incarnation: 0,
            labels: BTreeMap::new(),
        };
        assert_eq!(Endpoint::new(Slot(0), 1, spec("192.168.1.1:8000")).destination(), "192.168.1.1:8000");
        assert_eq!(Endpoint::new(Slot(0), 1, spec("[fd00::1]:8000")).destination(), "[fd00::1]:8000");
    }

    #[test]
    fn roles_follow_the_label() {
        let all = [None, Some("encode"), Some("prefill"), Some("decode"), Some("both"), Some("encode-decode")]
            .map(|l| (Roles::from_label(l).encodes(), Roles::from_label(l).prefills(), Roles::from_label(l).decodes()));
        let (f, t) = (false, true);
        assert_eq!(all, [(f, f, t), (t, f, f), (f, t, f), (f, f, t), (f, t, t), (f, f, f)]);
    }
}
