//! Scheduling profiles and their handler.

use std::sync::Arc;

use super::plugins::Plugins;
use crate::config::document::{Document, Placed, ProfileEntry, ProfilePlugin};
use crate::domain::node::{Node, Position, Problems, Value};
use crate::scheduling::plugin::Handler;
use crate::scheduling::profile::{NamedFilter, Profile, WeightedScorer};

/// One line of a resolved profile, for the rendering.
pub(in crate::config) struct Line {
    /// Plugin name.
    pub plugin: Arc<str>,
    /// Weight, if it scores.
    pub weight: Option<f64>,
    /// Why it is there although nobody wrote it.
    pub origin: Option<&'static str>,
}

/// The resolved profiles.
#[derive(Default)]
pub(in crate::config) struct Profiles {
    /// Ready to run; complete when no error was recorded.
    pub profiles: Vec<Profile>,
    /// As they are rendered.
    pub names: Vec<(Arc<str>, Vec<Line>)>,
    /// Whether the only profile was made up because none was written.
    pub implied: bool,
}

/// Parts of a profile that is being put together.
#[derive(Default)]
struct Parts {
    filters: Vec<NamedFilter>,
    scorers: Vec<WeightedScorer>,
    picker: Option<usize>,
    lines: Vec<Line>,
}

pub(super) fn resolve(document: &Document, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Profiles {
    let mut resolved = Profiles::default();
    if document.scheduling_profiles.is_empty() {
        resolved.implied = true;
        let mut parts = Parts::default();
        for index in 0..plugins.entries().len() {
            let entry = plugins.entry(index);
            let built = &entry.built;
            if entry.origin.is_some() || (built.filter.is_none() && built.scorer.is_none() && built.picker.is_none()) {
                continue;
            }
            // A detector is a filter as well, but declaring one does not ask for a filter.
            if plugins.tables.saturation.iter().any(|k| k.about.kind == entry.declared.kind) {
                continue;
            }
            let at = entry.declared.at;
            let path = entry.declared.path.trim_end_matches(".parameters").to_owned();
            plugins.mark_used(index);
            parts.add(index, None, (at, &path), plugins, problems);
        }
        finish("default", parts, &mut resolved, (Position::default(), "plugins"), plugins, problems);
        return resolved;
    }

    let mut seen: Vec<(String, Position)> = Vec::new();
    for Placed { value: ProfileEntry { name, plugins: refs }, at, path } in &document.scheduling_profiles {
        let label = match name.as_ref().filter(|n| !n.value.is_empty()) {
            None => {
                problems.error(*at, format!("{path}.name"), "the profile has no name", "add `name:`");
                String::new()
            }
            Some(name) => {
                match seen.iter().find(|(n, _)| *n == name.value) {
                    Some((_, first)) => problems.error(
                        name.at,
                        &name.path,
                        format!("two profiles are called `{}`, the first on line {}", name.value, first.line),
                        "give this one another name",
                    ),
                    None => seen.push((name.value.clone(), name.at)),
                }
                name.value.clone()
            }
        };
        let mut parts = Parts::default();
        for Placed { value: ProfilePlugin { plugin_ref, weight }, at, path } in refs {
            let Some(index) = plugins.follow(plugin_ref.as_ref(), (*at, path), problems) else {
                weight.as_ref().and_then(|w| check_weight(w, problems));
                continue;
            };
            parts.add(index, weight.as_ref(), (*at, path), plugins, problems);
        }
        finish(&label, parts, &mut resolved, (*at, path), plugins, problems);
    }
    resolved
}

/// A weight that can be multiplied with: finite and not negative.
fn check_weight(weight: &Placed<Node>, problems: &mut Problems) -> Option<f64> {
    let number = match weight.value.value {
        Value::Integer(i) => Some(i as f64),
        Value::Float(x) => Some(x),
        _ => None,
    };
    match number {
        Some(x) if x >= 0.0 && (x as f32).is_finite() => Some(x),
        _ => {
            let found = weight.value.describe();
            problems.error(
                weight.at,
                &weight.path,
                format!("the weight is {found}, and a weight is a finite number from 0"),
                "write a number such as 1 or 2.5",
            );
            None
        }
    }
}

impl Parts {
    fn add(
        &mut self,
        index: usize,
        weight: Option<&Placed<Node>>,
        (at, path): (Position, &str),
        plugins: &Plugins<'_>,
        problems: &mut Problems,
    ) {
        let given = weight.and_then(|w| check_weight(w, problems));
        if plugins.failed(index) {
            return;
        }
        let entry = plugins.entry(index);
        let (name, built) = (&entry.declared.name, &entry.built);
        if self.lines.iter().any(|line| line.plugin == *name) {
            problems.warn(
                at,
                path,
                format!("`{name}` is in this profile twice and counts twice"),
                "remove one of the two",
            );
        }
        if let Some(filter) = &built.filter {
            self.filters.push((name.clone(), filter.clone()));
        }
        if let Some(scorer) = &built.scorer {
            let weight = given.unwrap_or(1.0) as f32;
            self.scorers.push(WeightedScorer { name: name.clone(), weight, scorer: scorer.clone() });
        } else if let Some(weight) = weight {
            let message = format!("`{name}` is not a scorer: its weight has no effect");
            problems.warn(weight.at, &weight.path, message, "remove the weight");
        }
        if built.picker.is_some() {
            match self.picker {
                None => self.picker = Some(index),
                Some(first) => problems.error(
                    at,
                    path,
                    format!("the profile has two pickers, `{}` and `{name}`", plugins.entry(first).declared.name),
                    "keep one of them",
                ),
            }
        }
        if built.filter.is_none() && built.scorer.is_none() && built.picker.is_none() {
            problems.warn(
                at,
                path,
                format!("`{name}` is of type `{}` and does nothing in a profile", entry.declared.kind),
                "remove it from the profile; it works by being declared",
            );
        }
        let weight = built.scorer.as_ref().map(|_| given.unwrap_or(1.0));
        self.lines.push(Line { plugin: name.clone(), weight, origin: None });
    }
}

/// Completes a profile with a picker.
fn finish(
    name: &str,
    mut parts: Parts,
    resolved: &mut Profiles,
    (at, path): (Position, &str),
    plugins: &mut Plugins<'_>,
    problems: &mut Problems,
) {
    let picker = parts.picker.or_else(|| {
        let declared = plugins.entries().iter().position(|e| e.built.picker.is_some());
        let index = match declared {
            Some(index) => {
                plugins.mark_used(index);
                index
            }
            None => plugins.add("max-score-picker", "the profile has no picker", problems)?,
        };
        let plugin = plugins.entry(index).declared.name.clone();
        parts.lines.push(Line { plugin, weight: None, origin: Some("the profile named no picker") });
        Some(index)
    });
    let name: Arc<str> = Arc::from(name);
    if let Some(entry) = picker.map(|i| plugins.entry(i))
        && let Some(picker) = &entry.built.picker
    {
        if parts.scorers.is_empty() && !entry.built.weighs_load && problems.errors.is_empty() {
            let message = format!("no scorer in the profile `{name}`: its endpoints are picked without regard to load");
            let fix = "pick with cost-picker, or add scorers, such as queue-scorer and prefix-cache-scorer";
            problems.warn(at, path, message, fix);
        }
        resolved.profiles.push(Profile {
            name: name.clone(),
            filters: parts.filters,
            scorers: parts.scorers,
            picker: (entry.declared.name.clone(), picker.clone()),
        });
    }
    resolved.names.push((name, parts.lines));
}

/// The one profile handler.
pub(super) fn handler(profiles: usize, plugins: &mut Plugins<'_>, problems: &mut Problems) -> Option<Arc<dyn Handler>> {
    const SINGLE: &str = "single-profile-handler";
    let declared: Vec<usize> =
        (0..plugins.entries().len()).filter(|i| plugins.entry(*i).built.handler.is_some()).collect();
    for index in &declared {
        plugins.mark_used(*index);
    }
    let index = match declared.as_slice() {
        [one] => *one,
        [] if plugins.entries().iter().any(|e| e.declared.kind.ends_with("-profile-handler")) => return None,
        [] if profiles == 1 => plugins.add(SINGLE, "there is one profile and no handler", problems)?,
        [] => {
            let handlers: Vec<&str> = plugins
                .tables
                .rows()
                .map(|r| r.about.kind)
                .filter(|k| k.ends_with("-profile-handler") && *k != SINGLE)
                .collect();
            let fix = if handlers.is_empty() {
                "keep one profile: this version has no handler for several".to_owned()
            } else {
                format!("declare one of {}", handlers.join(", "))
            };
            problems.error(
                Position::default(),
                "plugins",
                format!("there are {profiles} profiles and no profile handler to choose among them"),
                fix,
            );
            return None;
        }
        [first, second, ..] => {
            let entry = &plugins.entry(*second).declared;
            problems.error(
                entry.at,
                entry.path.trim_end_matches(".parameters"),
                format!("`{}` and `{}` are both profile handlers", plugins.entry(*first).declared.name, entry.name),
                "keep one of them",
            );
            return None;
        }
    };
    let entry = plugins.entry(index);
    if entry.declared.kind == SINGLE && profiles > 1 {
        problems.error(
            entry.declared.at,
            entry.declared.path.trim_end_matches(".parameters"),
            format!("`{SINGLE}` runs one profile, and there are {profiles}"),
            "keep one profile, or declare another profile handler",
        );
    }
    entry.built.handler.clone()
}
