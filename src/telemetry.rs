//! What the process tells about itself: metrics, logs, traces, one access-log line per request.

pub mod access;
pub mod log;
pub mod metrics;
pub mod replay_log;
pub mod trace;
