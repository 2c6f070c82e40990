//! Pointsman: an endpoint picker for LLM inference.
//!
//! Bytes come in at the edges, a pure function decides, the edges carry the answer out. Everything
//! else keeps the decision's inputs fresh.

pub mod domain;

pub mod dialect;
pub mod pool;
pub mod scheduling;
pub mod signals;

pub mod config;
pub mod director;
pub mod telemetry;

pub mod collector;
pub mod discovery;
pub mod extproc;

pub mod admin;
pub mod lifecycle;
pub mod pb;

pub mod app;
pub mod cli;
pub mod sim;
