//! wip
pub mod mapping;
pub mod parse;
pub mod reading;
