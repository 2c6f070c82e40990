//! Where sessions were sent: what `session-affinity-scorer` and `session-affinity-filter` have in common.
//!
//! Two strategies say which endpoint is the session's:
//!
//! - `encoded_endpoint_header` (default), without state here: the response carries the header
//!   `x-session-token`, the base64 of `namespace/name` of the endpoint (names end in `-rank-<i>`);
//!   the client sends it back. Any replica understands it. If the data plane reports that it used
//!   one of the fallback endpoints, the token names that one.
//! - `session_id`: the client names its session in a header (`x-session-id` unless `sources` says
//!   otherwise) or a `session-id-producer` finds it; the endpoint is remembered here for
//!   `evictionTtlSeconds` after the last request, for at most 1,000,000 sessions (see [`bindings`]).
//!
//! Inputs: request headers or the session signal. What is learnt is learnt in [`Commit`]; asking
//! changes nothing. With `profileName` the instance follows the endpoint of that profile, else the
//! destination.
//!
//! When it misleads: under `session_id`, replicas of this process do not share what they remember,
//! nor do two instances in one configuration. A token names a pod and not the life of its cache: a pod
//! that comes back with the same name (a StatefulSet) is found again although its cache is empty.
//!
//! Where ours differs: `evictionSweepSeconds` is accepted and has no effect, since expiry is exact and
//! needs no sweeper. `sessionIdConfig`, the nested spelling of some versions, is understood too.

pub mod bindings;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;

use bindings::{Bindings, MAX_SESSIONS};

use crate::domain::{Endpoint, InferenceRequest, Signals, Slot, Topology};
use crate::scheduling::per_topology::PerTopology;
use crate::scheduling::plugin::{Build, Commit, Cycle, ResponseStart, Routed, SignalKind, Watch};

/// Header that carries the encoded endpoint, in requests and responses.
pub const TOKEN_HEADER: &str = "x-session-token";
const ID_HEADER: &str = "x-session-id";
/// Longer tokens are not ours: namespace and name have at most 63 and about 270 bytes.
const MAX_TOKEN: usize = 1024;
const MAX_YEARS: f64 = 315_360_000.0;

crate::choice! {
    /// How a session is recognised.
    pub enum Strategy {
        /// The client echoes a token that names the endpoint.
        EncodedEndpointHeader = "encoded_endpoint_header",
        /// The client names its session; the endpoint is remembered here.
        SessionId = "session_id",
    }
}

crate::params! {
    /// One place where a session id may be found.
    pub struct Source {
        /// Request header that holds the id.
        header: Option<String> = None, "header";
        /// Attribute that the producer publishes; informative, as each producer publishes one.
        attribute: Option<String> = None, "attribute";
        /// Name of the session-id-producer that finds the id.
        producer: Option<String> = None, "producer";
    }
}

crate::params! {
    /// The settings of `session_id` in their nested spelling.
    pub struct SessionIdConfig {
        /// As sources.
        sources: Vec<Source> = Vec::new(), "sources";
        /// As evictionTtlSeconds.
        ttl: f64 = 300.0, "evictionTtlSeconds", 0.0..=MAX_YEARS;
        /// Has no effect.
        sweep: f64 = 10.0, "evictionSweepSeconds", 0.0..=MAX_YEARS;
    }
}

crate::params! {
    /// Parameters of `session-affinity-scorer` and `session-affinity-filter`.
    pub struct Params {
        /// How a session is recognised: encoded_endpoint_header or session_id.
        strategy: Strategy = Strategy::EncodedEndpointHeader, "strategy";
        /// For session_id: where the id is looked for, first match wins; the header x-session-id by default.
        sources: Vec<Source> = Vec::new(), "sources";
        /// For session_id: seconds after its last request at which a session is forgotten; 0 is never.
        ttl: f64 = 300.0, "evictionTtlSeconds", 0.0..=MAX_YEARS;
        /// Has no effect: expiry is exact and nothing is swept.
        sweep: f64 = 10.0, "evictionSweepSeconds", 0.0..=MAX_YEARS;
        /// Profile whose endpoint the session follows; the destination by default.
        profile_name: Option<String> = None, "profileName";
        /// For session_id: the same settings in the nested spelling of some versions.
        session_id_config: Option<SessionIdConfig> = None, "sessionIdConfig";
    }
}

fn sources(b: &mut Build<'_>, wanted: Vec<Source>) -> Option<SmallVec<[IdSource; 2]>> {
    let mut sources = SmallVec::new();
    let mut sound = true;
    for (i, Source { header, attribute, producer }) in wanted.into_iter().enumerate() {
        match (header, producer) {
            (Some(header), None) if attribute.is_none() && !header.is_empty() => {
                sources.push(IdSource::Header(header.to_ascii_lowercase().into_boxed_str()));
            }
            (None, Some(producer)) => {
                sources.push(IdSource::Producer(b.consumes(SignalKind::Session, "sources", Some(&producer))));
            }
            _ => {
                sound = false;
                let message = format!("[{i}] must have either `header`, or `producer` (with or without `attribute`)");
                b.error("sources", message, "name a request header, or the session-id-producer to read");
            }
        }
    }
    if sources.is_empty() && sound {
        sources.push(IdSource::Header(ID_HEADER.into()));
    }
    sound.then_some(sources)
}

enum IdSource {
    Header(Box<str>),
    Producer(usize),
}

enum Affinity {
    /// Slots by `namespace/name`.
    Token(PerTopology<HashMap<Box<str>, Slot>>),
    Remembered {
        sources: SmallVec<[IdSource; 2]>,
        bindings: Bindings,
    },
}

/// Knows where sessions were sent, and learns it.
pub(super) struct SessionAffinity {
    affinity: Affinity,
    profile: Option<String>,
}

fn session<'a>(sources: &[IdSource], request: &'a InferenceRequest, signals: &'a Signals) -> Option<&'a str> {
    sources
        .iter()
        .filter_map(|source| match source {
            IdSource::Header(name) => request.headers.get(name),
            IdSource::Producer(ordinal) => signals.sessions.get(*ordinal)?.as_deref(),
        })
        .find(|id| !id.is_empty())
}

fn full_name(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.spec.namespace, endpoint.spec.name)
}

impl SessionAffinity {
    /// An instance with the parameters of `b`.
    pub(super) fn build(b: &mut Build<'_>) -> Option<Self> {
        let mut params: Params = b.params();
        if let Some(nested) = params.session_id_config.take() {
            for flat in ["sources", "evictionTtlSeconds", "evictionSweepSeconds"] {
                if b.parameters.is_some_and(|p| p.get(flat).is_some()) {
                    b.error(flat, "is also set in `sessionIdConfig`", "keep one of the two");
                }
            }
            (params.sources, params.ttl, params.sweep) = (nested.sources, nested.ttl, nested.sweep);
        }
        let affinity = match params.strategy {
            Strategy::EncodedEndpointHeader => Affinity::Token(PerTopology::default()),
            Strategy::SessionId => {
                let sources = sources(b, params.sources)?;
                let ttl = Duration::from_secs_f64(params.ttl);
                Affinity::Remembered { sources, bindings: Bindings::new(ttl, MAX_SESSIONS) }
            }
        };
        Some(Self { affinity, profile: params.profile_name })
    }

    /// The slot that the request's session belongs to; changes nothing.
    pub(super) fn wanted(&self, cx: &Cycle<'_>) -> Option<Slot> {
        match &self.affinity {
            Affinity::Token(names) => {
                let token = cx.request.headers.get(TOKEN_HEADER).filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN)?;
                let mut buffer = [0; MAX_TOKEN];
                let length = STANDARD.decode_slice(token, &mut buffer).ok()?;
                let name = std::str::from_utf8(&buffer[..length]).ok()?;
                let build = |t: &Topology| {
                    t.endpoints().map(|e| (full_name(e).into_boxed_str(), e.slot)).collect::<HashMap<_, _>>()
                };
                names.with(&cx.snapshot.topology, build, |names| names.get(name).copied())
            }
            Affinity::Remembered { sources, bindings } => {
                let (slot, generation) = bindings.get(session(sources, cx.request, cx.signals)?, cx.now)?;
                // The slot may have been given to another endpoint since.
                (cx.snapshot.topology.get(slot)?.generation == generation).then_some(slot)
            }
        }
    }
}

impl Commit for SessionAffinity {
    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        let result = match &self.profile {
            None => routed.decision.primary(),
            Some(name) => routed.decision.profiles.iter().find(|r| *r.profile == **name)?,
        };
        match &self.affinity {
            Affinity::Token(_) => {
                Some(Box::new(Token { picked: result.picked.iter().map(|r| Arc::clone(&r.endpoint)).collect() }))
            }
            Affinity::Remembered { sources, bindings } => {
                let session = session(sources, routed.request, routed.signals)?;
                bindings.put(session, &result.picked.first()?.endpoint, routed.now);
                None
            }
        }
    }
}

/// Writes the token on the response.
struct Token {
    picked: SmallVec<[Arc<Endpoint>; 1]>,
}

impl Watch for Token {
    fn response_headers(&mut self, start: &ResponseStart<'_>, add: &mut Vec<(&'static str, String)>) {
        if add.iter().any(|(name, _)| *name == TOKEN_HEADER) {
            // Another instance did it: a client that is given two tokens knows not which to send back.
            return;
        }
        let served = start.served.endpoint().and_then(|served| self.picked.iter().find(|e| e.destination() == served));
        if let Some(endpoint) = served.or(self.picked.first()) {
            add.push((TOKEN_HEADER, STANDARD.encode(full_name(endpoint))));
        }
    }
}
