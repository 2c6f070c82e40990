//! The table of plugins that only follow the answer, one file each. They work by being declared.

pub mod served_verifier;

use super::plugin::Row;

/// Every response plugin that a configuration can name.
pub const TABLE: &[Row] = &[served_verifier::ROW];
