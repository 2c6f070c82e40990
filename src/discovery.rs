//! Where endpoints come from. Each source turns what it sees into
//! [`EndpointSpec`](crate::domain::EndpointSpec)s and hands the whole set to the pool.

pub mod file;
pub mod kubernetes;
