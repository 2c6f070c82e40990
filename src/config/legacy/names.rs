//! Types that were renamed: `kv-cache-scorer` of GAIE v0.5.

use super::{get_mut, name_of, plugins, put, text, type_of};
use crate::domain::node::{Node, Problems, Value};

const RENAMED: [(&str, &str); 1] = [("kv-cache-scorer", "kv-cache-utilization-scorer")];

pub(super) fn translate(document: &mut Node, problems: &mut Problems) {
    for (i, plugin) in plugins(document).iter_mut().enumerate() {
        let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == type_of(plugin)) else { continue };
        // Profiles refer to the plugin by its name, which was the old type if none was given.
        let name = name_of(plugin).to_owned();
        let unnamed = plugin.get("name").is_none();
        let Some(kind) = get_mut(plugin, "type") else { continue };
        let at = kind.at;
        kind.value = Value::String((*new).to_owned());
        problems.warn(
            at,
            format!("plugins[{i}].type"),
            format!("`{old}` is now called `{new}`"),
            format!("write `type: {new}`"),
        );
        if unnamed {
            put(plugin, "name", at, text(at, name));
        }
    }
}
