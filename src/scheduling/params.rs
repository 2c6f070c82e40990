//! Typed, strict decoding of configuration values that reports every problem with its place.
//!
//! [`params!`](crate::params) declares a struct once; from that one declaration come the decoder
//! (unknown key, wrong type, out of range: each an error with line, column, path, rule and fix), the
//! defaults and the rows of the parameter reference.
//!
//! Rejected: serde with `deny_unknown_fields`. It stops at the first problem, loses the position
//! inside nested plugin parameters, and the documentation of a parameter would stand elsewhere.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{RangeFrom, RangeInclusive};
use std::time::Duration;

use crate::domain::node::{Node, Position, Problems, Value, nearest};

/// One row of a plugin's parameter reference.
#[derive(Clone, Copy, Debug)]
pub struct ParamSpec {
    /// Key in YAML.
    pub key: &'static str,
    /// Type as shown to the operator.
    pub ty: &'static str,
    /// Default as written in the source.
    pub default: &'static str,
    /// Allowed range as written in the source; empty if any value of the type will do.
    pub range: &'static str,
    /// What it does.
    pub about: &'static str,
}

impl ParamSpec {
    /// The default as an operator writes it: empty if the parameter is absent by default, `None` if the
    /// source's way of writing it is not known here (then the reference cannot be made, a test says).
    pub fn default_text(&self) -> Option<String> {
        let plain = |text: &str| {
            let digits = text.replace('_', "");
            digits.strip_suffix(".0").map_or(digits.clone(), str::to_owned)
        };
        Some(match self.default {
            "None" | "String::new()" | "Vec::new()" | "BTreeMap::new()" => String::new(),
            "Quantity(256 << 20)" => "256Mi".into(),
            "Quantity(1 << 30)" => "1Gi".into(),
            "std::time::Duration::from_millis(200)" => "200ms".into(),
            "std::time::Duration::from_secs(2)" => "2s".into(),
            "std::time::Duration::from_secs(60)" => "60s".into(),
            "true" | "false" => self.default.into(),
            text if text.starts_with('"') => text.split('"').nth(1).unwrap_or_default().into(),
            text if text.starts_with(|c: char| c.is_ascii_digit()) => plain(text),
            variant => {
                // `Scheme::Http` of "one of http https".
                let wanted = variant.rsplit("::").next()?;
                self.ty.split(' ').find(|word| word.replace(['_', '-'], "").eq_ignore_ascii_case(wanted))?.into()
            }
        })
    }
}

/// A type that can be decoded from a configuration value.
pub trait Param: Sized {
    /// Name of the type in messages and docs.
    const TYPE: &'static str;
    /// Decodes `node`, or records why not and returns `None`.
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self>;
}

/// A rule that a decoded value must keep.
pub trait Rule<T> {
    /// `Err` with the rule in words.
    fn check(&self, value: &T) -> Result<(), String>;
}

impl<T: PartialOrd + Display> Rule<T> for RangeInclusive<T> {
    fn check(&self, value: &T) -> Result<(), String> {
        if self.contains(value) { Ok(()) } else { Err(format!("must be between {} and {}", self.start(), self.end())) }
    }
}

impl<T: PartialOrd + Display> Rule<T> for RangeFrom<T> {
    fn check(&self, value: &T) -> Result<(), String> {
        if self.contains(value) { Ok(()) } else { Err(format!("must be at least {}", self.start)) }
    }
}

/// A rule that holds for an optional value when it is given.
pub struct IfGiven<R>(pub R);

impl<T, R: Rule<T>> Rule<Option<T>> for IfGiven<R> {
    fn check(&self, value: &Option<T>) -> Result<(), String> {
        value.as_ref().map_or(Ok(()), |v| self.0.check(v))
    }
}

/// The entries of a mapping while it is being decoded; [`finish`](Fields::finish) rejects leftovers.
pub struct Fields<'n> {
    entries: &'n [(String, Position, Node)],
    path: String,
    taken: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// Opens `node` as a mapping; null and absence count as an empty one.
    pub fn open(node: Option<&'n Node>, path: &str, problems: &mut Problems) -> Self {
        let entries: &[_] = match node.map(|n| (&n.value, n)) {
            None | Some((Value::Null, _)) => &[],
            Some((Value::Mapping(entries), _)) => entries,
            Some((_, n)) => {
                problems.error(
                    n.at,
                    path,
                    format!("expected a mapping, found {}", n.describe()),
                    "write `key: value` lines",
                );
                &[]
            }
        };
        Self { entries, path: path.to_owned(), taken: Vec::new() }
    }

    /// Path of `key` in the document.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The raw value of `key`, which counts as known from now on.
    pub fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        self.taken.push(key);
        self.entries.iter().find(|(k, _, _)| k == key).map(|(_, _, v)| v)
    }

    /// The decoded value of `key`; `None` if absent, null or wrong (then a problem was recorded).
    pub fn optional<T: Param>(&mut self, key: &'static str, problems: &mut Problems) -> Option<T> {
        let node = self.take(key)?;
        if node.value == Value::Null {
            return None;
        }
        T::decode(node, &self.path_of(key), problems)
    }

    /// The decoded value of `key` that also keeps `rule`, or `default`.
    pub fn ruled<T: Param>(&mut self, key: &'static str, default: T, rule: &dyn Rule<T>, problems: &mut Problems) -> T {
        let at = self.entries.iter().find(|(k, _, _)| k == key).map(|(_, _, n)| n);
        match self.optional::<T>(key, problems) {
            None => default,
            Some(value) => match rule.check(&value) {
                Ok(()) => value,
                Err(words) => {
                    let found = at.map(Node::describe).unwrap_or_default();
                    let position = at.map(|n| n.at).unwrap_or_default();
                    problems.error(position, self.path_of(key), format!("{found} is out of range: {words}"), words);
                    default
                }
            },
        }
    }

    /// Records an error for every key that nobody took.
    pub fn finish(self, problems: &mut Problems) {
        for (key, at, _) in self.entries {
            if !self.taken.contains(&key.as_str()) {
                let known = self.taken.join(", ");
                let fix = match nearest(key, self.taken.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`? known: {known}"),
                    None if self.taken.is_empty() => "remove it: nothing can be set here".to_owned(),
                    None => format!("remove it; known: {known}"),
                };
                let path = self.path_of(key);
                problems.error(*at, path, format!("unknown field `{key}`"), fix);
            }
        }
    }
}

/// Any value is allowed.
pub struct Anything;

impl<T> Rule<T> for Anything {
    fn check(&self, _: &T) -> Result<(), String> {
        Ok(())
    }
}

/// A mapping that is declared with [`params!`](crate::params).
pub trait Params: Sized + Default {
    /// Its fields, for the reference.
    const SPEC: &'static [ParamSpec];
    /// Decodes strictly; wrong fields keep their default and are recorded.
    fn decode_fields(node: Option<&Node>, path: &str, problems: &mut Problems) -> Self;
}

impl<P: Params> Param for P {
    const TYPE: &'static str = "mapping";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        Some(P::decode_fields(Some(node), path, problems))
    }
}

/// Declares a strict parameter mapping: documentation, field, type, default, YAML key, optional range.
///
/// ```
/// pointsman::params! {
///     /// Parameters of an example.
///     pub struct Example {
///         /// Requests above which an endpoint counts as busy.
///         threshold: u32 = 128, "threshold", 1..=10_000;
///     }
/// }
/// assert_eq!(Example::default().threshold, 128);
/// ```
#[macro_export]
macro_rules! params {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident : $ty:ty = $default:expr, $key:literal $(, $range:expr)? ; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $vis struct $Name {
            $( $(#[doc = $doc])+ pub $field: $ty, )*
        }

        impl Default for $Name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::scheduling::params::Params for $Name {
            const SPEC: &'static [$crate::scheduling::params::ParamSpec] = &[
                $( $crate::scheduling::params::ParamSpec {
                    key: $key,
                    ty: <$ty as $crate::scheduling::params::Param>::TYPE,
                    default: stringify!($default),
                    range: concat!("" $(, stringify!($range))?),
                    about: concat!($($doc),+),
                }, )*
            ];

            fn decode_fields(
                node: Option<&$crate::domain::node::Node>,
                path: &str,
                problems: &mut $crate::domain::node::Problems,
            ) -> Self {
                #[allow(unused_mut, reason = "a mapping without fields takes nothing")]
                let mut fields = $crate::scheduling::params::Fields::open(node, path, problems);
                let decoded = Self {
                    $( $field: $crate::params!(@field fields, problems, $ty, $default, $key $(, $range)?), )*
                };
                fields.finish(problems);
                decoded
            }
        }
    };
    (@field $fields:ident, $problems:ident, $ty:ty, $default:expr, $key:literal) => {
        $fields.ruled::<$ty>($key, $default, &$crate::scheduling::params::Anything, $problems)
    };
    (@field $fields:ident, $problems:ident, $ty:ty, $default:expr, $key:literal, $range:expr) => {
        $fields.ruled::<$ty>($key, $default, &$range, $problems)
    };
}

/// Declares an enum whose variants are the allowed texts of a parameter.
#[macro_export]
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $vis:vis enum $Name:ident { $( $(#[$vmeta:meta])* $Variant:ident = $text:literal ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $Name { $( $(#[$vmeta])* $Variant, )+ }

        impl $crate::scheduling::params::Param for $Name {
            const TYPE: &'static str = concat!("one of" $(, " ", $text)+);
            fn decode(
                node: &$crate::domain::node::Node,
                path: &str,
                problems: &mut $crate::domain::node::Problems,
            ) -> Option<Self> {
                match node.as_str() {
                    $( Some($text) => Some(Self::$Variant), )+
                    _ => {
                        $crate::scheduling::params::wrong_choice(node, path, &[$($text),+], problems);
                        None
                    }
                }
            }
        }
    };
}

/// Records that `node` is none of `allowed`.
pub fn wrong_choice(node: &Node, path: &str, allowed: &[&'static str], problems: &mut Problems) {
    let near = node.as_str().and_then(|s| nearest(s, allowed.iter().copied()));
    let fix = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("write one of {}", allowed.join(", ")),
    };
    problems.error(node.at, path, format!("{} is not one of {}", node.describe(), allowed.join(", ")), fix);
}

fn wrong_type<T: Param>(node: &Node, path: &str, problems: &mut Problems) -> Option<T> {
    problems.error(
        node.at,
        path,
        format!("expected {}, found {}", T::TYPE, node.describe()),
        format!("write a value of type {}", T::TYPE),
    );
    None
}

impl Param for bool {
    const TYPE: &'static str = "boolean";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        match node.value {
            Value::Bool(b) => Some(b),
            _ => wrong_type(node, path, problems),
        }
    }
}

macro_rules! integer_param {
    ($($ty:ty),+) => { $(
        impl Param for $ty {
            const TYPE: &'static str = "integer";
            fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
                let whole = match node.value {
                    Value::Integer(i) => Some(i),
                    // Go's decoder accepts 4.0 for an integer field, and Helm writes large numbers so.
                    Value::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Some(x as i64),
                    _ => None,
                };
                match whole {
                    None => wrong_type(node, path, problems),
                    Some(i) => match <$ty>::try_from(i) {
                        Ok(v) => Some(v),
                        Err(_) => {
                            let rule = format!("must be between {} and {}", <$ty>::MIN, <$ty>::MAX);
                            problems.error(node.at, path, format!("{} is out of range: {rule}", node.describe()), rule);
                            None
                        }
                    },
                }
            }
        }
    )+ };
}

integer_param!(u16, u32, u64, usize, i32, i64);

impl Param for f64 {
    const TYPE: &'static str = "number";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        match node.value {
            Value::Integer(i) => Some(i as f64),
            Value::Float(x) if x.is_finite() => Some(x),
            _ => wrong_type(node, path, problems),
        }
    }
}

impl Param for f32 {
    const TYPE: &'static str = "number";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        f64::decode(node, path, problems).map(|x| x as f32)
    }
}

impl Param for String {
    const TYPE: &'static str = "text";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::String(s) => Some(s.clone()),
            _ => wrong_type(node, path, problems),
        }
    }
}

impl<T: Param> Param for Option<T> {
    const TYPE: &'static str = T::TYPE;
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        T::decode(node, path, problems).map(Some)
    }
}

impl<T: Param> Param for Vec<T> {
    const TYPE: &'static str = "list";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        let Value::Sequence(items) = &node.value else { return wrong_type(node, path, problems) };
        Some(items.iter().enumerate().filter_map(|(i, n)| T::decode(n, &format!("{path}[{i}]"), problems)).collect())
    }
}

impl<T: Param> Param for BTreeMap<String, T> {
    const TYPE: &'static str = "mapping";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else { return wrong_type(node, path, problems) };
        Some(
            entries
                .iter()
                .filter_map(|(k, _, n)| Some((k.clone(), T::decode(n, &format!("{path}.{k}"), problems)?)))
                .collect(),
        )
    }
}

impl Param for Node {
    const TYPE: &'static str = "any value";
    fn decode(node: &Node, _: &str, _: &mut Problems) -> Option<Self> {
        Some(node.clone())
    }
}

impl Param for Duration {
    const TYPE: &'static str = "duration (such as 50ms, 2s, 1m30s)";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        match node.as_str().and_then(parse_duration) {
            Some(d) => Some(d),
            None => wrong_type(node, path, problems),
        }
    }
}

/// Reads a duration in Go's notation: a sequence of decimal numbers with units, `0` alone allowed.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * scale;
        rest = &rest[unit_len..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

/// A Kubernetes quantity in whole units, such as `64Mi` or `1G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity(pub u64);

impl Param for Quantity {
    const TYPE: &'static str = "quantity (such as 64Mi, 1G)";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        let parsed = match &node.value {
            Value::Integer(i) => u64::try_from(*i).ok().map(Quantity),
            Value::String(s) => Quantity::parse(s),
            _ => None,
        };
        parsed.or_else(|| wrong_type(node, path, problems))
    }
}

impl Quantity {
    /// Reads `123`, `1.5Gi`, `64Mi`, `1G`, with an optional trailing `B`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_suffix('B').unwrap_or(text);
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let number: f64 = text[..split].parse().ok()?;
        let scale: f64 = match &text[split..] {
            "" => 1.0,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "Ki" => 1024.0,
            "Mi" => 1048576.0,
            "Gi" => 1073741824.0,
            "Ti" => 1099511627776.0,
            _ => return None,
        };
        let total = number * scale;
        (total.is_finite() && (0.0..1.8e19).contains(&total)).then_some(Self(total as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    params! {
        /// Test parameters.
        struct Sample {
            /// How many.
            count: u32 = 3, "count", 1..=8;
            /// How long.
            wait: Duration = Duration::from_secs(1), "wait";
            /// Maybe text.
            text: Option<String> = None, "text";
        }
    }

    fn node(value: Value) -> Node {
        Node { at: Position { line: 4, column: 2 }, value }
    }

    fn mapping(entries: Vec<(&str, Value)>) -> Node {
        let entries =
            entries.into_iter().map(|(k, v)| (k.to_owned(), Position { line: 3, column: 1 }, node(v))).collect();
        node(Value::Mapping(entries))
    }

    #[test]
    fn every_problem_is_reported_with_place_path_rule_and_fix() {
        let mut problems = Problems::default();
        let doc = mapping(vec![
            ("count", Value::Integer(9)),
            ("wait", Value::Integer(7)),
            ("txt", Value::String("x".into())),
        ]);
        let sample = Sample::decode_fields(Some(&doc), "plugins[0].parameters", &mut problems);
        assert_eq!((sample.count, sample.wait, sample.text), (3, Duration::from_secs(1), None));
        let shown: Vec<String> = problems.errors.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 3, "{shown:#?}");
        assert!(shown[0].starts_with("4:2: plugins[0].parameters.count: `9` is out of range: must be between 1 and 8"));
        assert!(shown[1].contains("plugins[0].parameters.wait: expected duration"));
        assert!(shown[2].contains("unknown field `txt`") && shown[2].contains("did you mean `text`?"));
    }

    #[test]
    fn durations_and_quantities_follow_go_and_kubernetes() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5ms"), Some(Duration::from_micros(1500)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        for wrong in ["", "5", "ms", "-1s", "1y", "1e400s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        assert_eq!(Quantity::parse("64Mi"), Some(Quantity(64 << 20)));
        assert_eq!(Quantity::parse("4MiB"), Some(Quantity(4 << 20)));
        assert_eq!(Quantity::parse("1.5G"), Some(Quantity(1_500_000_000)));
        for wrong in ["", "Mi", "-1", "1Q"] {
            assert_eq!(Quantity::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_reference_rows_come_from_the_declaration() {
        let keys: Vec<_> = Sample::SPEC.iter().map(|s| (s.key, s.ty, s.default, s.range, s.about.trim())).collect();
        assert_eq!(keys[0], ("count", "integer", "3", "1..=8", "How many."));
    }
}
