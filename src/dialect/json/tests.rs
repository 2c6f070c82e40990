mod differential;

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

/// Collects every value at any depth up to `depth` with its path and place.
struct Collect<'c, 'de> {
    path: String,
    depth: usize,
    found: &'c mut BTreeMap<String, Raw<'de>>,
    text: &'de str,
    index: usize,
}

impl<'de> Collect<'_, 'de> {
    fn value(&mut self, path: String, value: Value<'de>) -> Result<End, Fault> {
        let (at, kind) = (value.at, value.kind());
        // The walkers are not recursive, so the test fixes the number of levels as they do.
        let end = if self.depth == 1 && matches!(kind, Kind::Object | Kind::List) {
            let mut inner = Leaves { path: path.clone(), found: &mut *self.found, index: 0 };
            match kind {
                Kind::Object => value.object("it", &mut inner)?,
                _ => value.list("it", &mut inner)?,
            }
        } else {
            value.skip()?
        };
        self.found.insert(path, Raw { text: &self.text[at..end.offset()], at });
        Ok(end)
    }
}

impl<'de> Members<'de> for Collect<'_, 'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        self.value(format!("{}/{}", self.path, key.name()), value)
    }
}

impl<'de> Elements<'de> for Collect<'_, 'de> {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        let path = format!("{}/{}", self.path, self.index);
        self.index += 1;
        self.value(path, value)
    }
}

struct Leaves<'c, 'de> {
    path: String,
    found: &'c mut BTreeMap<String, Raw<'de>>,
    index: usize,
}

impl<'de> Members<'de> for Leaves<'_, 'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let raw = value.raw()?;
        self.found.insert(format!("{}/{}", self.path, key.name()), raw);
        Ok(raw.end())
    }
}

impl<'de> Elements<'de> for Leaves<'_, 'de> {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        let raw = value.raw()?;
        self.found.insert(format!("{}/{}", self.path, self.index), raw);
        self.index += 1;
        Ok(raw.end())
    }
}

fn collect(text: &str) -> Result<BTreeMap<String, Raw<'_>>, Fault> {
    let mut found = BTreeMap::new();
    let mut collect = Collect { path: String::new(), depth: 1, found: &mut found, text, index: 0 };
    if text.trim_start().starts_with('[') {
        read_list(text, &mut collect)?;
    } else {
        read_object(text, &mut collect)?;
    }
    Ok(found)
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<i32>().prop_map(|n| Json::from(f64::from(n) / 4.0)),
        "[a-z\"\\\\/\u{0}-\u{1f}\u{e9}\u{1F600} ,:{}\\[\\]]{0,8}".prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[a-z\"\\\\\u{e9} :,]{0,4}", inner, 0..4)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_place_holds_the_value_it_is_said_to_hold(value in json(), pretty in any::<bool>()) {
        let text = if pretty { format!(" \r\n\t{value:#} ") } else { value.to_string() };
        let root = if value.is_object() || value.is_array() { value } else { return Ok(()) };
        for (path, raw) in collect(&text).expect("valid") {
            prop_assert_eq!(&text[raw.range()], raw.text);
            let said: Json = serde_json::from_str(raw.text).expect("a value");
            // Only keys without slashes and tildes occur, so this is a JSON pointer.
            prop_assert_eq!(Some(&said), root.pointer(&path), "{}", path);
        }
    }

    #[test]
    fn agrees_with_serde_json_on_what_is_valid(value in json(), cut in any::<prop::sample::Index>(), put in "[ -~\n]{0,2}") {
        let mut text = value.to_string();
        let mut at = cut.index(text.len() + 1);
        while !text.is_char_boundary(at) { at -= 1; }
        text.insert_str(at, &put);
        let expected = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        match collect(&text) {
            Ok(_) => prop_assert!(expected.is_ok(), "{text}"),
            Err(fault) => {
                prop_assert!(fault.at <= text.len());
                let is_root_fault = fault.message.contains("the body must") || fault.message.contains("the request body must");
                prop_assert!(expected.is_err() || is_root_fault, "{} {text}", fault.message);
            }
        }
    }

    #[test]
    fn token_ids_are_what_a_typed_read_gives(ids in prop::collection::vec(any::<u32>(), 0..20), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&ids) } else { serde_json::to_string(&ids) }.expect("json");
        let after = format!("{text}, [1]");
        prop_assert_eq!(ids::read(after.as_bytes()), Ok((ids.into(), text.len())));
    }
}

#[test]
fn token_ids_refuse_what_is_no_id_at_its_offset() {
    assert_eq!(ids::read(b"[] "), Ok((Box::default(), 2)));
    assert_eq!(ids::read(b"[ \n]"), Ok((Box::default(), 4)));
    assert_eq!(ids::read(b"[4294967295]"), Ok(([u32::MAX].into(), 12)));
    assert_eq!(ids::read(b"[ 0 ,\t10\r]x"), Ok(([0, 10].into(), 10)));
    for (list, offset) in [
        ("[1, -1]", 4),
        ("[4294967296]", 1),
        ("[1,2.0]", 3),
        ("[1e2]", 1),
        ("[\"1\"]", 1),
        ("[0,[1]]", 3),
        ("[null]", 1),
        ("[\"]\", 1]", 1),
    ] {
        assert_eq!(ids::read(list.as_bytes()), Err(offset), "{list}");
        serde_json::from_str::<Json>(list).expect("JSON");
    }
    let huge = format!("[{}]", "9".repeat(10_000));
    assert_eq!(ids::read(huge.as_bytes()), Err(1));
    for broken in ["[", "[1", "[1,", "[1,]", "[,1]", "[01]", "[1 2]", "[1,,2]", "[00]", "[-]", "[\0]"] {
        assert!(ids::read(broken.as_bytes()).is_err(), "{broken}");
        assert!(serde_json::from_str::<Json>(broken).is_err(), "{broken}");
    }
}

fn said(text: &str) -> String {
    collect(text).expect_err("must be refused").describe(text.as_bytes())
}

#[test]
fn faults_name_the_place() {
    assert_eq!(said(""), "expected a JSON object, found nothing at line 1 column 1 (byte 0)");
    assert_eq!(said(" \n "), "expected a JSON object, found nothing at line 2 column 2 (byte 3)");
    assert_eq!(said("no healthy upstream"), "invalid JSON: expected ident at line 1 column 2 (byte 1)");
    assert_eq!(said("<x>"), "invalid JSON: expected value at line 1 column 1 (byte 0)");
    assert_eq!(said("\"text\""), "the request body must be an object, found text at line 1 column 1 (byte 0)");
    assert_eq!(said("{\"a\":"), "invalid JSON: EOF while parsing a value at line 1 column 6 (byte 5)");
    assert_eq!(said("{\n \"a\": 01}"), "invalid JSON: invalid number at line 2 column 8 (byte 9)");
    assert_eq!(said("{\"a\":1} x"), "invalid JSON: trailing characters at line 1 column 9 (byte 8)");
    assert_eq!(said("{\"a\" 1}"), "invalid JSON: expected `:` at line 1 column 6 (byte 5)");
    assert_eq!(said("{\"a\":[1 2]}"), "invalid JSON: expected `,` or `]` at line 1 column 9 (byte 8)");
    assert_eq!(said("[1,]"), "invalid JSON: trailing comma at line 1 column 4 (byte 3)");
    assert_eq!(
        utf8(b"{\n\"\xff").expect_err("not UTF-8").describe(b"{\n\"\xff"),
        "expected UTF-8 text, found another byte at line 2 column 2 (byte 3)"
    );
}

#[test]
fn names_are_compared_by_their_meaning() {
    let text = r#"{"mod\u0065l":1,"\ud800":2,"a\/b":3}"#;
    let found = collect(text).expect("valid");
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["/\"\\ud800\"", "/a/b", "/model"]);
}

#[test]
fn deep_nesting_costs_no_stack() {
    let depth = 300_000;
    let open = "[".repeat(depth);
    assert!(collect(&open).is_err());
    let text = format!("{{\"a\":{open}{}}}", "]".repeat(depth));
    let found = collect(&text).expect("valid");
    assert_eq!(found["/a"].range(), 5..5 + 2 * depth);
}
