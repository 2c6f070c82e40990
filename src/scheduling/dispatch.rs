//! What a configuration says about when requests are sent: plain data that the plugin of `admission`
//! builds and the director works by.

use std::time::Duration;

use super::params::{Param, wrong_choice};
use crate::domain::node::{Node, Problems, Value};

/// When a request is sent to the endpoint that was chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchMode {
    /// At once; nothing is computed.
    Off,
    /// At once; the order key is computed, for the engine's own queue.
    Immediate,
    /// When the endpoint can start on it.
    Hold,
}

impl Param for DispatchMode {
    const TYPE: &'static str = "one of off immediate hold";

    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        match (&node.value, node.as_str()) {
            // YAML reads a bare `off` as a boolean.
            (Value::Bool(false), _) | (_, Some("off")) => Some(Self::Off),
            (_, Some("immediate")) => Some(Self::Immediate),
            (_, Some("hold")) => Some(Self::Hold),
            _ => {
                wrong_choice(node, path, &["off", "immediate", "hold"], problems);
                None
            }
        }
    }
}

/// Settings of just-in-time dispatch.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// When requests are sent.
    pub mode: DispatchMode,
    /// Own part of the wait, in seconds, at the best endpoint above which a request is held (`H`).
    pub hold_above: f32,
    /// Seconds of waiting that one second of own prefill counts for in the order (`kappa`).
    pub order_weight: f64,
    /// Requests at the head of the queue that one plan looks at.
    pub plan_depth: usize,
    /// Most requests that are held.
    pub max_requests: usize,
    /// Most bytes of bodies that are held.
    pub max_bytes: u64,
    /// Longest time that a request is held.
    pub max_hold: Duration,
    /// Samples of the prefill rate without which nothing is held.
    pub min_samples: u32,
    /// Prefill seconds by which a flow may be ahead of its share.
    pub fairness_quantum: Duration,
    /// Whether the order key is written into the `priority` member of bodies.
    pub write_priority: bool,
    /// Ordinal of the prefix producer that says what is cached.
    pub prefix: usize,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self {
            mode: DispatchMode::Hold,
            hold_above: 0.2,
            order_weight: 20.0,
            plan_depth: 64,
            max_requests: 10_000,
            max_bytes: 1 << 30,
            max_hold: Duration::from_secs(60),
            min_samples: 20,
            fairness_quantum: Duration::from_secs(2),
            write_priority: false,
            prefix: 0,
        }
    }
}
