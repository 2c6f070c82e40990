//! Our cut-down messages against complete Envoy types: what one side encodes the other must read (R-compat).

use bytes::Bytes;
use envoy_types::pb as full;
use envoy_types::pb::envoy::service::ext_proc::v3 as theirs;
use pointsman::pb::envoy::config::core::v3 as core;
use pointsman::pb::envoy::service::ext_proc::v3 as ours;
use pointsman::pb::pointsman::wire::v1 as wire;
use prost::Message;

/// Encodes one type, decodes as another.
fn cross<A: Message, B: Message + Default>(message: &A) -> B {
    B::decode(Bytes::from(message.encode_to_vec())).expect("the other side reads it")
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn their_header(key: &str, value: &str, raw: &[u8]) -> full::envoy::config::core::v3::HeaderValue {
    full::envoy::config::core::v3::HeaderValue { key: key.into(), value: value.into(), raw_value: raw.to_vec() }
}

fn their_string(text: &str) -> full::google::protobuf::Value {
    full::google::protobuf::Value { kind: Some(full::google::protobuf::value::Kind::StringValue(text.into())) }
}

fn their_struct(entries: Vec<(&str, full::google::protobuf::Value)>) -> full::google::protobuf::Struct {
    full::google::protobuf::Struct { fields: entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
}

/// A request as full as a data plane could make it, with fields that we do not know.
fn their_request(request: theirs::processing_request::Request) -> theirs::ProcessingRequest {
    use full::google::protobuf::value::Kind;
    let list = full::google::protobuf::ListValue { values: vec![their_string("10.0.0.1:8000"), their_string("b")] };
    let hint = full::google::protobuf::Value { kind: Some(Kind::ListValue(list)) };
    let filter_metadata = [
        ("envoy.lb.subset_hint".to_owned(), their_struct(vec![("x-gateway-destination-endpoint-subset", hint)])),
        (
            "envoy.lb".to_owned(),
            their_struct(vec![("flag", full::google::protobuf::Value { kind: Some(Kind::BoolValue(true)) })]),
        ),
    ];
    theirs::ProcessingRequest {
        request: Some(request),
        metadata_context: Some(full::envoy::config::core::v3::Metadata {
            filter_metadata: filter_metadata.into(),
            typed_filter_metadata: Default::default(),
        }),
        attributes: [("a".to_owned(), their_struct(vec![("b", their_string("c"))]))].into(),
        observability_mode: true,
        protocol_config: Some(theirs::ProtocolConfiguration {
            request_body_mode: 4,
            response_body_mode: 2,
            send_body_without_waiting_for_header_response: true,
        }),
        ..Default::default()
    }
}

#[test]
fn we_read_every_request_message() {
    use ours::processing_request::Request as Ours;
    use theirs::processing_request::Request as Theirs;

    let map = || full::envoy::config::core::v3::HeaderMap {
        headers: vec![their_header(":path", "", b"/v1/\xff"), their_header("x-value", "text", b"")],
    };
    let http_headers =
        |end_of_stream| theirs::HttpHeaders { headers: Some(map()), end_of_stream, ..Default::default() };
    let body = |end_of_stream| theirs::HttpBody {
        body: b"\x00body".to_vec(),
        end_of_stream,
        grpc_message_compressed: true,
        ..Default::default()
    };
    for (index, request) in [
        Theirs::RequestHeaders(http_headers(true)),
        Theirs::ResponseHeaders(http_headers(false)),
        Theirs::RequestBody(body(true)),
        Theirs::ResponseBody(body(false)),
        Theirs::RequestTrailers(theirs::HttpTrailers { trailers: Some(map()) }),
        Theirs::ResponseTrailers(theirs::HttpTrailers { trailers: Some(map()) }),
    ]
    .into_iter()
    .enumerate()
    {
        let read: ours::ProcessingRequest = cross(&their_request(request));
        let config = read.protocol_config.expect("the configuration");
        assert_eq!((config.request_body_mode, config.response_body_mode), (4, 2));
        assert!(config.send_body_without_waiting_for_header_response);
        let check_headers = |http: &ours::HttpHeaders, end: bool| {
            let headers = &http.headers.as_ref().expect("headers").headers;
            assert_eq!(headers[0].key, ":path");
            assert_eq!(headers[0].raw_value, b"/v1/\xff"[..]);
            assert_eq!((&headers[1].key, &headers[1].value), (&bytes("x-value"), &bytes("text")));
            assert_eq!(http.end_of_stream, end);
        };
        match (index, read.request.expect("a request")) {
            (0, Ours::RequestHeaders(http)) => check_headers(&http, true),
            (1, Ours::ResponseHeaders(http)) => check_headers(&http, false),
            (2, Ours::RequestBody(http)) => assert!(http.body == b"\x00body"[..] && http.end_of_stream),
            (3, Ours::ResponseBody(http)) => assert!(http.body == b"\x00body"[..] && !http.end_of_stream),
            (4, Ours::RequestTrailers(_)) | (5, Ours::ResponseTrailers(_)) => {}
            (index, other) => panic!("{index} became {other:?}"),
        }

        let metadata = core::Metadata::decode(read.metadata_context).expect("metadata");
        let entry = metadata.filter_metadata.iter().find(|e| e.key == "envoy.lb.subset_hint").expect("the hint");
        let field = &entry.value.as_ref().expect("a struct").fields[0];
        assert_eq!(field.key, "x-gateway-destination-endpoint-subset");
        let Some(wire::Value { kind: Some(wire::value::Kind::ListValue(list)) }) = &field.value else {
            panic!("{field:?}")
        };
        assert_eq!(list.values[0].kind, Some(wire::value::Kind::StringValue(bytes("10.0.0.1:8000"))));
    }
}

#[test]
fn they_read_every_reply() {
    use full::google::protobuf::value::Kind as TheirKind;
    use ours::processing_response::Response as Ours;
    use theirs::processing_response::Response as Theirs;

    let header = |key: &str, raw: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue { key: bytes(key), value: Bytes::new(), raw_value: bytes(raw) }),
    };
    let mutation = || ours::HeaderMutation {
        set_headers: vec![header("x-gateway-destination-endpoint", "10.0.0.1:8000")],
        remove_headers: vec![bytes("x-control")],
    };
    let string = |text: &str| wire::Value { kind: Some(wire::value::Kind::StringValue(bytes(text))) };
    let field = |key: &str, value| wire::StructEntry { key: bytes(key), value: Some(value) };
    let common = |body_mutation| ours::CommonResponse {
        header_mutation: Some(mutation()),
        body_mutation,
        clear_route_cache: true,
    };
    let number = wire::Value { kind: Some(wire::value::Kind::NumberValue(0.5)) };
    let scores =
        wire::Value { kind: Some(wire::value::Kind::StructValue(wire::Struct { fields: vec![field("a", number)] })) };
    let lb = wire::Value {
        kind: Some(wire::value::Kind::StructValue(wire::Struct {
            fields: vec![field("x-gateway-destination-endpoint", string("10.0.0.1:8000")), field("scores", scores)],
        })),
    };
    let dynamic_metadata = wire::Struct { fields: vec![field("envoy.lb", lb)] };
    let streamed = || ours::BodyMutation {
        mutation: Some(ours::body_mutation::Mutation::StreamedResponse(ours::StreamedBodyResponse {
            body: bytes("piece"),
            end_of_stream: true,
        })),
    };
    let whole = || ours::BodyMutation { mutation: Some(ours::body_mutation::Mutation::Body(bytes("whole"))) };

    let send = |response| -> theirs::ProcessingResponse {
        cross(&ours::ProcessingResponse { response: Some(response), dynamic_metadata: Some(dynamic_metadata.clone()) })
    };
    let check_common = |common: &theirs::CommonResponse| {
        let mutation = common.header_mutation.as_ref().expect("a mutation");
        assert_eq!(mutation.remove_headers, ["x-control"]);
        let option = &mutation.set_headers[0];
        let header = option.header.as_ref().expect("a header");
        assert_eq!((header.key.as_str(), header.value.as_str()), ("x-gateway-destination-endpoint", ""));
        assert_eq!(header.raw_value, b"10.0.0.1:8000");
        assert_eq!(option.append_action, 0, "unset (R-14)");
        assert!(common.clear_route_cache);
        assert_eq!(common.status, 0, "CONTINUE");
    };

    let read = send(Ours::RequestHeaders(ours::HeadersResponse { response: Some(common(None)) }));
    let metadata = read.dynamic_metadata.as_ref().expect("metadata");
    let Some(TheirKind::StructValue(lb)) = &metadata.fields["envoy.lb"].kind else { panic!("{metadata:?}") };
    assert_eq!(lb.fields["x-gateway-destination-endpoint"], their_string("10.0.0.1:8000"));
    let Some(TheirKind::StructValue(scores)) = &lb.fields["scores"].kind else { panic!("{lb:?}") };
    assert_eq!(scores.fields["a"].kind, Some(TheirKind::NumberValue(0.5)));
    let Some(Theirs::RequestHeaders(headers)) = read.response else { panic!("{read:?}") };
    check_common(&headers.response.expect("a common response"));

    let read = send(Ours::ResponseHeaders(ours::HeadersResponse { response: Some(common(None)) }));
    let Some(Theirs::ResponseHeaders(headers)) = read.response else { panic!("{read:?}") };
    check_common(&headers.response.expect("a common response"));

    for whole_body in [false, true] {
        let mutation = || Some(if whole_body { whole() } else { streamed() });
        let body = || ours::BodyResponse { response: Some(common(mutation())) };
        let (request, response) = (send(Ours::RequestBody(body())), send(Ours::ResponseBody(body())));
        let (Some(Theirs::RequestBody(request)), Some(Theirs::ResponseBody(response))) =
            (request.response, response.response)
        else {
            panic!("bodies")
        };
        for body in [request, response] {
            let common = body.response.expect("a common response");
            check_common(&common);
            match common.body_mutation.and_then(|mutation| mutation.mutation) {
                Some(theirs::body_mutation::Mutation::Body(body)) if whole_body => assert_eq!(body, b"whole"),
                Some(theirs::body_mutation::Mutation::StreamedResponse(piece)) if !whole_body => {
                    assert_eq!(piece.body, b"piece");
                    assert!(piece.end_of_stream && !piece.end_of_stream_without_message);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    assert!(matches!(
        send(Ours::RequestTrailers(ours::TrailersResponse {})).response,
        Some(Theirs::RequestTrailers(_))
    ));
    assert!(matches!(
        send(Ours::ResponseTrailers(ours::TrailersResponse {})).response,
        Some(Theirs::ResponseTrailers(_))
    ));

    let read = send(Ours::ImmediateResponse(ours::ImmediateResponse {
        status: Some(pointsman::pb::envoy::r#type::v3::HttpStatus { code: 503 }),
        headers: Some(mutation()),
        body: bytes("text"),
        details: bytes("token"),
    }));
    let Some(Theirs::ImmediateResponse(immediate)) = read.response else { panic!("{read:?}") };
    assert_eq!(immediate.status.expect("a status").code, 503);
    assert_eq!((immediate.body.as_slice(), immediate.details.as_str()), (&b"text"[..], "token"));
    assert!(immediate.grpc_status.is_none());
    assert_eq!(immediate.headers.expect("headers").remove_headers, ["x-control"]);
}

#[test]
fn they_read_our_requests_and_we_read_their_replies() {
    // The test clients and benches speak with our types; they must be what a data plane would send.
    let request = ours::ProcessingRequest {
        request: Some(ours::processing_request::Request::RequestBody(ours::HttpBody {
            body: bytes("b"),
            end_of_stream: true,
        })),
        metadata_context: core::Metadata {
            filter_metadata: vec![core::MetadataEntry {
                key: bytes("envoy.lb"),
                value: Some(wire::Struct { fields: vec![] }),
            }],
        }
        .encode_to_vec()
        .into(),
        protocol_config: Some(ours::ProtocolConfiguration { request_body_mode: 2, ..Default::default() }),
    };
    let read: theirs::ProcessingRequest = cross(&request);
    assert!(read.metadata_context.expect("metadata").filter_metadata.contains_key("envoy.lb"));
    assert_eq!(read.protocol_config.expect("configuration").request_body_mode, 2);
    let Some(theirs::processing_request::Request::RequestBody(body)) = read.request else { panic!() };
    assert!(body.body == b"b" && body.end_of_stream);

    let reply = theirs::ProcessingResponse {
        response: Some(theirs::processing_response::Response::ImmediateResponse(theirs::ImmediateResponse {
            status: Some(full::envoy::r#type::v3::HttpStatus { code: 429 }),
            body: b"text".to_vec(),
            ..Default::default()
        })),
        request_drain_requests: true,
        ..Default::default()
    };
    let read: ours::ProcessingResponse = cross(&reply);
    let Some(ours::processing_response::Response::ImmediateResponse(immediate)) = read.response else { panic!() };
    assert_eq!(immediate.status.expect("a status").code, 429);
    assert_eq!(immediate.body, "text");
}
