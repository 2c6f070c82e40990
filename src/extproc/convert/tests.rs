use super::*;
use crate::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata, MetadataEntry};
use crate::pb::pointsman::wire::v1::{ListValue, StructEntry};
use proptest::prelude::*;

fn text(text: &'static str) -> Value {
    Value { kind: Some(Kind::StringValue(Bytes::from_static(text.as_bytes()))) }
}

fn list(values: &[&'static str]) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.iter().map(|v| text(v)).collect() })) }
}

fn context(namespace: &'static [u8], key: &'static [u8], value: Value) -> Bytes {
    let fields = vec![StructEntry { key: Bytes::from_static(key), value: Some(value) }];
    let entry = MetadataEntry { key: Bytes::from_static(namespace), value: Some(Struct { fields }) };
    let decoy = MetadataEntry { key: Bytes::from_static(b"other"), value: None };
    Metadata { filter_metadata: vec![decoy, entry] }.encode_to_vec().into()
}

#[test]
fn a_subset_is_a_list_or_a_text_and_may_be_empty() {
    for (value, entries) in [
        (list(&["10.0.0.1:8000", "10.0.0.2"]), 2),
        (list(&["10.0.0.1:8000,10.0.0.2"]), 2),
        (text("10.0.0.1:8000, 10.0.0.2"), 2),
        (list(&[]), 0),
        (text(""), 0),
        (list(&["junk"]), 0),
        (Value { kind: Some(Kind::NumberValue(1.0)) }, 0),
        (Value { kind: None }, 0),
    ] {
        let hint = subset(context(SUBSET_NAMESPACE, SUBSET_KEY, value.clone())).expect("decodes");
        assert_eq!(hint.expect("present").entries.len(), entries, "{value:?}");
    }
    assert_eq!(subset(Bytes::new()).expect("decodes"), None);
    assert_eq!(subset(context(SUBSET_NAMESPACE, b"other", text("10.0.0.1"))).expect("decodes"), None);
    assert_eq!(subset(context(b"envoy.lb", SUBSET_KEY, text("10.0.0.1"))).expect("decodes"), None);
    assert!(subset(Bytes::from_static(b"\xff\xff")).is_err(), "a restriction that cannot be read is not ignored");
}

#[test]
fn served_is_a_text() {
    let served = |value| served(context(b"envoy.lb", SERVED_KEY, value)).expect("decodes");
    assert_eq!(served(text("10.0.0.1:8000")).endpoint(), Some("10.0.0.1:8000"));
    assert_eq!(served(text("")), Served::Unnamed);
    assert_eq!(served(list(&["10.0.0.1:8000"])), Served::Unnamed);
}

#[test]
fn raw_value_wins_over_value_and_names_are_lowered() {
    let header = |key: &'static str, value: &'static str, raw: &'static str| HeaderValue {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
        raw_value: Bytes::from_static(raw.as_bytes()),
    };
    let map = HeaderMap { headers: vec![header("A", "value", "raw"), header("b", "value", ""), header("c", "", "")] };
    let headers = headers(Some(map));
    assert_eq!(headers.get("a"), Some("raw"));
    assert_eq!(headers.get("b"), Some("value"));
    assert_eq!(headers.get("c"), Some(""));
}

#[test]
fn a_body_chunk_is_a_slice_of_the_message() {
    let body = Bytes::from(vec![7; 1000]);
    let http = wire::HttpBody { body, end_of_stream: true };
    let request = wire::processing_request::Request::RequestBody(http);
    let encoded: Bytes =
        wire::ProcessingRequest { request: Some(request), ..Default::default() }.encode_to_vec().into();
    let range = encoded.as_ptr_range();
    let decoded = wire::ProcessingRequest::decode(encoded.clone()).expect("decodes");
    let Part::RequestBody { chunk, end: true } = message(decoded, true).expect("converts").part else { panic!() };
    assert!(range.contains(&chunk.as_ptr()));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), wants in any::<bool>()) {
        let context = Bytes::from(bytes.clone());
        let _ = subset(context.clone());
        let _ = served(context);
        if let Ok(request) = wire::ProcessingRequest::decode(Bytes::from(bytes)) {
            let _ = message(request, wants);
        }
    }
}
