//! The table of filters, one file each.

use super::plugin::Row;

/// Every filter that a configuration can name.
pub const TABLE: &[Row] = &[];
