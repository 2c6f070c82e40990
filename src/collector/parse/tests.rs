use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Found {
    name: usize,
    labels: Vec<(String, String)>,
    value: Option<f64>,
}

#[derive(Default)]
struct Record(Vec<Found>);

impl Visit for Record {
    fn series(&mut self, name: usize, labels: Labels<'_>, value: f64) {
        let mut text = String::new();
        let labels = labels
            .map(|(k, v)| {
                v.copy_to(&mut text);
                assert!(v.is(&text) || text.is_empty());
                (String::from_utf8_lossy(k).into_owned(), text.clone())
            })
            .collect();
        // NaN would make equal records unequal.
        self.0.push(Found { name, labels, value: Some(if value.is_nan() { -0.125 } else { value }) });
    }

    fn malformed(&mut self, name: usize) {
        self.0.push(Found { name, labels: Vec::new(), value: None });
    }
}

fn scan(names: &Names, chunks: &[&[u8]]) -> (Vec<Found>, bool) {
    let (mut scanner, mut record) = (Scanner::default(), Record::default());
    scanner.reset(names);
    for chunk in chunks {
        scanner.feed(names, chunk, &mut record);
    }
    (record.0, scanner.finish())
}

fn one(line: &str) -> Found {
    let names = Names::new([("up", true)]);
    let (found, cut) = scan(&names, &[line.as_bytes(), b"\n"]);
    assert!(!cut);
    assert_eq!(found.len(), 1, "{line}: {found:?}");
    found[0].clone()
}

#[test]
fn reads_every_form_of_a_sample_line() {
    let labels = |l: &[(&str, &str)]| l.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>();
    for (line, value, wanted) in [
        ("up 1", Some(1.0), labels(&[])),
        ("  up\t1.5e3 1395066363000", Some(1500.0), labels(&[])),
        ("up{} -2\r", Some(-2.0), labels(&[])),
        ("up {a=\"1\"} 3", Some(3.0), labels(&[("a", "1")])),
        ("up{a = \"1\" , b=\"x}y\",} 4 # {trace_id=\"x\"} 1", Some(4.0), labels(&[("a", "1"), ("b", "x}y")])),
        (
            r#"up{a="q\"q",b="n\nn",c="b\\"} +Inf"#,
            Some(f64::INFINITY),
            labels(&[("a", "q\"q"), ("b", "n\nn"), ("c", "b\\")]),
        ),
        ("up NaN", Some(-0.125), labels(&[])),
        ("up", None, labels(&[])),
        ("up{a=\"1\" 3", None, labels(&[])),
        ("up{a=\"1\\\"} 3", None, labels(&[])),
        ("up{a=\"1\"}", None, labels(&[])),
        ("up one", None, labels(&[])),
    ] {
        if line == "up" {
            // A bare name is not a sample of anything.
            assert_eq!(scan(&Names::new([("up", true)]), &[b"up\n"]).0, vec![]);
            continue;
        }
        let found = one(line);
        assert_eq!((found.value, &found.labels), (value, &wanted), "{line}");
    }
}

#[test]
fn a_name_is_not_a_prefix_of_another() {
    let names = Names::new([("vllm:waiting", true), ("vllm:w", true)]);
    let page = b"vllm:waiting_by_reason{r=\"x\"} 9\nvllm:waiting 3\nvllm:ww 1\nvllm:w 4\n";
    let (found, _) = scan(&names, &[page]);
    assert_eq!(found.iter().map(|f| (f.name, f.value)).collect::<Vec<_>>(), [(0, Some(3.0)), (1, Some(4.0))]);
}

#[test]
fn stops_only_after_the_family_of_the_last_wanted_name() {
    let names = Names::new([("h_sum", true)]);
    let page = b"a 1\nh_bucket{e=\"0\"} 1\nh_sum{e=\"0\"} 5\nh_count{e=\"0\"} 1\nh_bucket{e=\"1\"} 1\nh_sum{e=\"1\"} 7\nz 1\nh_sum 99\n";
    let (found, _) = scan(&names, &[page]);
    assert_eq!(found.iter().filter_map(|f| f.value).collect::<Vec<_>>(), [5.0, 7.0]);
}

#[test]
fn a_name_that_is_not_awaited_does_not_hold_up_the_end() {
    let names = Names::new([("new", true), ("old", false)]);
    let (mut scanner, mut record) = (Scanner::default(), Record::default());
    scanner.reset(&names);
    scanner.feed(&names, b"new 1\n", &mut record);
    assert!(!scanner.is_done(), "another series of the family may follow");
    scanner.feed(&names, b"other 1\n", &mut record);
    assert!(scanner.is_done());
    assert!(scanner.saw(0) && !scanner.saw(1));
}

#[test]
fn a_page_cut_inside_a_line_says_so() {
    let names = Names::new([("up", true), ("down", true)]);
    for (page, cut) in [
        ("up 1\ndown 12", true),
        ("up 1\ndown 12\n", false),
        ("up 1\n# EOF", false),
        ("up 1\nother", true),
        ("", false),
    ] {
        assert_eq!(scan(&names, &[page.as_bytes()]).1, cut, "{page:?}");
        let (a, b) = page.as_bytes().split_at(page.len() / 2);
        assert_eq!(scan(&names, &[a, b]).1, cut, "{page:?} in two chunks");
    }
}

#[test]
fn a_line_without_end_is_dropped_and_never_held() {
    let names = Names::new([("up", true), ("down", true)]);
    let (mut scanner, mut record) = (Scanner::default(), Record::default());
    scanner.reset(&names);
    scanner.feed(&names, b"up{a=\"", &mut record);
    for _ in 0..100 {
        scanner.feed(&names, &[b'x'; 16 * 1024], &mut record);
    }
    assert!(scanner.carry.capacity() <= 2 * MAX_LINE);
    scanner.feed(&names, b"\"} 1\ndown 2\n", &mut record);
    let found: Vec<_> = record.0.iter().map(|f| (f.name, f.value)).collect();
    assert_eq!(found, [(0, None), (1, Some(2.0))]);
    let long = [b"up{a=\"".as_slice(), &[b'x'; MAX_LINE + 1], b"\"} 1\ndown 2"].concat();
    assert_eq!(scan(&names, &[&long, b"\n"]).0.len(), 2, "also when it comes in one chunk");
}

/// A parser that does everything the slow way: whole page, all lines, one character at a time.
fn naive(wanted: &[String], page: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for line in page.lines() {
        let line = line.trim_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let split = line.find(['{', ' ', '\t']).unwrap_or(line.len());
        let (name, mut rest) = line.split_at(split);
        let Some(index) = wanted.iter().position(|w| w == name) else { continue };
        let mut labels = Vec::new();
        rest = rest.trim_start();
        if let Some(inner) = rest.strip_prefix('{') {
            let mut chars = inner.chars();
            loop {
                let mut key = String::new();
                let mut next = chars.next().unwrap();
                while matches!(next, ' ' | ',') {
                    next = chars.next().unwrap();
                }
                if next == '}' {
                    break;
                }
                while next != '=' {
                    key.push(next);
                    next = chars.next().unwrap();
                }
                while chars.next().unwrap() != '"' {}
                let mut value = String::new();
                loop {
                    match chars.next().unwrap() {
                        '"' => break,
                        '\\' => value.push(match chars.next().unwrap() {
                            'n' => '\n',
                            c => c,
                        }),
                        c => value.push(c),
                    }
                }
                labels.push((key.trim().to_owned(), value));
            }
            rest = chars.as_str();
        }
        let value: f64 = rest.split_whitespace().next().unwrap().parse().unwrap();
        found.push(Found { name: index, labels, value: Some(if value.is_nan() { -0.125 } else { value }) });
    }
    found
}

fn name() -> impl Strategy<Value = String> {
    "(vllm:|sglang:|)[a-c]{1,3}(_sum|_count|_total|)".prop_filter("never a comment", |s| !s.is_empty())
}

fn series() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<f32>().prop_map(|v| v.to_string()),
        Just("NaN".into()),
        Just("+Inf".into()),
        Just("3e2".into())
    ];
    let escaped = "([a-z{}=, #]|\\\\\\\\|\\\\\"|\\\\n|é){0,6}";
    let labels = proptest::collection::vec(("[a-z_]{1,4}", " {0,1}", escaped), 0..4);
    (labels, value, "( [0-9]{1,4})?( # \\{t=\"x\"\\} 1)?", any::<bool>()).prop_map(|(labels, value, tail, spaced)| {
        let labels: Vec<_> = labels.into_iter().map(|(k, s, v)| format!("{k}{s}=\"{v}\"")).collect();
        let labels = match (labels.is_empty(), spaced) {
            (true, true) => String::new(),
            (_, true) => format!(" {{{}}}", labels.join(", ")),
            (_, false) => format!("{{{}}}", labels.join(",")),
        };
        format!("{labels} {value}{tail}")
    })
}

/// Families of one to three series; each name at most once, so that families are contiguous.
fn page() -> impl Strategy<Value = (String, Vec<String>)> {
    let group = (name(), any::<bool>(), proptest::collection::vec(series(), 1..4));
    (proptest::collection::vec(group, 0..8), proptest::collection::vec(name(), 0..2), any::<u8>()).prop_map(
        |(families, absent, pick)| {
            let (mut text, mut wanted, mut bases) = (String::new(), absent, Vec::<String>::new());
            for (i, (name, comment, series)) in families.into_iter().enumerate() {
                // Families that share a prefix are legal but would let the scan go on for longer than the oracle knows.
                let base = name[..family(&name)].to_owned();
                if bases.iter().any(|b| b.starts_with(&base) || base.starts_with(b.as_str())) || wanted.contains(&name)
                {
                    continue;
                }
                bases.push(base);
                if comment {
                    text += &format!("# HELP {name} words {name} 7\n# TYPE {name} gauge\n");
                }
                for s in series {
                    text += &format!("{name}{s}\n");
                }
                if pick & (1 << (i % 8)) != 0 {
                    wanted.push(name);
                }
            }
            wanted.sort();
            wanted.dedup();
            (text, wanted)
        },
    )
}

fn chunked(bytes: &[u8], size: usize) -> Vec<&[u8]> {
    bytes.chunks(size.max(1)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn finds_what_a_naive_parser_finds((text, wanted) in page(), size in 1usize..200) {
        let names = Names::new(wanted.iter().map(|w| (w.as_str(), true)));
        let (found, cut) = scan(&names, &chunked(text.as_bytes(), size));
        prop_assert_eq!(found, naive(&wanted, &text));
        prop_assert!(!cut);
    }

    #[test]
    fn the_cut_into_chunks_does_not_matter(
        bytes in proptest::collection::vec(prop_oneof![
            Just(b"up".to_vec()), Just(b"\n".to_vec()), Just(b"{a=\"".to_vec()), Just(b"\"} 1".to_vec()), Just(b"#".to_vec()),
            Just(b"down_sum 2".to_vec()), Just(b" 3\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..6),
        ], 0..60),
        size in 1usize..12,
    ) {
        let bytes = bytes.concat();
        let names = Names::new([("up", true), ("down_sum", true), ("up2", false)]);
        let whole = scan(&names, &[&bytes]);
        prop_assert_eq!(scan(&names, &chunked(&bytes, size)), whole);
    }
}
