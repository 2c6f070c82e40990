//! Where endpoints come from. Each source turns what it sees into
//! [`EndpointSpec`](crate::domain::EndpointSpec)s and hands the pool the whole set, or what changed of it.

pub mod file;
pub mod kubernetes;
