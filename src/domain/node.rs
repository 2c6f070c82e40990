//! A configuration value that remembers where it was written.
//!
//! The YAML reader produces a tree of these; every later error names line, column and path. Typed
//! decoding (`scheduling::params`) reads from it and collects all problems instead of the first.

use std::fmt;

/// Longest text of a file that a problem quotes, in bytes.
const MAX_QUOTE: usize = 120;
/// Longest path, message or fix, in bytes. A key of the file may stand in each of them, and it ends in a log.
const MAX_WORDS: usize = 4096;

/// Line and column, both from 1; zero when the value came from a default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line from 1.
    pub line: u32,
    /// Column from 1.
    pub column: u32,
}

/// A value and its place in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Where the value starts.
    pub at: Position,
    /// The value.
    pub value: Value,
}

/// The shapes of YAML that configuration uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Key, place of the key, value; keys are unique.
    Mapping(Vec<(String, Position, Node)>),
}

impl Node {
    /// What a person would call this value in an error; long text is cut.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Integer(i) => format!("`{i}`"),
            Value::Float(x) => format!("`{x}`"),
            Value::String(s) => format!("text `{}`", cut(s.clone(), MAX_QUOTE)),
            Value::Sequence(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
        }
    }

    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(k, _, _)| k == key).map(|(_, _, v)| v),
            _ => None,
        }
    }

    /// The text, if this is text.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(s) => Some(s),
            _ => None,
        }
    }
}

/// One thing that is wrong with a configuration: where, what the rule is, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Place in the file, if it has one.
    pub at: Position,
    /// Path in the document, such as `plugins[2].parameters.threshold`.
    pub path: String,
    /// What is wrong, with the value and the rule.
    pub message: String,
    /// What to write instead.
    pub fix: String,
}

impl Problem {
    fn new(at: Position, mut path: String, message: String, fix: String) -> Self {
        if path.is_empty() {
            path.push_str("(document)");
        }
        Self { at, path: cut(path, MAX_WORDS), message: cut(message, MAX_WORDS), fix: cut(fix, MAX_WORDS) }
    }
}

/// `text`, cut between characters to `limit` bytes with a mark that it was.
fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push('…');
    }
    text
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.line > 0 {
            write!(f, "{}:{}: ", self.at.line, self.at.column)?;
        }
        write!(f, "{}: {}", self.path, self.message)?;
        if !self.fix.is_empty() {
            write!(f, " (fix: {})", self.fix)?;
        }
        Ok(())
    }
}

/// Problems and warnings found so far.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// What stops start-up.
    pub errors: Vec<Problem>,
    /// What is accepted but should be changed (deprecated names, translated generations).
    pub warnings: Vec<Problem>,
}

impl Problems {
    /// Records an error.
    pub fn error(&mut self, at: Position, path: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) {
        self.errors.push(Problem::new(at, path.into(), message.into(), fix.into()));
    }

    /// Records a warning.
    pub fn warn(&mut self, at: Position, path: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) {
        self.warnings.push(Problem::new(at, path.into(), message.into(), fix.into()));
    }
}

/// The known name closest to `wrong` by edit distance, if at most half of it differs.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Relative to the length, or a short name would be "near" everything.
    let relative = |name: &str| edit_distance(wrong, name) * 1000 / name.len().max(wrong.len()).max(1);
    known.into_iter().map(|name| (relative(name), name)).min().filter(|(distance, _)| *distance <= 500).map(|(_, n)| n)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(128).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(128).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_quotes_no_megabytes() {
        // Found by fuzzing: the whole file stood in one error.
        let long = "ä".repeat(1 << 20);
        let node = Node { at: Position::default(), value: Value::String(long.clone()) };
        assert_eq!(node.describe(), format!("text `{}…`", "ä".repeat(MAX_QUOTE / 2)));
        let mut problems = Problems::default();
        problems.error(node.at, long.clone(), long.clone(), long.clone());
        problems.warn(node.at, "", "message", "fix");
        assert!(problems.errors[0].to_string().len() < 3 * MAX_WORDS + 100);
        assert_eq!(problems.warnings[0].to_string(), "(document): message (fix: fix)");
    }

    #[test]
    fn nearest_name_is_suggested_only_when_close() {
        let known = ["queue-scorer", "prefix-cache-scorer", "kv-cache-utilization-scorer"];
        assert_eq!(nearest("queue-score", known), Some("queue-scorer"));
        assert_eq!(nearest("prefix-scorer", known), Some("prefix-cache-scorer"));
        assert_eq!(nearest("zzz", known), None);
    }
}
