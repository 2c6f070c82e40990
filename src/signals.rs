//! (to be written)

pub mod approx_prefix;
pub mod token_estimate;
