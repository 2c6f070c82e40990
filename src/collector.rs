//! wip
pub mod parse;
