//! The table of profile handlers, one file each.

pub mod single_profile;

use super::plugin::Row;

/// Every handler that a configuration can name.
pub const TABLE: &[Row] = &[single_profile::ROW];
