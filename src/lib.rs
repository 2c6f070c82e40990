//! Pointsman: an endpoint picker for LLM inference.
//!
//! Bytes come in at the edges, a pure function decides, the edges carry the answer out. Everything
//! else keeps the decision's inputs fresh. The way of one request, the rooms and the invariants are in
//! `docs/architecture.md`; `tests/architecture.rs` holds the sources to them.
//!
//! Reading order: [`domain`] (plain data), [`scheduling`] (the decision), [`dialect`] and [`signals`]
//! (what it knows of a request), [`pool`] (what it knows of endpoints), [`admission`] (who waits), [`director`] (the order of work),
//! [`extproc`] (the wire); then what keeps inputs fresh ([`discovery`], [`collector`]), what configures
//! it ([`config`]), what is told to operators ([`telemetry`], [`admin`]), and the process around it
//! ([`lifecycle`], [`app`], [`cli`]). [`sim`] stands in for model servers in the demo, tests and benches; [`replay`]
//! plays traces through the same code in virtual time.

pub mod domain;

pub mod admission;
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
pub mod replay;
pub mod sim;
