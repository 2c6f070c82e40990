//! Any messages of a data plane, through the whole edge: gRPC frames, protobuf, conversion, machine, replies.
//!
//! The bytes are read as a script: how the stream is set up, which messages come (well formed, with metadata of
//! any kind, or raw bytes as a message or as a frame), and how it ends (half-close, transport error, drop, stop).
//!
//! * the exchange is opened at most once, decides at most once, and ends exactly once and last;
//! * it decides on the body that was sent, in full;
//! * the replies obey Envoy's contract: per direction headers, pieces of at most 62,000 bytes, one end; nothing
//!   after a refusal; a routed duplex request is given back in full, or as rewritten, with its length;
//! * no stream and no drain hold is left behind.
//!
//! The same bytes are then played to the machine alone, where a decision may also come late or never.
#![no_main]

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes};
use http_body::{Body, Frame};
use libfuzzer_sys::fuzz_target;
use pointsman::domain::{Headers, Outcome, Rejection, Served};
use pointsman::extproc::machine::{Action, BodyMode, Event, Machine, Message, Modes, Part, ReadFailure, Rules};
use pointsman::extproc::{CompleteRequest, DESTINATION, Exchange, Exchanges, ExtProc, Route, SetHeader, Settings};
use pointsman::lifecycle::drain;
use pointsman::pb::envoy::config::core::v3 as core;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use pointsman::pb::pointsman::wire::v1 as meta;
use prost::Message as _;
use smallvec::SmallVec;
use tower_service::Service;
use wire::body_mutation::Mutation;
use wire::processing_request::Request;
use wire::processing_response::Response;

const PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
const MAX_PIECE: usize = 62_000;
const MAX_BODY: usize = 150_000;
const MAX_MESSAGE: usize = 140_000;
/// Fewer than the edge takes in one poll, so that pending means waiting.
const MAX_MESSAGES: usize = 100;
/// Bytes of the large chunks of one script, so that a script takes less than a millisecond.
const MAX_BULK: usize = 400_000;

/// Reads the script; at its end everything is zero.
#[derive(Clone)]
struct Tape<'t> {
    rest: &'t [u8],
    bulk: usize,
}

impl<'t> Tape<'t> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    fn bytes(&mut self) -> &'t [u8] {
        let length = usize::from(self.byte()).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn chunk(&mut self) -> Bytes {
        match self.byte() {
            0..64 => Bytes::new(),
            64..224 => Bytes::copy_from_slice(self.bytes()),
            large => {
                // Around the limit of a piece, and twice that.
                let length = (MAX_PIECE - 8 + usize::from(large % 16)) * (1 + usize::from(large / 16 % 2));
                self.bulk += length;
                if self.bulk > MAX_BULK { Bytes::new() } else { Bytes::from(vec![large; length]) }
            }
        }
    }

    fn header(&mut self) -> (Bytes, Bytes) {
        const NAMES: [&str; 8] =
            [":path", ":status", "X-Control", "x-control", "content-length", "x-request-id", "", "x-other"];
        const VALUES: [&str; 6] = ["200", "503", "/v1/completions", "999999", " 204 ", ""];
        let (name, value) = (self.byte(), self.byte());
        let name = match NAMES.get(usize::from(name)) {
            Some(known) => Bytes::from_static(known.as_bytes()),
            None => Bytes::copy_from_slice(self.bytes()),
        };
        let value = match VALUES.get(usize::from(value)) {
            Some(known) => Bytes::from_static(known.as_bytes()),
            None => Bytes::copy_from_slice(self.bytes()),
        };
        (name, value)
    }

    fn metadata(&mut self) -> Bytes {
        use meta::value::Kind;
        let text = |bytes: &[u8]| meta::Value { kind: Some(Kind::StringValue(Bytes::copy_from_slice(bytes))) };
        let kind = self.byte();
        let value = match kind % 8 {
            1 => text(b"10.0.0.1:8000"),
            2 => text(self.bytes()),
            3 => {
                let values = (0..self.byte() % 4).map(|_| text(self.bytes())).collect();
                meta::Value { kind: Some(Kind::ListValue(meta::ListValue { values })) }
            }
            4 => meta::Value { kind: Some(Kind::NumberValue(f64::from(kind))) },
            5 => meta::Value { kind: None },
            6 => return Bytes::copy_from_slice(self.bytes()),
            _ => return Bytes::new(),
        };
        let (space, key) = if kind < 128 {
            ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset")
        } else {
            ("envoy.lb", "x-gateway-destination-endpoint-served")
        };
        let field = meta::StructEntry { key: Bytes::from_static(key.as_bytes()), value: Some(value) };
        let entry = core::MetadataEntry {
            key: Bytes::from_static(space.as_bytes()),
            value: Some(meta::Struct { fields: vec![field] }),
        };
        core::Metadata { filter_metadata: vec![entry] }.encode_to_vec().into()
    }

    fn part(&mut self, kind: u8) -> Option<Request> {
        let end_of_stream = kind & 0x10 != 0;
        let http_headers = |tape: &mut Self| {
            let headers = (0..tape.byte() % 8)
                .map(|_| {
                    let (key, value) = tape.header();
                    if tape.byte() % 2 == 0 {
                        core::HeaderValue { key, raw_value: value, ..Default::default() }
                    } else {
                        core::HeaderValue { key, value, ..Default::default() }
                    }
                })
                .collect();
            wire::HttpHeaders { headers: Some(core::HeaderMap { headers }), end_of_stream }
        };
        Some(match kind % 8 {
            0 => Request::RequestHeaders(http_headers(self)),
            1 | 2 => Request::RequestBody(wire::HttpBody { body: self.chunk(), end_of_stream }),
            3 => Request::RequestTrailers(wire::HttpTrailers {}),
            4 => Request::ResponseHeaders(http_headers(self)),
            5 => Request::ResponseBody(wire::HttpBody { body: self.chunk(), end_of_stream }),
            6 => Request::ResponseTrailers(wire::HttpTrailers {}),
            _ => return None,
        })
    }

    fn modes(&mut self) -> Option<wire::ProtocolConfiguration> {
        const MODES: [i32; 8] = [4, 4, 4, 2, 2, 0, 1, 77];
        let byte = self.byte();
        (byte & 1 == 0).then(|| wire::ProtocolConfiguration {
            request_body_mode: MODES[usize::from(byte >> 1) % 8],
            response_body_mode: MODES[usize::from(byte >> 4) % 8],
            ..Default::default()
        })
    }
}

/// What the exchange saw and said.
#[derive(Default)]
struct Record {
    opened: usize,
    decided: Option<Bytes>,
    routed: Option<Vec<u8>>,
    response_headers: usize,
    response_ends: usize,
    passed: Vec<u8>,
    ends: Vec<Outcome>,
}

struct Fake {
    habit: u8,
    record: Arc<Mutex<Record>>,
}

struct FakeExchange {
    habit: u8,
    record: Arc<Mutex<Record>>,
}

impl Exchanges for Fake {
    type Exchange = FakeExchange;

    fn open(&self) -> FakeExchange {
        self.record.lock().expect("not poisoned").opened += 1;
        FakeExchange { habit: self.habit, record: self.record.clone() }
    }
}

fn decision(habit: u8, body: &Bytes) -> Result<Route, Rejection> {
    let destination = "10.0.0.1:8000".into();
    let head = Bytes::from_static(b"rewritten");
    let set_headers: Vec<SetHeader> = vec![("X-Control".into(), Bytes::from_static(b"set"))];
    match habit % 8 {
        0..3 => Ok(Route { destination, ..Route::default() }),
        3 => Ok(Route {
            destination,
            set_headers,
            body: Some([head, Bytes::new(), body.clone()].into()),
            scores: vec![("a".into(), f64::NAN), ("b".into(), 0.5)],
        }),
        4 => Ok(Route { destination, body: Some(SmallVec::new()), ..Route::default() }),
        5 => Ok(Route::default()),
        6 => Err(Rejection::no_endpoints()),
        _ => Err(Rejection::BadRequest("\u{1F600}".repeat(2000))),
    }
}

impl Exchange for FakeExchange {
    fn decide(&mut self, request: CompleteRequest) -> Result<Route, Rejection> {
        let mut record = self.record.lock().expect("not poisoned");
        assert!(record.decided.is_none() && record.ends.is_empty(), "decided twice or after the end");
        assert!(request.has_body || request.body.is_empty());
        assert!(request.body.len() <= MAX_BODY);
        let route = decision(self.habit, &request.body);
        record.routed = route.as_ref().ok().filter(|route| !route.destination.is_empty()).map(|route| {
            let rewritten = route.body.as_ref().filter(|_| request.has_body).map(|parts| parts.concat());
            rewritten.unwrap_or_else(|| request.body.to_vec())
        });
        record.decided = Some(request.body);
        route
    }

    fn response_headers(&mut self, status: u16, _: Headers, _: &Served, _: bool) -> Vec<SetHeader> {
        let mut record = self.record.lock().expect("not poisoned");
        record.response_headers += 1;
        assert!(record.response_headers == 1 && record.ends.is_empty());
        if status == 200 { vec![("X-Added".into(), Bytes::from_static(b"yes"))] } else { Vec::new() }
    }

    fn response_body(&mut self, chunk: &Bytes, end: bool) -> Option<SmallVec<[Bytes; 3]>> {
        let mut record = self.record.lock().expect("not poisoned");
        assert!(record.response_headers == 1 && record.ends.is_empty() && record.response_ends == 0);
        record.response_ends += usize::from(end);
        let parts: SmallVec<[Bytes; 3]> = match self.habit / 8 % 4 {
            0 | 1 => return self.passed(&mut record, chunk),
            2 => [Bytes::from_static(b"+"), chunk.clone(), Bytes::from_static(b"-")].into(),
            _ => SmallVec::new(),
        };
        record.passed.extend(parts.concat());
        Some(parts)
    }

    fn end(&mut self, outcome: Outcome) {
        self.record.lock().expect("not poisoned").ends.push(outcome);
    }
}

impl FakeExchange {
    fn passed(&self, record: &mut Record, chunk: &Bytes) -> Option<SmallVec<[Bytes; 3]>> {
        record.passed.extend_from_slice(chunk);
        None
    }
}

/// The inbound side of the call.
struct Inbound {
    frames: VecDeque<Result<Frame<Bytes>, std::io::Error>>,
    /// Whether the peer keeps the stream open after the last frame.
    open: bool,
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.frames.pop_front() {
            None if self.open => Poll::Pending,
            next => Poll::Ready(next),
        }
    }
}

/// What Envoy accepts.
#[derive(Default)]
struct Contract {
    request_answered: bool,
    request_ended: bool,
    request_given: Vec<u8>,
    length: Option<usize>,
    whole: bool,
    response_answered: bool,
    response_ended: bool,
    response_given: Vec<u8>,
    refused: bool,
}

impl Contract {
    fn take(&mut self, reply: wire::ProcessingResponse) {
        assert!(!self.refused, "a reply after a refusal");
        match reply.response.expect("every reply says something") {
            Response::RequestHeaders(headers) => {
                assert!(!self.request_answered, "request headers answered twice");
                self.request_answered = true;
                self.mutation(&headers.response.expect("always set"));
            }
            Response::RequestBody(body) => {
                assert!(self.request_answered && !self.request_ended, "a request body out of place");
                let common = body.response.expect("always set");
                self.mutation(&common);
                match common.body_mutation.and_then(|mutation| mutation.mutation) {
                    Some(Mutation::StreamedResponse(piece)) => {
                        assert!(piece.body.len() <= MAX_PIECE);
                        self.request_given.extend_from_slice(&piece.body);
                        self.request_ended = piece.end_of_stream;
                    }
                    Some(Mutation::Body(whole)) => {
                        assert!(!self.whole);
                        self.whole = true;
                        self.request_given = whole.into();
                    }
                    None => {}
                }
            }
            Response::RequestTrailers(_) => {
                assert!(self.request_answered && !self.request_ended, "request trailers out of place");
                self.request_ended = true;
            }
            Response::ResponseHeaders(_) => {
                assert!(!self.response_answered, "response headers answered twice");
                self.response_answered = true;
            }
            Response::ResponseBody(body) => {
                assert!(self.response_answered && !self.response_ended, "a response body out of place");
                let mutation = body.response.and_then(|common| common.body_mutation).and_then(|body| body.mutation);
                match mutation {
                    Some(Mutation::StreamedResponse(piece)) => {
                        assert!(piece.body.len() <= MAX_PIECE);
                        self.response_given.extend_from_slice(&piece.body);
                        self.response_ended = piece.end_of_stream;
                    }
                    Some(Mutation::Body(_)) => panic!("a buffered response is not changed"),
                    None => {}
                }
            }
            Response::ResponseTrailers(_) => {
                assert!(self.response_answered && !self.response_ended, "response trailers out of place");
                self.response_ended = true;
            }
            Response::ImmediateResponse(refusal) => {
                assert!(!self.response_answered, "a refusal after response headers");
                let code = refusal.status.expect("always set").code;
                assert!((400..600).contains(&code), "{code}");
                assert!(std::str::from_utf8(&refusal.body).is_ok() && refusal.body.len() <= 4096);
                self.refused = true;
            }
        }
    }

    fn mutation(&mut self, common: &wire::CommonResponse) {
        let Some(mutation) = &common.header_mutation else { return };
        let value = |name: &str| {
            let mut values = mutation.set_headers.iter().filter_map(|option| option.header.as_ref());
            values.find(|header| header.key == name).map(|header| header.raw_value.clone())
        };
        assert_eq!(value(DESTINATION).as_deref(), Some(&b"10.0.0.1:8000"[..]));
        for option in &mutation.set_headers {
            let header = option.header.as_ref().expect("always set");
            assert!(!header.key.iter().any(u8::is_ascii_uppercase));
            assert!(!mutation.remove_headers.contains(&header.key), "set and removed: {header:?}");
        }
        let length = value("content-length").map(|text| String::from_utf8(text.into()).expect("digits"));
        self.length = Some(length.map_or(0, |text| text.parse().expect("a length")));
    }
}

fuzz_target!(|data: &[u8]| {
    let tape = Tape { rest: data, bulk: 0 };
    play_stream(tape.clone());
    play_machine(tape);
});

fn play_stream(mut tape: Tape<'_>) {
    let (habit, ending) = (tape.byte(), tape.byte());
    let mut modes = tape.modes();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    // What was sent, as long as it is known.
    let mut sent: Vec<wire::ProcessingRequest> = Vec::new();
    let mut all_known = true;
    while !tape.rest.is_empty() && frames.len() < MAX_MESSAGES {
        let kind = tape.byte();
        let mut frame = vec![0, 0, 0, 0, 0];
        match kind {
            // A frame that may lie about itself.
            0xF0.. => {
                all_known = false;
                frame = tape.bytes().to_vec();
            }
            _ => {
                match kind {
                    // Raw bytes as a message.
                    0xE0.. => frame.put_slice(tape.bytes()),
                    _ => {
                        let metadata_context = if kind & 0x20 != 0 { tape.metadata() } else { Bytes::new() };
                        let request = tape.part(kind);
                        let protocol_config = modes.take();
                        let message = wire::ProcessingRequest { request, metadata_context, protocol_config };
                        message.encode(&mut frame).expect("a vector takes any length");
                    }
                }
                let length = u32::try_from(frame.len() - 5).expect("short");
                frame[1..5].copy_from_slice(&length.to_be_bytes());
                match wire::ProcessingRequest::decode(&frame[5..]) {
                    Ok(message) if all_known => sent.push(message),
                    _ => all_known = false,
                }
            }
        }
        frames.push(frame);
    }
    let mut inbound: VecDeque<_> = if ending & 0x80 != 0 {
        // As few or as many messages to a DATA frame as the transport likes.
        let bytes = Bytes::from(frames.concat());
        let size = 1 + usize::from(habit) * 64;
        (0..bytes.len()).step_by(size).map(|at| Ok(bytes.slice(at..bytes.len().min(at + size)))).collect()
    } else {
        frames.into_iter().map(|frame| Ok(Bytes::from(frame))).collect()
    };
    if ending % 4 == 1 {
        inbound.push_back(Err(std::io::Error::other("connection reset")));
    }
    let inbound =
        Inbound { frames: inbound.into_iter().map(|frame| frame.map(Frame::data)).collect(), open: ending % 4 >= 2 };

    let record = Arc::new(Mutex::new(Record::default()));
    let (trigger, watcher) = drain::channel();
    let settings = Settings {
        max_request_body: MAX_BODY,
        max_message: MAX_MESSAGE,
        decide_inline_up_to: usize::MAX,
        remove_request_headers: vec!["x-control".into()],
        mark_responses: habit & 0x80 != 0,
    };
    let service = ExtProc::new(Arc::new(Fake { habit, record: record.clone() }), settings, watcher.clone());
    let mut contract = Contract::default();
    let finished = {
        let call = http::Request::builder()
            .method("POST")
            .uri(PATH)
            .header("content-type", "application/grpc")
            .header("grpc-encoding", "gzip")
            .body(inbound)
            .expect("a valid request");
        let mut context = Context::from_waker(Waker::noop());
        let mut server = service.clone().into_server();
        let Poll::Ready(answer) = pin!(server.call(call)).poll(&mut context) else { panic!("the call must not wait") };
        let mut outbound = pin!(answer.expect("infallible").into_body());
        let mut bytes = Vec::new();
        let mut trigger = Some(trigger);
        let finished = loop {
            match outbound.as_mut().poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.extend_from_slice(&data);
                    }
                }
                Poll::Ready(Some(Err(error))) => panic!("our side of the stream failed: {error}"),
                Poll::Ready(None) => break true,
                // Waiting for the peer: it goes away, or we stop.
                Poll::Pending if ending % 4 == 3 && trigger.take().is_some() => {}
                Poll::Pending => break false,
            }
        };
        assert!(finished || ending % 4 == 2, "the stream hangs");
        let mut rest = &bytes[..];
        while let Some((head, tail)) = rest.split_at_checked(5) {
            assert_eq!(head[0], 0, "replies are not compressed");
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            contract.take(wire::ProcessingResponse::decode(&tail[..length]).expect("replies decode"));
            rest = &tail[length..];
        }
        assert!(rest.is_empty());
        finished
    };

    let record = record.lock().expect("not poisoned");
    assert!(record.opened <= 1);
    assert_eq!(record.ends.len(), record.opened, "every exchange ends exactly once");
    assert_eq!((service.open_streams(), watcher.open()), (0, 0), "something is left behind");
    if !all_known {
        return;
    }
    if let Some(decided) = &record.decided {
        let bodies = sent.iter().filter_map(|message| match &message.request {
            Some(Request::RequestBody(body)) => Some(&body.body[..]),
            _ => None,
        });
        assert!(bodies.collect::<Vec<_>>().concat().starts_with(decided), "decided on another body");
    }
    let Some(first) = sent.first() else { return };
    let mode = |pick: fn(&wire::ProtocolConfiguration) -> i32| first.protocol_config.as_ref().map_or(4, pick);
    if let Some(routed) = &record.routed {
        assert_eq!(contract.length, Some(routed.len()), "the length that goes upstream");
        if mode(|config| config.request_body_mode) == 4 || contract.whole {
            assert!(contract.request_given == *routed, "the request was not given back as decided");
        }
    }
    if mode(|config| config.response_body_mode) == 4 && !contract.refused && finished {
        assert!(contract.response_given == record.passed, "the response did not pass as it should");
    }
}

/// The machine alone: decisions may come late, twice or never.
fn play_machine(mut tape: Tape<'_>) {
    let (habit, _) = (tape.byte(), tape.byte());
    let mut modes = tape.modes();
    let rules = Rules { max_request_body: 1000, remove_request_headers: vec![Bytes::from_static(b"x-control")] };
    let mut machine = Machine::new(Arc::new(rules));
    let (mut decided, mut ended, mut closed) = (0, 0, false);
    let mut events = 0;
    let mut gone = false;
    while !gone {
        let kind = if tape.rest.is_empty() || events > 200 { 0xFF } else { tape.byte() };
        events += 1;
        let event = match kind {
            0xFF => Event::Dropped,
            0xF8.. => Event::HalfClosed,
            0xF0.. => Event::Stop,
            0xE8.. => Event::Fault,
            0xE0.. => Event::Failed(match kind % 3 {
                0 => ReadFailure::Disconnected,
                1 => ReadFailure::Malformed,
                _ => ReadFailure::TooLarge { limit: 1 },
            }),
            0xC0.. => Event::Decided(decision(habit, &Bytes::from_static(b"body"))),
            _ => {
                let modes = modes.take().map(|config| Modes {
                    request: BodyMode::from_wire(config.request_body_mode),
                    response: BodyMode::from_wire(config.response_body_mode),
                });
                Event::Message(Message { part: part(tape.part(kind)), modes, subset: None })
            }
        };
        gone = matches!(event, Event::Dropped);
        let mut actions = Vec::new();
        machine.on(event, &mut actions);
        for action in actions {
            assert!(!closed, "an action after the close: {action:?}");
            match action {
                Action::Decide(_) => decided += 1,
                Action::End(_) => ended += 1,
                Action::Close(_) => closed = true,
                other => assert!(!gone, "nobody is there to hear {other:?}"),
            }
            assert!(decided <= 1 && ended <= 1);
        }
    }
    assert_eq!(ended, 1, "exactly one end");
}

fn part(request: Option<Request>) -> Part {
    let headers = |http: wire::HttpHeaders| {
        let mut headers = Headers::default();
        for entry in http.headers.unwrap_or_default().headers {
            headers.push(entry.key, entry.raw_value);
        }
        (headers, http.end_of_stream)
    };
    match request {
        Some(Request::RequestHeaders(http)) => {
            let (headers, end) = headers(http);
            Part::RequestHeaders { headers, end }
        }
        Some(Request::RequestBody(http)) => Part::RequestBody { chunk: http.body, end: http.end_of_stream },
        Some(Request::RequestTrailers(_)) => Part::RequestTrailers,
        Some(Request::ResponseHeaders(http)) => {
            let (headers, end) = headers(http);
            Part::ResponseHeaders { headers, served: Served::Unreported, end }
        }
        Some(Request::ResponseBody(http)) => Part::ResponseBody { chunk: http.body, end: http.end_of_stream },
        Some(Request::ResponseTrailers(_)) => Part::ResponseTrailers,
        None => Part::Other,
    }
}
