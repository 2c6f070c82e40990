//! The ext_proc edge: the gRPC stream on which a data plane (Envoy and those that speak like it) shows us each
//! request and response and takes our answers.
//!
//! ```text
//! stream ── prost ──▶ convert ──▶ machine (no I/O) ──▶ actions ──▶ respond ── prost ──▶ stream
//!                                     │   ▲
//!                                     ▼   │ decide, observe, end
//!                                  exchange (the director)
//! ```
//!
//! Invariants: protobuf types appear only in `convert` and `respond` (and as opaque messages in `stream` and
//! `service`); every stream that sent a message ends its exchange exactly once; body bytes are sliced, not copied;
//! nothing here waits for time. Sections and R-numbers in these modules are those of the protocol digest.
//!
//! Rejected: a task and a channel per stream (a fifth more CPU for small bodies), and one loop that mixes
//! reading, protocol and decision (every order of messages must be defined, which only a machine that can be
//! driven by a property test shows).

mod body;
mod convert;
pub mod exchange;
mod grpc;
pub mod listener;
mod live;
pub mod machine;
mod respond;
mod service;
mod stream;
mod subset;
pub mod tls;
pub mod workers;

pub use exchange::{CompleteRequest, Exchange, Exchanges, Route, SetHeader};
pub use respond::{DESTINATION, DROPPED_REASON, SCORES};
pub use service::{Answers, CONTROL_HEADERS, ExtProc, ExtProcServer, SERVICE_NAME, Settings};
pub use subset::{SubsetEntry, SubsetHint};
