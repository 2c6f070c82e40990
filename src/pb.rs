//! Generated code only: the ext_proc wire types of `proto/`, encoded and decoded by `extproc`.
//!
//! Rejected: the complete Envoy types of a crate (bodies as `Vec<u8>` cost a copy each way, strings a
//! check per header, and building them took longer than the rest of this crate); they remain the oracle of
//! `tests/wire_oracle.rs`.
#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/wire.rs"));
