//! GAIE v1.3 and v1.4 called the section `data` that is now `dataLayer`.

use super::{get_mut, put, take};
use crate::domain::node::{Node, Problems};

pub(super) fn translate(document: &mut Node, problems: &mut Problems) {
    if document.get("data").is_none() {
        return;
    }
    if get_mut(document, "dataLayer").is_some() {
        let at = document.get("data").map(|n| n.at).unwrap_or_default();
        problems.error(at, "data", "`data` and `dataLayer` are both there", "merge `data` into `dataLayer`");
        take(document, "data");
        return;
    }
    if let Some((at, value)) = take(document, "data") {
        problems.warn(
            at,
            "data",
            "the section `data` of GAIE v1.3 and v1.4 is read as `dataLayer`",
            "rename it to `dataLayer`",
        );
        put(document, "dataLayer", at, value);
    }
}
