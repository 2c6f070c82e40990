//! The table of handlers, one file each.

use super::plugin::Row;

/// Every handler that a configuration can name.
pub const TABLE: &[Row] = &[];
