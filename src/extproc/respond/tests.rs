use super::*;
use crate::domain::RejectionReason;
use smallvec::smallvec;

fn answer() -> Answer {
    Answer { destination: "[fd00::1]:8000".into(), content_length: Some(7), ..Answer::default() }
}

fn set_headers(response: &ProcessingResponse) -> Vec<(String, String)> {
    let Some(Response::RequestHeaders(HeadersResponse { response: Some(common) })) = &response.response else {
        panic!("{response:?}")
    };
    let mutation = common.header_mutation.as_ref().expect("a mutation");
    mutation
        .set_headers
        .iter()
        .map(|option| {
            let header = option.header.as_ref().expect("a header");
            assert!(header.value.is_empty(), "only raw_value is written");
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            (text(&header.key), text(&header.raw_value))
        })
        .collect()
}

#[test]
fn names_are_lower_case_and_ours_cannot_be_set_twice() {
    let answer = Answer {
        set_headers: vec![
            ("X-Made".into(), Bytes::from_static(b"1")),
            (Cow::Owned(DESTINATION.to_ascii_uppercase()), Bytes::from_static(b"evil")),
            ("Content-Length".into(), Bytes::from_static(b"0")),
        ],
        remove_headers: smallvec![Bytes::from_static(b"x-control")],
        ..answer()
    };
    let response = response(Reply::RequestHeaders(Box::new(answer)));
    let headers = set_headers(&response);
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(headers, [(DESTINATION, "[fd00::1]:8000"), ("content-length", "7"), ("x-made", "1")]);
}

#[test]
fn scores_go_into_the_metadata_beside_the_destination() {
    let answer = Answer { scores: vec![("a".into(), 0.5), ("b".into(), f64::NAN)], ..answer() };
    let metadata = metadata(&answer);
    assert_eq!(metadata.fields[0].key, "envoy.lb");
    let Some(Value { kind: Some(Kind::StructValue(inner)) }) = &metadata.fields[0].value else { panic!() };
    let [destination, scores] = &inner.fields[..] else { panic!("{inner:?}") };
    assert_eq!(destination.key, DESTINATION);
    assert_eq!(
        destination.value.as_ref().and_then(|v| v.kind.clone()),
        Some(Kind::StringValue(Bytes::from_static(b"[fd00::1]:8000")))
    );
    let Some(Value { kind: Some(Kind::StructValue(scores)) }) = &scores.value else { panic!() };
    assert_eq!(scores.fields.len(), 1, "a score that is no number is left out");
}

#[test]
fn refusals_are_short_utf8_with_a_token() {
    let long = Rejection::BadRequest("é".repeat(10_000));
    for rejection in [
        Rejection::no_endpoints(),
        Rejection::TooLarge { limit: 3, setting: "--max-request-body" },
        Rejection::PreconditionFailed("x".into()),
        Rejection::Internal("x".into()),
        Rejection::ResourceExhausted { message: "x".into(), reason: RejectionReason::Saturated },
        long,
    ] {
        let immediate = immediate(&rejection);
        let text = std::str::from_utf8(&immediate.body).expect("UTF-8");
        assert!(text.starts_with(&format!("inference error: {} - ", rejection.code())) && text.len() <= MAX_TEXT);
        assert_eq!(immediate.status.expect("a status").code, i32::from(rejection.status()));
        assert!(immediate.details.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'-'));
        let reason = immediate.headers.map(|headers| headers.set_headers[0].header.clone().expect("a header"));
        assert_eq!(reason.is_some(), rejection.reason().is_some());
        if let Some(header) = reason {
            assert_eq!(header.key, DROPPED_REASON);
        }
    }
}

/// What a peer reads when what was written and what was returned are put together.
fn read(reply: Reply) -> (ProcessingResponse, Option<Bytes>) {
    let mut out = BytesMut::new();
    let piece = write(reply, &mut out);
    out.extend_from_slice(piece.as_deref().unwrap_or_default());
    assert_eq!(out[0], 0);
    assert_eq!(u32::from_be_bytes(out[1..5].try_into().expect("four")) as usize, out.len() - 5);
    (ProcessingResponse::decode(&out[5..]).expect("decodes"), piece)
}

#[test]
fn what_is_written_is_what_prost_would_write() {
    for size in [0, 1, 100, 127, 128, 1024, 1025, 16_383, 16_384, 62_000] {
        for end in [false, true] {
            let piece = Bytes::from(vec![b'x'; size]);
            for reply in [Reply::RequestBody { piece: piece.clone(), end }, Reply::ResponseBody { piece, end }] {
                let expected = response(reply.clone());
                let (read, returned) = read(reply);
                assert_eq!(read, expected, "{size} bytes, end {end}");
                assert_eq!(returned.is_some(), size > MAX_COPIED, "large pieces are not copied");
            }
        }
    }
    let answer = Reply::RequestHeaders(Box::new(answer()));
    assert_eq!(read(answer.clone()).0, response(answer));
}
