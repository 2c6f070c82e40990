//! The ext_proc edge: the gRPC stream on which a data plane (Envoy and those that speak like it) shows us each
//! request and response and takes our answers.
//!
//! ```text
//! DATA ──▶ grpc ──▶ convert ──▶ machine (no I/O) ──▶ actions ──▶ respond ──▶ DATA
//!                                   │   ▲
//!                                   ▼   │ decide, observe, end
//!                                exchange (the director)
//! ```
//!
//! `listener` accepts, `workers` are the threads that connections live on, `service` is the one method as HTTP/2
//! sees it, `stream` drives the line above as its answer is polled.
//!
//! Invariants: protobuf types appear only in `grpc`, `convert` and `respond`; every stream that sent a message ends
//! its exchange exactly once; body bytes are sliced, and copied at most once, when a body that came in several
//! frames is joined to be read; nothing but the listener waits for time. Sections and R-numbers in these modules are those of the protocol digest.
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
