//! (to be written)

pub mod listener;
pub mod tls;
