//! Pointsman: an endpoint picker for LLM inference.
//!
//! Bytes come in at the edges, a pure function decides, the edges carry the answer out. Everything
//! else keeps the decision's inputs fresh.

pub mod domain;
pub mod scheduling;
