//! Stand-ins for the world around the picker: a simulated model server and a launcher for a real
//! Envoy. The demo, the tests and the benches use them; the picker itself never does.
//!
//! - [`server`]: one endpoint that speaks the APIs of a model server, with a prefix cache, a batch, a
//!   queue and a page of metrics that behave like vLLM's, and with faults on demand;
//! - [`envoy`]: the two bootstraps of `config/envoy/` and the process that runs them;
//! - [`client`]: the smallest HTTP client that these two need.
//!
//! A simulated server was preferred to a mock with canned answers, because routing quality shows
//! only when cache hits, queueing and decoding answer each other.

pub mod client;
pub mod envoy;
pub mod server;

mod answer;
mod blocks;
mod echo;
mod engine;
mod page;
mod prompt;
