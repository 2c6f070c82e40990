use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::pb::envoy::service::ext_proc::v3::{HttpHeaders, ProtocolConfiguration};

const LIMIT: usize = 1 << 20;

fn framed(message: &[u8], compressed: bool) -> Vec<u8> {
    let mut out = vec![u8::from(compressed)];
    out.extend_from_slice(&u32::try_from(message.len()).expect("small").to_be_bytes());
    out.extend_from_slice(message);
    out
}

fn body_message(body: &[u8], end: bool, metadata: &'static [u8]) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(Request::RequestBody(HttpBody { body: Bytes::copy_from_slice(body), end_of_stream: end })),
        metadata_context: Bytes::from_static(metadata),
        ..Default::default()
    }
}

fn headers_message() -> ProcessingRequest {
    ProcessingRequest {
        request: Some(Request::RequestHeaders(HttpHeaders::default())),
        protocol_config: Some(ProtocolConfiguration { request_body_mode: 4, ..Default::default() }),
        ..Default::default()
    }
}

/// Reads `wire` in DATA frames that end at `cuts`; pieces of bodies are put together again.
fn read(wire: &[u8], cuts: &[usize], limit: usize) -> Result<Vec<ProcessingRequest>, ReadFailure> {
    let mut reader = Reader::new(limit, true);
    let mut messages = Vec::new();
    let mut early = BytesMut::new();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).chain([wire.len()]).collect();
    ends.sort_unstable();
    let mut from = 0;
    for end in ends {
        reader.push(Bytes::copy_from_slice(&wire[from..end]));
        from = end;
        while let Some(received) = reader.next()? {
            match received {
                Received::RequestBodyPart(part) => {
                    assert!(!part.is_empty(), "an empty part says nothing");
                    early.extend_from_slice(&part);
                }
                Received::Message(mut message) => {
                    if !early.is_empty() {
                        let Some(Request::RequestBody(body)) = &mut message.request else {
                            panic!("parts of a body end with a body message, not with {message:?}")
                        };
                        early.extend_from_slice(&body.body);
                        body.body = early.split().freeze();
                    }
                    messages.push(message);
                }
            }
        }
    }
    assert!(reader.is_between_messages(), "nothing is left over");
    Ok(messages)
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut(
        bodies in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..400), any::<bool>(), any::<bool>()), 1..5),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut sent = vec![headers_message()];
        sent.extend(bodies.iter().map(|(body, end, told)| body_message(body, *end, if *told { b"\x0a\x02hi" } else { b"" })));
        let wire: Vec<u8> = sent.iter().flat_map(|message| framed(&message.encode_to_vec(), false)).collect();
        prop_assert_eq!(read(&wire, &cuts, LIMIT), Ok(sent));
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        wire in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
    ) {
        let mut reader = Reader::new(64, true);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).chain([wire.len()]).collect();
        ends.sort_unstable();
        let (mut from, mut refused) = (0, false);
        for end in ends {
            reader.push(Bytes::copy_from_slice(&wire[from..end]));
            from = end;
            loop {
                match reader.next() {
                    Ok(Some(_)) => prop_assert!(!refused, "nothing is read after a failure"),
                    Ok(None) => break,
                    Err(_) => refused = true,
                }
            }
        }
    }
}

#[test]
fn a_body_in_one_frame_is_not_copied() {
    let wire = Bytes::from(framed(&body_message(&[7; 5000], true, b"").encode_to_vec(), false));
    let mut reader = Reader::new(LIMIT, false);
    reader.push(wire.clone());
    let Ok(Some(Received::Message(ProcessingRequest { request: Some(Request::RequestBody(body)), .. }))) =
        reader.next()
    else {
        panic!("a message")
    };
    assert!(wire.as_ptr_range().contains(&body.body.as_ptr()));
}

#[test]
fn a_body_is_handed_on_while_it_comes() {
    let wire = Bytes::from(framed(&body_message(&[7; 50_000], true, b"").encode_to_vec(), false));
    let mut reader = Reader::new(LIMIT, false);
    reader.push(wire.slice(..16_384));
    let Ok(Some(Received::RequestBodyPart(part))) = reader.next() else { panic!("a part") };
    assert!(part.len() > 16_000 && wire.as_ptr_range().contains(&part.as_ptr()));
    assert!(matches!(reader.next(), Ok(None)));
    assert!(!reader.is_between_messages());
}

#[test]
fn gzip_is_read_where_it_was_announced() {
    let message = body_message(&[b'a'; 9000], true, b"");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&message.encode_to_vec()).expect("memory");
    let packed = encoder.finish().expect("memory");
    let wire = framed(&packed, true);
    assert_eq!(read(&wire, &[3, 20], LIMIT), Ok(vec![message]));
    // A small message that unpacks to more than the limit.
    assert_eq!(read(&wire, &[], 8000), Err(ReadFailure::TooLarge { limit: 8000 }));
    assert_eq!(read(&framed(b"no gzip", true), &[], LIMIT), Err(ReadFailure::Malformed));
    let mut plain = Reader::new(LIMIT, false);
    plain.push(wire.into());
    assert_eq!(plain.next().err(), Some(ReadFailure::Malformed));
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_bytes_come() {
    let mut reader = Reader::new(1000, true);
    reader.push(Bytes::from_static(&[0, 0, 0, 3, 233]));
    assert_eq!(reader.next().err(), Some(ReadFailure::TooLarge { limit: 1000 }));
    reader.push(Bytes::from_static(&[0; 2000]));
    assert!(matches!(reader.next(), Ok(None)), "after a failure nothing is read and nothing kept");
    assert!(reader.is_between_messages());
}

#[test]
fn a_second_part_in_a_message_that_was_handed_on_is_refused() {
    let mut message = body_message(&[7; 100], false, b"").encode_to_vec();
    message.extend(body_message(b"again", true, b"").encode_to_vec());
    let wire = framed(&message, false);
    // Complete it is protobuf's affair (the last one counts); in pieces the first is gone already.
    assert!(read(&wire, &[], LIMIT).is_ok());
    assert_eq!(read(&wire, &[60], LIMIT), Err(ReadFailure::Malformed));
}

#[test]
fn a_message_in_single_bytes_is_kept_in_few_pieces() {
    // Response bodies are not handed on in pieces, so the whole message is kept.
    let message = ProcessingRequest {
        request: Some(Request::ResponseBody(HttpBody { body: Bytes::from(vec![7; 5000]), end_of_stream: true })),
        ..Default::default()
    };
    let wire = framed(&message.encode_to_vec(), false);
    let mut reader = Reader::new(LIMIT, false);
    for byte in &wire {
        assert!(matches!(reader.next(), Ok(None)));
        reader.push(Bytes::copy_from_slice(&[*byte]));
        assert!(reader.data.chunks.len() <= MAX_CHUNKS);
    }
    let Ok(Some(Received::Message(read))) = reader.next() else { panic!("a message") };
    assert_eq!(read, message);
    assert!(reader.is_between_messages());
}
