use super::*;
use proptest::prelude::*;

fn good(text: &str) -> Node {
    let mut problems = Problems::default();
    let node = read(text.as_bytes(), &mut problems);
    assert!(problems.errors.is_empty(), "{text:?}: {:?}", problems.errors);
    node.expect("a node when there is no error")
}

fn bad(text: &str) -> Vec<String> {
    let mut problems = Problems::default();
    assert!(read(text.as_bytes(), &mut problems).is_none(), "{text:?} was accepted");
    problems.errors.iter().map(ToString::to_string).collect()
}

fn at(line: u32, column: u32) -> Position {
    Position { line, column }
}

#[test]
fn every_value_knows_its_line_and_column() {
    let doc = good("kind: X\nplugins:\n- type: a\n  parameters:\n    n: 3\n- {type: b}\n");
    assert_eq!(doc.get("kind").unwrap().at, at(1, 7));
    let Value::Sequence(plugins) = &doc.get("plugins").unwrap().value else { panic!("a list") };
    assert_eq!(plugins[0].at, at(3, 3));
    assert_eq!(plugins[0].get("parameters").unwrap().get("n").unwrap().at, at(5, 8));
    assert_eq!(plugins[1].get("type").unwrap().at, at(6, 10));
    let Value::Mapping(entries) = &doc.value else { panic!("a mapping") };
    assert_eq!(
        entries.iter().map(|(k, at, _)| (k.as_str(), at.line)).collect::<Vec<_>>(),
        [("kind", 1), ("plugins", 2)]
    );
}

#[test]
fn columns_count_characters_and_a_byte_order_mark_is_skipped() {
    assert_eq!(good("\u{feff}{é: x}").get("é").unwrap().at, at(1, 5));
}

#[test]
fn plain_scalars_have_the_type_that_go_gives_them() {
    let cases: &[(&str, Value)] = &[
        ("true", Value::Bool(true)),
        ("yes", Value::Bool(true)),
        ("On", Value::Bool(true)),
        ("n", Value::Bool(false)),
        ("OFF", Value::Bool(false)),
        ("tRuE", Value::String("tRuE".into())),
        ("~", Value::Null),
        ("0777", Value::Integer(511)),
        ("08", Value::Float(8.0)),
        ("0x1F", Value::Integer(31)),
        ("-0b11", Value::Integer(-3)),
        ("0o17", Value::Integer(15)),
        ("+5", Value::Integer(5)),
        ("1_000", Value::Integer(1000)),
        ("-9223372036854775808", Value::Integer(i64::MIN)),
        ("18446744073709551615", Value::Float(18446744073709551615.0)),
        ("1.5", Value::Float(1.5)),
        ("1.", Value::Float(1.0)),
        (".5", Value::Float(0.5)),
        ("1e3", Value::Float(1000.0)),
        ("-.inf", Value::Float(f64::NEG_INFINITY)),
        ("1e", Value::String("1e".into())),
        ("-", Value::String("-".into())),
        (".", Value::String(".".into())),
        ("200ms", Value::String("200ms".into())),
        ("64Mi", Value::String("64Mi".into())),
        ("2026-01-02", Value::String("2026-01-02".into())),
        ("127.0.0.1", Value::String("127.0.0.1".into())),
        ("inf", Value::String("inf".into())),
        ("NaN", Value::String("NaN".into())),
    ];
    for (text, expected) in cases {
        assert_eq!(&type_of_plain(text), expected, "{text}");
    }
    assert!(matches!(type_of_plain(".nan"), Value::Float(x) if x.is_nan()));
}

#[test]
fn quotes_tags_and_block_scalars_make_text() {
    let doc = good("a: \"true\"\nb: '5'\nc: !!str 5\nd: !!float 5\ne: |\n  x\n  y\n");
    assert_eq!(doc.get("a").unwrap().as_str(), Some("true"));
    assert_eq!(doc.get("b").unwrap().as_str(), Some("5"));
    assert_eq!(doc.get("c").unwrap().as_str(), Some("5"));
    assert_eq!(doc.get("d").unwrap().value, Value::Float(5.0));
    assert_eq!(doc.get("e").unwrap().as_str(), Some("x\ny\n"));
}

#[test]
fn nothing_is_null_and_a_trailing_separator_is_no_document() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "---\n...\n"] {
        assert_eq!(good(text).value, Value::Null, "{text:?}");
    }
    assert_eq!(good("---\na: 1\n---\n").get("a").unwrap().value, Value::Integer(1));
}

#[test]
fn duplicate_keys_name_both_places() {
    let errors = bad("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n");
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[0].starts_with("5:3: b.c: the key `c` is written twice, first on line 3 column 3"), "{}", errors[0]);
    assert!(errors[1].starts_with("6:1: a: the key `a` is written twice, first on line 1 column 1"), "{}", errors[1]);
}

#[test]
fn what_is_refused_says_where_and_why() {
    for (text, place, words) in [
        ("a: [1, 2\n", "", "not YAML"),
        ("a: 'x\n", "", "not YAML"),
        ("a: 1\n b: 2\n", "2:", "not YAML"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3", "merge keys"),
        ("? [a]\n: 1\n", "1:", "must be a scalar"),
        ("a: 1\n---\nb: 2\n", "3:1", "second document"),
        ("a: !mine 1\n", "1:", "tag"),
        ("a: !!int x\n", "1:", "!!int"),
        ("a: *nowhere\n", "1:", "not YAML"),
        ("a: &x [*x]\n", "1:", "contains it"),
    ] {
        let errors = bad(text);
        assert!(errors[0].contains(words), "{text:?}: {errors:?}");
        assert!(errors[0].starts_with(place), "{text:?}: {errors:?}");
    }
    let mut problems = Problems::default();
    assert!(read(b"a: 1\nb: \xff\n", &mut problems).is_none());
    assert!(problems.errors[0].to_string().starts_with("2:4: "), "{}", problems.errors[0]);
}

#[test]
fn aliases_work_but_cannot_explode() {
    let doc = good("a: &x {b: 1}\nc: *x\n");
    assert_eq!(doc.get("c").unwrap().get("b").unwrap().value, Value::Integer(1));

    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let uses = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{uses}]\n");
    }
    assert!(bad(&bomb)[0].contains("aliases expanded"));

    let mut tower = String::from("a0: &a0 [x]\n");
    for level in 1..100 {
        tower += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
    }
    assert!(bad(&tower)[0].contains("nested deeper"));
}

#[test]
fn size_and_depth_are_bounded() {
    assert!(bad(&"#".repeat(MAX_BYTES + 1))[0].contains("more than the limit"));
    for deep in ["[".repeat(500), "- ".repeat(100_000), "{a: ".repeat(300)] {
        assert!(!bad(&deep).is_empty());
    }
    let fits = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    good(&fits);
    assert!(bad(&format!("[{fits}]"))[0].contains("nested deeper than 64"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes, &mut Problems::default());
    }

    #[test]
    fn yaml_like_text_never_panics(text in r"([-a-z&*!?|>%@#:,\[\]{}'\x22 \t\n0-9.<~]|: |- |\n  |---\n|\.\.\.\n|<<|!!){0,30}") {
        let mut problems = Problems::default();
        let node = read(text.as_bytes(), &mut problems);
        prop_assert_eq!(node.is_none(), !problems.errors.is_empty());
    }
}
