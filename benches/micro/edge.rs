//! One request and its answer through the edge, from memory: no socket, no HTTP/2, no thread.
//!
//! Three depths of the same exchange: the state machine alone, the whole edge (gRPC frames, protobuf, machine,
//! replies) with an exchange that decides nothing, and the edge with the director behind it.

#[path = "../load/wire.rs"]
#[allow(dead_code, reason = "the load generator also reads the answers")]
mod wire;

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, request};
use http_body::{Body, Frame};
use pointsman::domain::{Headers, Outcome, Rejection, Served};
use pointsman::extproc::machine::{Action, BodyMode, Event, Machine, Message, Modes, Part, Rules};
use pointsman::extproc::{
    CONTROL_HEADERS, CompleteRequest, Exchange, Exchanges, ExtProc, ExtProcServer, Route, SetHeader, Settings,
};
use pointsman::lifecycle::clock::ManualClock;
use pointsman::lifecycle::drain::{self, DrainTrigger};
use smallvec::SmallVec;

use super::picker::Picker;
use super::requests::{CHUNK, LAST_CHUNK, chat};

/// Largest DATA frame and largest piece of a body in a message, as Envoy cuts them.
const FRAME: usize = 16 << 10;
const PIECE: usize = 64 << 10;
/// Requests that take turns; their prompts share a beginning.
const REQUESTS: usize = 4;
/// Between two arrivals.
const GAP: Duration = Duration::from_millis(5);

/// Size of a request body in bytes, and pieces of the answer.
#[derive(Clone, Copy)]
pub struct Shape {
    pub body: usize,
    pub chunks: usize,
}

fn request_headers() -> Headers {
    Headers::from([
        (":scheme", "http"),
        (":method", "POST"),
        (":authority", "models.example.com"),
        (":path", "/v1/chat/completions"),
        ("user-agent", "bench/1.0"),
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "0f8fad5b-d9cb-469f-a165-70867728950e"),
        ("x-envoy-expected-rq-timeout-ms", "1000000"),
    ])
}

/// What answers are made of: all but the last piece, then the last.
fn chunks(count: usize) -> impl Iterator<Item = (&'static [u8], bool)> {
    (1..=count).map(move |at| if at < count { (CHUNK, false) } else { (LAST_CHUNK, true) })
}

/// The machine alone.
pub fn machine(shape: Shape) -> impl FnMut() {
    let rules = Arc::new(Rules {
        max_request_body: 64 << 20,
        remove_request_headers: CONTROL_HEADERS.map(|name| Bytes::from_static(name.as_bytes())).to_vec(),
    });
    let modes = Some(Modes { request: BodyMode::FullDuplex, response: BodyMode::FullDuplex });
    let body = chat(shape.body, 0);
    let mut parts =
        vec![Message { part: Part::RequestHeaders { headers: request_headers(), end: false }, modes, subset: None }];
    for start in (0..body.len()).step_by(PIECE) {
        let chunk = body.slice(start..body.len().min(start + PIECE));
        parts.push(Part::RequestBody { chunk, end: false }.into());
    }
    parts.push(Part::RequestBody { chunk: Bytes::new(), end: true }.into());
    let answer = Headers::from([(":status", "200"), ("content-type", "text/event-stream; charset=utf-8")]);
    parts.push(Part::ResponseHeaders { headers: answer, served: Served::Unreported, end: false }.into());
    parts.extend(
        chunks(shape.chunks).map(|(chunk, end)| Part::ResponseBody { chunk: Bytes::from_static(chunk), end }.into()),
    );
    let mut actions = Vec::new();
    move || {
        let mut machine = Machine::new(rules.clone());
        let mut done = 0;
        let events = parts.iter().cloned().map(Event::Message).chain([Event::HalfClosed]);
        for event in events {
            let mut next = Some(event);
            while let Some(event) = next.take() {
                machine.on(event, &mut actions);
                for action in actions.drain(..) {
                    done += 1;
                    if let Action::Decide(request) = &action {
                        black_box(request.body.len());
                        next = Some(Event::Decided(Ok(anywhere())));
                    }
                    black_box(action);
                }
            }
        }
        assert!(done > parts.len(), "every message has an answer, and the stream an end");
    }
}

fn anywhere() -> Route {
    Route { destination: "10.0.0.1:8000".into(), ..Route::default() }
}

/// Decides nothing, so that only the edge is left.
struct Anywhere;

impl Exchanges for Anywhere {
    type Exchange = Self;

    fn open(&self) -> Self {
        Self
    }
}

impl Exchange for Anywhere {
    fn decide(&mut self, request: CompleteRequest) -> Result<Route, Rejection> {
        black_box(request);
        Ok(anywhere())
    }

    fn response_headers(&mut self, _: u16, _: Headers, _: &Served, _: bool) -> Vec<SetHeader> {
        Vec::new()
    }

    fn response_body(&mut self, _: &Bytes, _: bool) -> Option<SmallVec<[Bytes; 3]>> {
        None
    }

    fn end(&mut self, outcome: Outcome) {
        assert_eq!(outcome, Outcome::Completed);
    }
}

/// The whole edge.
pub fn stream(shape: Shape) -> impl FnMut() {
    DataPlane::new(Anywhere, shape, Arc::default()).into_run()
}

/// The edge and the director with weighted scorers.
pub fn picker(shape: Shape, access_log: bool, recorded: usize) -> impl FnMut() {
    let Picker { directed, clock } = Picker::new(access_log, recorded);
    DataPlane::new(directed, shape, clock).into_run()
}

/// As [`picker`] with this configuration, access log on and so many decisions recorded.
pub fn configured(shape: Shape, document: &str, recorded: usize) -> impl FnMut() {
    let Picker { directed, clock } = Picker::configured(document, 100, true, recorded);
    DataPlane::new(directed, shape, clock).into_run()
}

/// The director alone, from an exchange that opens to its end: the request is routed and nothing is answered.
pub fn decision(body: usize) -> impl FnMut() {
    let Picker { directed, clock } = Picker::new(false, 0);
    let headers = request_headers();
    let bodies: Vec<Bytes> = (0..REQUESTS).map(|number| chat(body, number)).collect();
    let mut next = bodies.into_iter().cycle();
    move || {
        let body = next.next().unwrap_or_default();
        let mut exchange = directed.open();
        exchange.request_headers(&headers);
        clock.advance(GAP);
        let request = CompleteRequest { headers: headers.clone(), body, has_body: true, subset: None, may_wait: false };
        black_box(exchange.decide(request)).expect("routed");
        exchange.end(Outcome::RoutedOnly);
    }
}

/// The frames of a call in the turns in which they arrive.
type Turns = Arc<[Vec<Bytes>]>;

/// The peer of one service.
struct DataPlane<E: Exchanges> {
    server: ExtProcServer<E>,
    head: request::Parts,
    calls: Vec<Turns>,
    next: usize,
    least: usize,
    clock: Arc<ManualClock>,
    _trigger: DrainTrigger,
}

impl<E: Exchanges> DataPlane<E> {
    fn new(exchanges: E, shape: Shape, clock: Arc<ManualClock>) -> Self {
        let (trigger, watcher) = drain::channel();
        let service = ExtProc::new(Arc::new(exchanges), Settings::default(), watcher);
        let head = Request::post(wire::PATH).header("content-type", "application/grpc").body(()).expect("a request");
        Self {
            server: service.into_server(),
            head: head.into_parts().0,
            calls: (0..REQUESTS).map(|number| turns(shape, number)).collect(),
            next: 0,
            least: shape.body + (shape.chunks - 1) * CHUNK.len(),
            clock,
            _trigger: trigger,
        }
    }

    fn into_run(mut self) -> impl FnMut() {
        move || self.exchange()
    }

    fn exchange(&mut self) {
        let turns = self.calls[self.next % REQUESTS].clone();
        self.next += 1;
        let call = Request::from_parts(self.head.clone(), Inbound { turns, turn: 0, frame: 0 });
        let mut answers = self.server.answer(call).into_body();
        let mut context = Context::from_waker(Waker::noop());
        let (mut bytes, mut status) = (0, None);
        loop {
            match Pin::new(&mut answers).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => bytes += black_box(data).len(),
                    Err(frame) => status = frame.into_trailers().ok(),
                },
                Poll::Ready(Some(Err(error))) => panic!("{error}"),
                Poll::Ready(None) => break,
                Poll::Pending => self.clock.advance(GAP),
            }
        }
        let ok = status.is_some_and(|status| status.get("grpc-status").is_some_and(|status| status == "0"));
        assert!(ok && bytes > self.least, "the request and its answer come back in full");
    }
}

/// The arrivals of one call: the request; the headers of its answer; each piece of that.
fn turns(shape: Shape, number: usize) -> Turns {
    let mut request = vec![wire::request_headers()];
    for piece in chat(shape.body, number).chunks(PIECE) {
        let mut message = Bytes::from([&wire::request_body_head(piece.len()), piece].concat());
        while message.len() > FRAME {
            request.push(message.split_to(FRAME));
        }
        request.push(message);
    }
    request.push(wire::request_end());
    let answer = chunks(shape.chunks).map(|(chunk, end)| vec![wire::response_body(chunk, end)]);
    [request, vec![wire::response_headers()]].into_iter().chain(answer).collect()
}

/// The inbound side of a call.
struct Inbound {
    turns: Turns,
    turn: usize,
    frame: usize,
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(turn) = self.turns.get(self.turn) else { return Poll::Ready(None) };
        match turn.get(self.frame).cloned() {
            Some(frame) => {
                self.frame += 1;
                Poll::Ready(Some(Ok(Frame::data(frame))))
            }
            None => {
                (self.turn, self.frame) = (self.turn + 1, 0);
                Poll::Pending
            }
        }
    }
}
