//! The scanner against the JSON library, and a scripted session.

use super::*;
use crate::config::{Source, Tables};
use crate::replay::picker::resolve;
use proptest::prelude::*;

fn talk(script: &str) -> (Result<(), ProtocolError>, Vec<String>) {
    let make = |fleet| Ok(Picker::new(&resolve(&Source::Default, &Tables::standard()).unwrap(), fleet, 1));
    let mut out = Vec::new();
    let result = serve(make, &mut script.as_bytes(), &mut out, &mut Vec::new());
    (result, String::from_utf8(out).unwrap().lines().map(str::to_owned).collect())
}

const HELLO: &str = "{\"ev\":\"hello\",\"pods\":3,\"kv_tokens\":16384,\"block\":512}\n";

fn metrics(t: f64, pod: u32, waiting: u32) -> String {
    format!("{{\"ev\":\"metrics\",\"t\":{t},\"pod\":{pod},\"waiting\":{waiting},\"running\":1,\"kv\":0.1}}\n")
}

#[test]
fn a_session_sends_each_request_once_and_prefers_who_has_the_prefix_and_who_is_free() {
    let mut script = HELLO.to_owned();
    for pod in 0..3 {
        script += &metrics(0.0, pod, if pod == 2 { 0 } else { 9 });
    }
    script += "{\"ev\":\"req\",\"t\":0.5,\"id\":7,\"tokens\":1400,\"blocks\":[1,2,3]}\n";
    script += "{\"ev\":\"first\",\"t\":0.7,\"id\":7}\n{\"ev\":\"done\",\"t\":0.9,\"id\":7,\"cached_tokens\":0}\n";
    script += "{\"ev\":\"tick\",\"t\":0.95}\n";
    for pod in 0..3 {
        script += &metrics(1.0, pod, if pod == 2 { 2 } else { 0 });
    }
    script += "{\"ev\":\"req\",\"t\":1.1,\"id\":8,\"tokens\":1500,\"blocks\":[4,5,6]}\n";
    let (result, answers) = talk(&script);
    result.unwrap();
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(answers[0], "{\"go\":[[7,2]]}");
    assert!(answers[1..4].iter().all(|a| a == "{\"go\":[]}"), "{answers:?}");
    assert!(answers[4] == "{\"go\":[[8,0]]}" || answers[4] == "{\"go\":[[8,1]]}", "{answers:?}");
}

#[test]
fn a_known_prefix_goes_back_to_its_pod() {
    let mut script = HELLO.to_owned();
    for pod in 0..3 {
        script += &metrics(0.0, pod, 0);
    }
    for (id, t) in [(0, 0.1), (1, 0.2), (2, 0.3)] {
        script += &format!("{{\"ev\":\"req\",\"t\":{t},\"id\":{id},\"tokens\":1024,\"blocks\":[5,6]}}\n");
    }
    let (result, answers) = talk(&script);
    result.unwrap();
    let pods: Vec<&str> = answers.iter().map(|a| &a[a.len() - 4..]).collect();
    assert!(pods.iter().all(|p| *p == pods[0]), "{answers:?}");
}

#[test]
fn wrong_lines_are_named() {
    let req = "{\"ev\":\"req\",\"t\":1,\"id\":1,\"tokens\":10,\"blocks\":[]}\n";
    for (script, what) in [
        (req.to_owned(), "line 1: the first line must be a `hello`"),
        (format!("{HELLO}\n{{\"ev\":\"req\"}}\n"), "line 3: `t` is missing"),
        (format!("{HELLO}{{\"ev\":\"stop\",\"t\":1}}\n"), "line 2: unknown variant `stop`"),
        (format!("{HELLO}{req}{req}"), "line 3: request 1 is already in flight"),
        (format!("{HELLO}{{\"ev\":\"first\",\"t\":1,\"id\":4}}\n"), "line 2: request 4 is not in flight"),
        (format!("{HELLO}{{\"ev\":\"done\",\"t\":1,\"id\":4}}\n"), "line 2: request 4 is not in flight"),
        (format!("{HELLO}{}", metrics(0.0, 3, 0)), "line 2: pod 3 does not exist"),
        (format!("{HELLO}{req}{{\"ev\":\"tick\",\"t\":0.5}}\n"), "line 3: `t` is 0.5, and it was 1 before"),
        (
            format!("{HELLO}{{\"ev\":\"req\",\"t\":1,\"id\":1,\"tokens\":99000000,\"blocks\":[]}}\n"),
            "line 2: request 1 has 99000000 tokens",
        ),
        ("{\"ev\":\"hello\",\"pods\":0,\"kv_tokens\":1,\"block\":1}\n".into(), "line 1: `pods` is 0"),
        ("{\"ev\":\"hello\",\"pods\":1,\"kv_tokens\":1,\"block\":0}\n".into(), "line 1: `block` must be"),
        (format!("{HELLO}[1]\n"), "line 2: "),
    ] {
        let message = talk(&script).0.unwrap_err().to_string();
        assert!(message.contains(what), "{message} / {what}");
    }
}

/// What the JSON library makes of a line.
fn library(line: &[u8]) -> Option<Fields> {
    let Line { ev, t, id, pod, pods, kv_tokens, block, tokens, cached_tokens, waiting, running, kv, blocks } =
        serde_json::from_slice(line).ok()?;
    Some(Fields { ev, t, id, pod, pods, kv_tokens, block, tokens, cached_tokens, waiting, running, kv, blocks })
}

proptest! {
    #[test]
    fn the_scanner_reads_what_the_library_reads(
        ev in prop_oneof!["req", "first", "metrics", "done"],
        t in 0.0f64..1e6, id in any::<u64>(), kv in 0.0f64..1.0,
        blocks in proptest::collection::vec(any::<u64>(), 0..8), spaced in any::<bool>(),
    ) {
        let mut line = format!("{{\"ev\":\"{ev}\",\"t\":{t:.6},\"id\":{id},\"kv\":{kv:.4},\"blocks\":{blocks:?}}}\n");
        if spaced {
            line = line.replace(':', " : ").replace(',', " ,\t");
        }
        let mut fields = Fields::default();
        prop_assert!(fields.scan(line.as_bytes()).is_some());
        prop_assert_eq!(Some(fields), library(line.as_bytes()));
    }

    #[test]
    fn the_scanner_accepts_nothing_that_the_library_refuses(
        line in "[{]\"ev\":\"(tick|req)\"(,\"(t|id|kv|blocks|pod)\":([\\[\\]{}0-9.,eE+-]|1e5|00|[0-9]{1,22}|\\[[0-9,]{0,9}\\]|\"\\\\u0041\"|null){1,3}){0,3}[}]? ?",
    ) {
        let mut fields = Fields::default();
        if fields.scan(line.as_bytes()).is_some() {
            // Repeated fields are the one difference: the library refuses them, the last one counts here.
            let repeated = library(line.as_bytes()).is_none()
                && serde_json::from_str::<serde_json::Value>(&line).is_ok();
            let mut read = library(line.as_bytes());
            // Of whole numbers beyond 64 bits the library is wrong in the last bit.
            let last_bit = |own: Option<f64>, other: &mut Option<f64>| {
                if own.zip(*other).is_some_and(|(own, other)| (own - other).abs() <= own.abs() * 4.0 * f64::EPSILON) {
                    *other = own;
                }
            };
            if let Some(read) = &mut read {
                last_bit(fields.t, &mut read.t);
                last_bit(fields.kv, &mut read.kv);
            }
            prop_assert!(repeated || read == Some(fields), "{}", line);
        }
    }
}
