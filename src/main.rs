//! The `pointsman` command. Reads flags and environment, and leaves everything else to the library.

fn main() {}
