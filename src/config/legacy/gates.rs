//! Feature gates that no longer exist because the feature is always on.

use super::get_mut;
use crate::domain::node::{Node, Problems, Value};

const GONE: [&str; 3] = ["dataLayer", "prepareDataPlugins", "enableLegacyMetrics"];

pub(super) fn translate(document: &mut Node, problems: &mut Problems) {
    let Some(Node { value: Value::Sequence(gates), .. }) = get_mut(document, "featureGates") else { return };
    let mut index = 0;
    gates.retain(|gate| {
        let path = format!("featureGates[{index}]");
        index += 1;
        let name = gate.as_str().map(|s| s.split('=').next().unwrap_or(s).trim()).unwrap_or_default();
        let gone = GONE.contains(&name);
        if gone {
            problems.warn(
                gate.at,
                path,
                format!("the feature gate `{name}` no longer exists and is ignored"),
                "remove it",
            );
        }
        !gone
    });
}
