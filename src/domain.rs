//! The plain data that every other room talks in: endpoints, load, requests, prompts, decisions.
//!
//! Invariants: nothing here performs I/O, reads a clock or draws random numbers, and no type of the
//! wire (protobuf), of Kubernetes or of the async runtime appears. An endpoint is addressed by its
//! dense [`Slot`], never by its name, so that per-request state is an array and a set of endpoints
//! is a bitset.
//!
//! Rejected: maps keyed by pod name (an allocation and a hash per endpoint per scorer), and one big
//! request context that several layers write to; each step here hands on a new, smaller value.

pub mod decision;
pub mod endpoint;
pub mod headers;
pub mod load;
pub mod node;
pub mod outcome;
pub mod policy;
pub mod prompt;
pub mod record;
pub mod request;
pub mod served;
pub mod signals;
pub mod slots;
pub mod snapshot;
pub mod subset;
pub mod time;
pub mod usage;

pub use decision::{Costs, Decision, Explanation, ProfileResult, Ranked, Rejection, RejectionReason};
pub use endpoint::{Endpoint, EndpointSpec, Roles};
pub use headers::Headers;
pub use load::{AdapterId, Freshness, LoadDetail, LoadSample, LoadTable, LoraState};
pub use outcome::Outcome;
pub use policy::{ObjectiveSpec, Policies, RewriteRule, RewriteSpec, RewriteTarget};
pub use prompt::{Prompt, Segment};
pub use record::{Ended, Record};
pub use request::InferenceRequest;
pub use served::Served;
pub use signals::{Account, AccountView, CacheView, InFlightView, PrefixMatch, Signals};
pub use slots::{EndpointSet, Slot};
pub use snapshot::{PoolIdentity, Snapshot, Topology};
pub use subset::SubsetEntry;
pub use time::Timestamp;
pub use usage::Usage;
