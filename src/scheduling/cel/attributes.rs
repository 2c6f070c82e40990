//! The attributes that an expression can read, and what has to be switched on for each.
//!
//! One table ([`TABLE`]), from which come the names in errors, the meaning of an expression and the
//! check that the documentation lists them all.

use super::eval::TextColumn;
use super::{Kind, MAX_TEXT};
use crate::domain::{Endpoint, InferenceRequest, Topology};
use crate::scheduling::plugin::{Metric, Need};

/// A number or boolean that is read per request or per endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Estimated tokens of the prompts.
    PromptTokens,
    /// Most tokens that the client wants.
    MaxOutputTokens,
    /// Whether the client wants a streamed answer.
    Streaming,
    /// The endpoint's port.
    Port,
    /// Waiting requests.
    Waiting,
    /// Running requests.
    Running,
    /// KV cache usage.
    KvUsage,
    /// Age of the sample in seconds.
    SampleAge,
    /// Requests in flight.
    InFlightRequests,
    /// Tokens in flight.
    InFlightTokens,
    /// Share of the prompt that is cached.
    PrefixMatch,
    /// The custom metric with this index.
    Metric(usize),
}

impl Number {
    /// Whether it differs from endpoint to endpoint.
    pub(super) const fn varies(self) -> bool {
        !matches!(self, Number::PromptTokens | Number::MaxOutputTokens | Number::Streaming)
    }

    /// The work that it depends on, besides signals and custom metrics.
    pub(super) const fn need(self) -> Option<Need> {
        match self {
            Number::PromptTokens | Number::PrefixMatch => Some(Need::Prompts),
            // An age needs a page that is read at all.
            Number::Waiting | Number::SampleAge => Some(Need::Metric(Metric::Waiting)),
            Number::Running => Some(Need::Metric(Metric::Running)),
            Number::KvUsage => Some(Need::Metric(Metric::KvUsage)),
            _ => None,
        }
    }
}

/// A text of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestText {
    /// Model that the client named.
    Model,
    /// Model that the server will see.
    TargetModel,
    /// Path.
    Path,
    /// The header with this name in lower case.
    Header(Box<str>),
}

impl RequestText {
    /// The text, unless it is empty (a body without a model) or too long.
    pub(super) fn of<'r>(&self, request: &'r InferenceRequest) -> Option<&'r str> {
        let text = match self {
            RequestText::Model => Some(&*request.model).filter(|model| !model.is_empty()),
            RequestText::TargetModel => Some(&*request.target_model).filter(|model| !model.is_empty()),
            RequestText::Path => Some(&*request.path),
            RequestText::Header(name) => request.headers.get(name),
        };
        text.filter(|text| text.len() <= MAX_TEXT)
    }
}

/// A text of the endpoint; it changes with the endpoint set only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointText {
    /// Name.
    Name,
    /// Namespace.
    Namespace,
    /// IP address.
    Address,
    /// The label with this key.
    Label(Box<str>),
}

impl EndpointText {
    fn of(&self, endpoint: &Endpoint) -> Option<Box<str>> {
        let text: Box<str> = match self {
            EndpointText::Name => endpoint.name().into(),
            EndpointText::Namespace => endpoint.spec.namespace.as_str().into(),
            EndpointText::Address => endpoint.spec.address.ip().to_string().into(),
            EndpointText::Label(key) => endpoint.label(key)?.into(),
        };
        Some(text).filter(|text| text.len() <= MAX_TEXT)
    }

    /// The texts of all endpoints by slot.
    pub(super) fn column(&self, topology: &Topology) -> TextColumn {
        let mut column = vec![None; topology.capacity()];
        for endpoint in topology.endpoints() {
            if let Some(text) = column.get_mut(endpoint.slot.index()) {
                *text = self.of(endpoint);
            }
        }
        column
    }
}

/// What stands behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A number.
    Number(Number),
    /// A boolean.
    Bool(Number),
    /// Model that the client named.
    Model,
    /// Model that the server will see.
    TargetModel,
    /// Path of the request.
    Path,
    /// Name of the endpoint.
    Name,
    /// Namespace of the endpoint.
    Namespace,
    /// IP address of the endpoint.
    Address,
    /// Request headers by name.
    Headers,
    /// Labels by key.
    Labels,
    /// Custom metrics by key.
    Metrics,
}

impl Item {
    /// What it is, or what its values are.
    pub const fn kind(self) -> Kind {
        match self {
            Item::Number(_) | Item::Metrics => Kind::Number,
            Item::Bool(_) => Kind::Bool,
            _ => Kind::Text,
        }
    }

    /// Whether it is read with a key in brackets.
    pub const fn is_map(self) -> bool {
        matches!(self, Item::Headers | Item::Labels | Item::Metrics)
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    /// `request` or `endpoint`.
    pub group: &'static str,
    /// Name in the group.
    pub field: &'static str,
    /// What it is.
    pub item: Item,
}

const fn row(group: &'static str, field: &'static str, item: Item) -> Attribute {
    Attribute { group, field, item }
}

/// Every attribute.
pub const TABLE: &[Attribute] = &[
    row("request", "model", Item::Model),
    row("request", "target_model", Item::TargetModel),
    row("request", "path", Item::Path),
    row("request", "headers", Item::Headers),
    row("request", "prompt_tokens", Item::Number(Number::PromptTokens)),
    row("request", "max_output_tokens", Item::Number(Number::MaxOutputTokens)),
    row("request", "streaming", Item::Bool(Number::Streaming)),
    row("endpoint", "name", Item::Name),
    row("endpoint", "namespace", Item::Namespace),
    row("endpoint", "address", Item::Address),
    row("endpoint", "port", Item::Number(Number::Port)),
    row("endpoint", "labels", Item::Labels),
    row("endpoint", "waiting_requests", Item::Number(Number::Waiting)),
    row("endpoint", "running_requests", Item::Number(Number::Running)),
    row("endpoint", "kv_cache_usage", Item::Number(Number::KvUsage)),
    row("endpoint", "metrics", Item::Metrics),
    row("endpoint", "sample_age", Item::Number(Number::SampleAge)),
    row("endpoint", "inflight_requests", Item::Number(Number::InFlightRequests)),
    row("endpoint", "inflight_tokens", Item::Number(Number::InFlightTokens)),
    row("endpoint", "prefix_match", Item::Number(Number::PrefixMatch)),
];
