//! Whole requests through a real Envoy, in both ways that Envoy can be told the endpoint (protocol.md 7):
//! client, Envoy, this picker, simulated model servers. Needs the binary that `scripts/get-envoy` fetches.
//!
//! Each test starts the systems it needs, sends real HTTP, and ends with [`stack::Stack::finish`].

#[path = "support/log.rs"]
#[allow(dead_code, reason = "shared with other test programs; each uses its part")]
mod log;
#[path = "support/page.rs"]
#[allow(dead_code, reason = "shared with other test programs; each uses its part")]
mod page;
#[path = "support/stack.rs"]
#[allow(dead_code, reason = "shared with other test programs; each uses its part")]
mod stack;

#[path = "e2e/affinity.rs"]
mod affinity;
#[path = "e2e/bodies.rs"]
mod bodies;
#[path = "e2e/conformance.rs"]
mod conformance;
#[path = "e2e/failures.rs"]
mod failures;
#[path = "e2e/holding.rs"]
mod holding;
#[path = "e2e/hostile.rs"]
mod hostile;
#[path = "e2e/modes.rs"]
mod modes;
#[path = "e2e/operation.rs"]
mod operation;
#[path = "e2e/policies.rs"]
mod policies;
#[path = "e2e/rewrites.rs"]
mod rewrites;
#[path = "e2e/routing.rs"]
mod routing;
