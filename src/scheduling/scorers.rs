//! The table of scorers, one file each.

use super::plugin::Row;

/// Every scorer that a configuration can name.
pub const TABLE: &[Row] = &[];
