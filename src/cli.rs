//! The command line: flags in Go's spelling, subcommands, and exit codes.
//!
//! Nothing here reads the process's arguments or environment: `main.rs` hands both in, so that tests
//! do the same. Warnings are returned, because the logger starts later.

pub mod check;
pub mod flags;

pub use flags::{Invocation, Start, parse};

/// Exit code of wrong flags or a wrong configuration (`EX_USAGE`), before any port is bound.
pub const EXIT_USAGE: u8 = 64;
