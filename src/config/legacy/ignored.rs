//! Parameters that no longer do anything and are dropped, as in the picker we replace.

use super::{get_mut, plugins, take, type_of};
use crate::domain::node::{Node, Problems};

const IGNORED: [(&str, &str, &str); 3] = [
    ("active-request-scorer", "requestTimeout", "in-flight work is given back when the stream ends"),
    ("no-hit-lru-scorer", "prefixPluginType", "the producer is named by `prefixMatchInfoProducerName`"),
    ("no-hit-lru-scorer", "prefixPluginName", "the producer is named by `prefixMatchInfoProducerName`"),
];

pub(super) fn translate(document: &mut Node, problems: &mut Problems) {
    for (i, plugin) in plugins(document).iter_mut().enumerate() {
        for (kind, key, why) in IGNORED {
            if type_of(plugin) != kind {
                continue;
            }
            if let Some((at, _)) = get_mut(plugin, "parameters").and_then(|p| take(p, key)) {
                problems.warn(
                    at,
                    format!("plugins[{i}].parameters.{key}"),
                    format!("`{key}` is ignored: {why}"),
                    "remove it",
                );
            }
        }
    }
}
