//! Endpoints files as trees, without the YAML reader (that path is tested in `tests/process.rs`).

use super::*;
use proptest::prelude::*;

fn at(line: u32, value: Value) -> Node {
    Node { at: Position { line, column: 1 }, value }
}

fn text(value: &str) -> Value {
    Value::String(value.into())
}

fn endpoint(line: u32, fields: &[(&str, Value)]) -> Node {
    let entries = fields.iter().map(|(k, v)| ((*k).to_owned(), Position { line, column: 3 }, at(line, v.clone())));
    at(line, Value::Mapping(entries.collect()))
}

fn file(entries: Vec<Node>) -> Node {
    at(1, Value::Mapping(vec![("endpoints".into(), Position { line: 1, column: 1 }, at(1, Value::Sequence(entries)))]))
}

fn read(document: &Node) -> Result<Vec<EndpointSpec>, Vec<String>> {
    let mut problems = Problems::default();
    let specs = decode(document, &mut problems);
    if problems.errors.is_empty() { Ok(specs) } else { Err(problems.errors.iter().map(ToString::to_string).collect()) }
}

#[test]
fn addresses_of_both_families_are_read_with_and_without_brackets() {
    let specs = read(&file(vec![
        endpoint(2, &[("name", text("a")), ("address", text("10.0.0.7")), ("port", Value::Integer(8000))]),
        endpoint(3, &[("name", text("b")), ("address", text("fd00::7")), ("port", text("8000"))]),
        endpoint(4, &[("name", text("c")), ("address", text("[fd00::8]")), ("port", Value::Integer(8000))]),
        endpoint(
            5,
            &[
                ("name", text("a")),
                ("namespace", text("other")),
                ("address", text("10.0.0.7")),
                ("port", Value::Integer(8001)),
                ("labels", Value::Mapping(vec![("role".into(), Position::default(), at(5, text("decode")))])),
            ],
        ),
    ]))
    .unwrap();
    let addresses: Vec<_> = specs.iter().map(|s| s.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.7:8000", "[fd00::7]:8000", "[fd00::8]:8000", "10.0.0.7:8001"]);
    assert_eq!(specs[0].namespace, "default");
    assert_eq!(specs[3].labels["role"], "decode");
}

#[test]
fn every_problem_is_told_with_its_line_and_the_first_of_a_pair() {
    let good = [("name", text("a")), ("address", text("10.0.0.7")), ("port", Value::Integer(80))];
    let errors = read(&file(vec![
        endpoint(2, &good),
        endpoint(3, &good),
        endpoint(4, &[("name", text("h")), ("address", text("server.example")), ("port", Value::Integer(80))]),
        endpoint(5, &[("name", text("p")), ("address", text("10.0.0.8")), ("port", Value::Integer(0))]),
        endpoint(6, &[("name", text("w")), ("address", text("0.0.0.0")), ("port", Value::Integer(80))]),
        endpoint(7, &[("adress", text("10.0.0.9"))]),
    ]))
    .unwrap_err();
    let all = errors.join("\n");
    for wanted in [
        "3:1: endpoints[1].name: `default/a` is already defined on line 2",
        "3:1: endpoints[1].address: 10.0.0.7:80 is already listed on line 2",
        "`server.example` is not an IP address",
        "5:1: endpoints[3].port: `0` is not a port",
        "`0.0.0.0` is no destination",
        "did you mean `address`?",
        "7:1: endpoints[5].name: missing",
        "7:1: endpoints[5].port: missing",
    ] {
        assert!(all.contains(wanted), "`{wanted}` is not in:\n{all}");
    }
}

#[test]
fn an_empty_list_is_a_pool_and_an_empty_file_is_not() {
    assert_eq!(read(&file(Vec::new())), Ok(Vec::new()));
    for wrong in [Value::Null, Value::Mapping(Vec::new()), Value::Sequence(Vec::new()), text("endpoints")] {
        assert!(read(&at(1, wrong.clone())).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_discovery_without_a_path_is_an_error() {
    let mut problems = Problems::default();
    check(None, "plugins[0].parameters", &mut problems);
    check(Some(&endpoint(4, &[("path", text(""))])), "plugins[1].parameters", &mut problems);
    check(Some(&endpoint(5, &[("path", text("e.yaml"))])), "plugins[2].parameters", &mut problems);
    assert_eq!(problems.errors.len(), 2, "{problems:?}");
}

proptest! {
    #[test]
    fn what_is_accepted_has_unique_names_and_addresses(
        entries in proptest::collection::vec((0u8..4, 0u8..4, 0i64..3), 0..12)
    ) {
        let nodes = entries.iter().enumerate().map(|(i, (name, host, port))| {
            let fields = [("name", text(&format!("n{name}"))), ("address", text(&format!("10.0.0.{host}"))), ("port", Value::Integer(*port))];
            endpoint(i as u32 + 2, &fields)
        });
        if let Ok(specs) = read(&file(nodes.collect())) {
            let names: std::collections::HashSet<_> = specs.iter().map(|s| (&s.namespace, &s.name)).collect();
            let addresses: std::collections::HashSet<_> = specs.iter().map(|s| s.address).collect();
            prop_assert_eq!(names.len(), entries.len());
            prop_assert_eq!(addresses.len(), entries.len());
        }
    }
}
