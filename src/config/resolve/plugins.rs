//! The plugins of one configuration: declared, checked, built, looked up by name.

use std::sync::Arc;

use crate::config::Declared;
use crate::config::document::{Document, Placed};
use crate::config::tables::{Kind, Tables, UPSTREAM};
use crate::domain::node::{Node, Position, Problems, nearest};
use crate::scheduling::dispatch::Dispatch;
use crate::scheduling::plugin::{About, Build, Built, Producer, Registry, Stability};

/// One plugin.
pub(in crate::config) struct Entry {
    /// Name, type, parameters.
    pub declared: Declared,
    /// Its table entry.
    pub about: About,
    /// The instance, if a row builds this type and building went well.
    pub built: Built,
    /// Why it is there although nobody wrote it.
    pub origin: Option<String>,
    used: bool,
    failed: bool,
}

/// What a reference must point to.
pub(in crate::config) struct Group<'t> {
    /// What one member is called, such as "a parser".
    pub noun: &'static str,
    /// Its types.
    pub kinds: &'t [Kind],
}

impl Group<'_> {
    fn has(&self, kind: &str) -> bool {
        self.kinds.iter().any(|k| k.about.kind == kind)
    }
}

/// All plugins, in the order of the file and then of creation.
pub(in crate::config) struct Plugins<'t> {
    /// The types that exist.
    pub tables: &'t Tables,
    entries: Vec<Entry>,
    /// Names whose entry was refused: references to them are not reported again.
    refused: Vec<String>,
    registry: Registry,
    producers: Vec<usize>,
}

/// When a producer is built and run: each after those that it may read.
fn stage(kind: &str) -> u8 {
    match kind {
        "token-producer" => 0,
        "session-id-producer" => 1,
        "inflight-load-producer" => 4,
        kind if kind.contains("prefix") => 2,
        _ => 3,
    }
}

impl<'t> Plugins<'t> {
    pub fn new(tables: &'t Tables) -> Self {
        Self { tables, entries: Vec::new(), refused: Vec::new(), registry: Registry::default(), producers: Vec::new() }
    }

    /// Checks the entries of the file and takes the good ones.
    pub fn declare(&mut self, document: &Document, allow_experimental: bool, problems: &mut Problems) {
        for entry in &document.plugins {
            let Placed { value, at, path } = entry;
            let written = value.name.as_ref().filter(|n| !n.value.is_empty());
            let Some(kind) = value.kind.as_ref().filter(|k| !k.value.is_empty()) else {
                problems.error(
                    *at,
                    format!("{path}.type"),
                    "the plugin has no type",
                    "add `type:` with one of the known plugin types",
                );
                self.refused.extend(written.map(|n| n.value.clone()));
                continue;
            };
            let (name, name_at) = written.map_or((&kind.value, kind.at), |n| (&n.value, n.at));
            if let Some(first) = self.find(name) {
                let first = self.entries[first].declared.at;
                problems.error(
                    name_at,
                    format!("{path}.name"),
                    format!("two plugins are called `{name}`, the first on line {}", first.line),
                    "give this one a `name` of its own",
                );
                continue;
            }
            let Some(about) = self.type_of(kind, problems) else {
                self.refused.push(name.clone());
                continue;
            };
            if about.stability == Stability::Alpha && !allow_experimental {
                problems.error(
                    kind.at,
                    &kind.path,
                    format!("`{}` is experimental and experimental plugins are not allowed", about.kind),
                    "start with --allow-experimental-plugins, or use another plugin",
                );
            }
            self.entries.push(Entry {
                declared: Declared {
                    name: Arc::from(name.as_str()),
                    kind: about.kind,
                    at: *at,
                    path: format!("{path}.parameters"),
                    parameters: value.parameters.as_ref().map(|p| p.value.clone()),
                },
                about,
                built: Built::default(),
                origin: None,
                used: false,
                failed: false,
            });
        }
    }

    /// Name and type of every plugin.
    pub fn names(&self) -> Vec<(Arc<str>, &'static str)> {
        self.entries.iter().map(|e| (Arc::clone(&e.declared.name), e.declared.kind)).collect()
    }

    /// The type that `kind` names, or an error that says what is known.
    fn type_of(&self, kind: &Placed<String>, problems: &mut Problems) -> Option<About> {
        let wrong = kind.value.as_str();
        if let Some(about) = self.tables.find(wrong) {
            if about.kind != wrong {
                problems.warn(
                    kind.at,
                    &kind.path,
                    format!("`{wrong}` is an old name"),
                    format!("write `type: {}`", about.kind),
                );
            }
            return Some(*about);
        }
        let known: Vec<&str> = self.tables.abouts().iter().map(|a| a.kind).collect();
        if UPSTREAM.contains(&wrong) {
            problems.error(
                kind.at,
                &kind.path,
                format!("the plugin type `{wrong}` is known to llm-d-router but not supported by this version"),
                "remove the plugin and its references; the documentation lists what takes its place",
            );
            return None;
        }
        // The fix must be something that works, so only types of this version are suggested.
        let fix = match nearest(wrong, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write one of the known types".to_owned(),
        };
        let message = format!("unknown plugin type `{}`; the known types are {}", shorten(wrong), known.join(", "));
        problems.error(kind.at, &kind.path, message, fix);
        None
    }

    /// Builds what was declared, producers first.
    pub fn build(&mut self, problems: &mut Problems) {
        let is_signal = |kind: &str| self.tables.signals.iter().any(|row| row.about.kind == kind);
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|i| {
            let kind = self.entries[*i].declared.kind;
            if is_signal(kind) { (0, stage(kind), *i) } else { (1, 0, *i) }
        });
        for index in order {
            self.build_one(index, problems);
        }
        self.build_missing(problems);
    }

    /// Creates default producers until nobody lacks one.
    pub fn build_missing(&mut self, problems: &mut Problems) {
        loop {
            let missing = self.registry.take_missing();
            if missing.is_empty() {
                return;
            }
            for signal in missing {
                let kind = signal.default_producer();
                if self.entries.iter().any(|e| e.declared.kind == kind) || self.tables.row(kind).is_none() {
                    // Declared but failed (already reported), or not in this build.
                    if self.tables.row(kind).is_none() {
                        problems.error(
                            Position::default(),
                            "plugins",
                            format!("a plugin needs the signals of `{kind}`, which this version does not have"),
                            "remove the plugins that need it",
                        );
                    }
                    continue;
                }
                self.add(kind, "a plugin reads its signals and none was declared", problems);
            }
        }
    }

    fn build_one(&mut self, index: usize, problems: &mut Problems) {
        let Declared { name, kind, at, path, parameters } = self.entries[index].declared.clone();
        let errors = problems.errors.len();
        let built = match self.tables.row(kind) {
            Some(row) => {
                let mut build = Build {
                    name: &name,
                    path,
                    at,
                    parameters: parameters.as_ref(),
                    registry: &mut self.registry,
                    problems,
                };
                (row.build)(&mut build)
            }
            None => {
                if let Some(kind) = self.tables.kinds().find(|k| k.about.kind == kind) {
                    (kind.check)(parameters.as_ref(), &path, problems);
                }
                Some(Built::default())
            }
        };
        match built {
            Some(built) => {
                if built.producer.is_some() {
                    self.producers.push(index);
                }
                self.registry.instances.push((name, built.clone()));
                self.entries[index].built = built;
                self.entries[index].failed = problems.errors.len() > errors;
            }
            None => {
                if problems.errors.len() == errors {
                    problems.error(at, format!("plugins({name})"), "the plugin could not be built", "");
                }
                self.entries[index].failed = true;
            }
        }
    }

    /// Adds and builds a plugin that nobody wrote, or finds the one that carries its name.
    pub fn add(&mut self, kind: &'static str, why: &str, problems: &mut Problems) -> Option<usize> {
        let Some(about) = self.tables.find(kind).copied() else {
            problems.error(
                Position::default(),
                "plugins",
                format!("the default `{kind}` is needed ({why}) and this version does not have it"),
                "declare another plugin for this purpose",
            );
            return None;
        };
        if let Some(taken) = self.find(kind) {
            let Declared { at, kind: other, .. } = self.entries[taken].declared;
            if other == about.kind {
                return Some(taken);
            }
            problems.error(
                at,
                format!("plugins({kind})"),
                format!("a plugin of type `{other}` has the name of the default `{kind}`, which is needed ({why})"),
                "give it another name",
            );
            return None;
        }
        let index = self.entries.len();
        self.entries.push(Entry {
            declared: Declared {
                name: Arc::from(kind),
                kind: about.kind,
                at: Position::default(),
                path: format!("plugins[{index}].parameters"),
                parameters: None,
            },
            about,
            built: Built::default(),
            origin: Some(why.to_owned()),
            used: true,
            failed: false,
        });
        self.build_one(index, problems);
        Some(index)
    }

    /// The plugin called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.declared.name.as_ref() == name)
    }

    /// The first plugin of a type in `kinds`.
    pub fn first_of(&self, kind: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.declared.kind == kind)
    }

    /// Follows a reference to any plugin; records what is wrong with it.
    pub fn follow(
        &mut self,
        reference: Option<&Placed<String>>,
        (at, path): (Position, &str),
        problems: &mut Problems,
    ) -> Option<usize> {
        let Some(name) = reference.filter(|r| !r.value.is_empty()) else {
            problems.error(
                at,
                format!("{path}.pluginRef"),
                "the reference names no plugin",
                "add `pluginRef:` with the name of a plugin",
            );
            return None;
        };
        if let Some(index) = self.find(&name.value) {
            self.entries[index].used = true;
            return Some(index);
        }
        if self.refused.contains(&name.value) {
            return None;
        }
        let names: Vec<&str> = self.entries.iter().map(|e| e.declared.name.as_ref()).collect();
        let fix = match (nearest(&name.value, names.iter().copied()), self.tables.find(&name.value)) {
            (_, Some(about)) => format!("add `- type: {}` to plugins", about.kind),
            (Some(near), None) => format!("did you mean `{near}`?"),
            (None, None) => "declare it in plugins, or name one that is there".to_owned(),
        };
        let declared = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let message = format!("no plugin is called `{}` (declared: {declared})", shorten(&name.value));
        problems.error(name.at, &name.path, message, fix);
        None
    }

    /// Follows a reference to a plugin of `group`.
    pub fn follow_to(
        &mut self,
        reference: Option<&Placed<String>>,
        place: (Position, &str),
        group: &Group<'_>,
        problems: &mut Problems,
    ) -> Option<usize> {
        let index = self.follow(reference, place, problems)?;
        let Declared { name, kind, .. } = &self.entries[index].declared;
        if group.has(kind) {
            return Some(index);
        }
        let at = reference.map_or(place.0, |r| r.at);
        let path = reference.map_or(place.1, |r| r.path.as_str());
        let kinds = group.kinds.iter().map(|k| k.about.kind).collect::<Vec<_>>().join(", ");
        let fix = if kinds.is_empty() {
            "remove it: this version has none".to_owned()
        } else {
            format!("name a plugin of type {kinds}")
        };
        problems.error(at, path, format!("`{name}` is of type `{kind}`, which is not {}", group.noun), fix);
        None
    }

    /// Warns about plugins that do nothing.
    pub fn warn_unused(&self, problems: &mut Problems) {
        for Entry { declared, built, used, failed, .. } in &self.entries {
            let works_unasked = built.producer.is_some()
                || built.commit.is_some()
                || built.handle.is_some()
                || built.dispatch.is_some();
            if *used || *failed || works_unasked {
                continue;
            }
            problems.warn(
                declared.at,
                declared.path.trim_end_matches(".parameters"),
                format!("the plugin `{}` is declared but used nowhere", declared.name),
                "refer to it, or remove it",
            );
        }
    }

    /// What says when requests are sent; a second one is an error.
    pub fn dispatch(&self, problems: &mut Problems) -> Option<Arc<Dispatch>> {
        let mut all = self.entries.iter().filter(|entry| entry.built.dispatch.is_some());
        let first = all.next()?;
        for second in all {
            problems.error(
                second.declared.at,
                second.declared.path.trim_end_matches(".parameters"),
                format!("`{}` already says when requests are sent, and there can be one only", first.declared.name),
                "remove one of the two",
            );
        }
        first.built.dispatch.clone()
    }

    /// Takes back what a plugin asked to be done for it.
    pub fn withdraw_needs(&mut self, index: usize) {
        self.registry.withdraw_needs(&self.entries[index].declared.name);
    }

    /// Marks a plugin as used.
    pub fn mark_used(&mut self, index: usize) {
        self.entries[index].used = true;
    }

    /// Whether building the plugin failed (and was reported).
    pub fn failed(&self, index: usize) -> bool {
        self.entries[index].failed
    }

    /// All plugins.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// One plugin.
    pub fn entry(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    /// A plugin as other rooms get it.
    pub fn declared(&self, index: usize) -> Declared {
        self.entries[index].declared.clone()
    }

    /// The shared state, for what it says about switched-on work.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Producers in running order.
    pub fn producers(&self) -> impl Iterator<Item = (&Declared, Arc<dyn Producer>)> {
        let mut order = self.producers.clone();
        order.sort_by_key(|i| stage(self.entries[*i].declared.kind));
        order.into_iter().filter_map(|i| {
            let Entry { declared, built, .. } = &self.entries[i];
            Some((declared, built.producer.clone()?))
        })
    }

    /// The shared state, when everything is built.
    pub fn into_registry(self) -> Registry {
        let mut registry = self.registry;
        registry.settle();
        registry
    }
}

/// A name as it may stand in a message.
fn shorten(name: &str) -> String {
    if name.chars().count() <= 80 { name.to_owned() } else { name.chars().take(80).chain(['…']).collect() }
}

/// The parameters of a plugin that were written.
pub(in crate::config) fn is_written(parameters: Option<&Node>, key: &str) -> bool {
    parameters.is_some_and(|p| p.get(key).is_some())
}
