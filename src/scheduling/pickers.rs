//! The table of pickers, one file each.

use super::plugin::Row;

/// Every picker that a configuration can name.
pub const TABLE: &[Row] = &[];
