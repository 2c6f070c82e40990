//! The scanner against serde_json: what is JSON, and where its values stand.

use std::fmt;

use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::super::*;

/// White space, or none.
fn space() -> impl Strategy<Value = String> {
    prop_oneof![5 => Just(String::new()), 2 => "[ \n\r\t]{1,3}", 1 => "\r?\n {0,40}\t?"]
}

/// What a text is made of; together often longer than a block of the scanner.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z ,:{}\\[\\]]{0,30}",
        4 => prop::sample::select(vec!["\\n", "\\\"", "n", "u"]).prop_map(str::to_owned),
        2 => prop::sample::select(vec!["\\\\", "\\/", "\\b", "\\f", "\\r", "\\t"]).prop_map(str::to_owned),
        2 => "\\\\u[0-9a-fA-F]{4}",
        1 => prop::sample::select(vec!["\u{e9}", "\u{4f60}", "\u{1F600}", "\u{7f}", "\u{80}"]).prop_map(str::to_owned),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => prop::collection::vec(piece(), 0..3), 1 => prop::collection::vec(piece(), 0..40)]
        .prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// A valid JSON text with every liberty that the grammar leaves.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "true", "false", "0", "-0", "1e999", "{}", "[]"]).prop_map(str::to_owned),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,3})?",
        text(),
        // Deeper than the walkers and than the inline stack of the scanner.
        (1..200_usize, any::<bool>()).prop_map(|(depth, list)| {
            let (open, close) = if list { ("[", "]") } else { ("{\"\":", "}") };
            format!("{}1{}", open.repeat(depth), close.repeat(depth))
        }),
    ];
    let node = leaf.prop_recursive(4, 24, 4, |inner| {
        let element = (space(), inner.clone(), space()).prop_map(|(a, value, b)| a + &value + &b).boxed();
        let key = (space(), text(), space()).prop_map(|(a, key, b)| a + &key + &b);
        let member = (key, element.clone()).prop_map(|(key, value)| format!("{key}:{value}"));
        prop_oneof![
            prop::collection::vec(element, 1..4).prop_map(|list| format!("[{}]", list.join(","))),
            prop::collection::vec(member, 1..4).prop_map(|list| format!("{{{}}}", list.join(","))),
        ]
    });
    (space(), node, space()).prop_map(|(a, value, b)| a + &value + &b)
}

/// Mistakes, and what only looks like one.
fn edit() -> impl Strategy<Value = (prop::sample::Index, usize, String)> {
    let put = prop_oneof![
        4 => Just(String::new()),
        4 => prop::sample::select(vec![
            "\"", "\\", "{", "}", "[", "]", ",", ":", "0", "-", ".", "e", "+", "\0", "\n", "\u{1f}", " ", "\u{e9}", "\\u",
            "\\ud8", "nul", "null", "true", "1", "\u{b}", "\u{a0}",
        ]).prop_map(str::to_owned),
        1 => "[ -~]{0,3}",
    ];
    (
        any::<prop::sample::Index>(),
        prop_oneof![3 => Just(0_usize), 3 => Just(1), 1 => 0..9_usize, 1 => Just(usize::MAX)],
        put,
    )
}

/// Applies edits between characters.
fn edited(mut text: String, edits: Vec<(prop::sample::Index, usize, String)>) -> String {
    for (at, cut, put) in edits {
        let at = text.floor_char_boundary(at.index(text.len() + 1));
        let end = text.ceil_char_boundary(at.saturating_add(cut).min(text.len()));
        text.replace_range(at..end, &put);
    }
    text
}

fn is_json(text: &str) -> bool {
    let text = text.as_bytes();
    scan::value(text, scan::space(text, 0)).is_ok_and(|end| scan::space(text, end) == text.len())
}

/// The children of a container as serde_json gives them: keys and values in turn, or elements.
struct Children<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Children<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self(Vec::new()))
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Children<'a> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a container")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            self.0.extend([key, value]);
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(value) = list.next_element()? {
            self.0.push(value);
        }
        Ok(self)
    }
}

fn is_container(text: &str) -> bool {
    text.starts_with(['{', '['])
}

/// Where everything on `levels` levels of `container` stands in `text`, as serde_json says.
fn said_places(text: &str, container: &str, levels: usize, found: &mut Vec<Range<usize>>) {
    let children: Children<'_> = serde_json::from_str(container).expect("valid");
    for child in children.0.iter().map(|child| child.get()) {
        let start = child.as_ptr() as usize - text.as_ptr() as usize;
        found.push(start..start + child.len());
        // Only a value can be a container.
        if levels > 1 && is_container(child) {
            said_places(text, child, levels - 1, found);
        }
    }
}

/// The same as the walkers see it.
struct Places {
    levels: usize,
    found: Vec<Range<usize>>,
}

impl Places {
    fn value(&mut self, value: Value<'_>) -> Result<End, Fault> {
        let (at, index) = (value.at, self.found.len());
        self.found.push(0..0);
        let end = match value.kind() {
            Kind::Object | Kind::List if self.levels > 1 => {
                self.levels -= 1;
                let end = match value.kind() {
                    Kind::Object => value.object("it", &mut Inner(self)),
                    _ => value.list("it", &mut Inner(self)),
                }?;
                self.levels += 1;
                end
            }
            _ => value.skip()?,
        };
        self.found[index] = at..end.offset();
        Ok(end)
    }
}

struct Inner<'p>(&'p mut Places);

impl<'de> Members<'de> for Inner<'_> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        self.0.found.push(key.range());
        self.0.value(value)
    }
}

impl<'de> Elements<'de> for Inner<'_> {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        self.0.value(value)
    }
}

proptest! {
    #[test]
    fn what_is_json_is_read_with_the_same_places(text in json()) {
        prop_assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok(), "the generator is wrong");
        prop_assert!(is_json(&text));
        let container = text.trim_ascii();
        if !is_container(container) { return Ok(()) }
        let mut places = Places { levels: 2, found: Vec::new() };
        let read = match container.starts_with('{') {
            true => read_object(&text, &mut Inner(&mut places)),
            false => read_list(&text, &mut Inner(&mut places)),
        };
        prop_assert_eq!(read, Ok(()));
        let mut said = Vec::new();
        said_places(&text, container, 2, &mut said);
        prop_assert_eq!(places.found, said);
    }

    #[test]
    fn what_is_not_json_is_refused_in_the_same_words(text in json(), edits in prop::collection::vec(edit(), 1..3)) {
        let text = edited(text, edits);
        let is_valid = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        prop_assert_eq!(is_json(&text), is_valid);
        if is_valid { return Ok(()) }
        let mut places = Places { levels: 2, found: Vec::new() };
        let read = match text.trim_ascii().starts_with('[') {
            true => read_list(&text, &mut Inner(&mut places)),
            false => read_object(&text, &mut Inner(&mut places)),
        };
        let fault = read.expect_err("refused");
        prop_assert!(fault.at <= text.len());
        if !fault.message.starts_with("invalid JSON: ") {
            // Wrong before it broke.
            prop_assert!(fault.message.ends_with("found nothing") || fault.message.contains(" must be "));
            return Ok(());
        }
        let whole = syntax::fault(&text, 0..0, Part::Whole);
        prop_assert_eq!(fault.at, whole.at);
        // Of a container that is walked serde_json knows better what was to come.
        let knows_better = ["trailing comma", "EOF while parsing a value"].iter().any(|end| fault.message.ends_with(end));
        if !knows_better {
            prop_assert_eq!(fault.message, whole.message);
        }
    }
}

/// The end of a text by the book, byte by byte.
fn plain_end(text: &[u8], quote: usize) -> Option<usize> {
    let mut at = quote + 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => match *text.get(at + 1)? {
                b'u' => {
                    let digits = text.get(at + 2..at + 6)?;
                    at += 6;
                    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                }
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                _ => return None,
            },
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

proptest! {
    #[test]
    fn texts_end_where_they_end_byte_by_byte(
        pieces in prop::collection::vec(prop_oneof![
            8 => piece(),
            2 => Just("\\\\".repeat(3)),
            1 => "[a-z]{50,150}",
            1 => prop::sample::select(vec!["\"", "\\", "\u{1f}", "\0", "\\u00", "\\x"]).prop_map(str::to_owned),
        ], 0..40),
        behind in "[\\\\\"n\u{1f}a]{0,80}",
    ) {
        let text = format!("x\"{}\"{behind}", pieces.concat());
        prop_assert_eq!(text::end(text.as_bytes(), 1).ok(), plain_end(text.as_bytes(), 1));
    }
}

#[test]
fn every_short_sequence_is_understood_at_every_place() {
    // Whatever stands at the edges of words and blocks.
    const BYTES: &[u8] = b"\"\\nu\x1f\x20a\xc3";
    for place in (0..10).chain(12..20).chain(60..70).chain(76..84).chain(140..148) {
        for a in BYTES {
            for b in BYTES {
                for c in BYTES {
                    let mut text = vec![b'a'; 230];
                    text[0] = b'"';
                    text[1 + place..4 + place].copy_from_slice(&[*a, *b, *c]);
                    text[229] = b'"';
                    for length in [text.len(), place + 4] {
                        let text = &text[..length];
                        assert_eq!(
                            text::end(text, 0).ok(),
                            plain_end(text, 0),
                            "{:?}",
                            text.escape_ascii().to_string()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_are_those_of_the_grammar() {
    for (text, valid) in [
        ("0", true),
        ("-0", true),
        ("10.50e+07", true),
        ("1E400", true),
        ("123456789012345678901234567890", true),
        ("", false),
        ("-", false),
        ("+1", false),
        ("00", false),
        ("-01", false),
        ("1.", false),
        (".5", false),
        ("1.e1", false),
        ("1e", false),
        ("1e+", false),
        ("0x1", false),
        ("1_0", false),
        ("NaN", false),
        ("Infinity", false),
        ("-null", false),
    ] {
        assert_eq!(is_json(text), valid, "{text}");
        assert_eq!(serde_json::from_str::<IgnoredAny>(text).is_ok(), valid, "{text}");
    }
}

#[test]
fn containers_close_as_they_opened_at_any_depth() {
    for depth in [1, 2, 63, 64, 65, 66, 1000] {
        let open: String = (0..depth).map(|i| if i % 3 == 0 { "{\"a\" : [" } else { "[\n[" }).collect();
        let mut close: Vec<&str> = (0..depth).rev().map(|i| if i % 3 == 0 { "]}" } else { "]]" }).collect();
        let text = format!("{open}1{}", close.concat());
        assert!(is_json(&text) && serde_json::from_str::<IgnoredAny>(&text).is_ok());
        assert!(!is_json(&text[..text.len() - 1]));
        assert!(!is_json(&format!("{text}]")));
        for wrong in [0, depth / 2, depth - 1] {
            let right = std::mem::replace(&mut close[wrong], "}]");
            assert!(!is_json(&format!("{open}1{}", close.concat())), "{depth} {wrong}");
            close[wrong] = right;
        }
    }
}
