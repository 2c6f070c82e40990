//! A small director to route with, a real gRPC server and client on loopback, and short texts for replies.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use pointsman::domain::{Headers, Outcome, Rejection, Served};
use pointsman::extproc::machine::{
    Action, Answer, Event, Machine, Message, Modes, Part, Reply, Rules, response_replies,
};
use pointsman::extproc::machine::{BodyMode, Close};
use pointsman::extproc::{CONTROL_HEADERS, CompleteRequest, Exchange, Exchanges, ExtProc, Route, SetHeader, Settings};
use pointsman::extproc::{DESTINATION, DROPPED_REASON, SubsetHint};
use pointsman::lifecycle::drain::{self, DrainTrigger};
use pointsman::pb::envoy::config::core::v3 as core;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use pointsman::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use pointsman::pb::pointsman::wire::v1 as meta;
use prost::Message as _;
use smallvec::SmallVec;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

/// What an exchange saw.
#[derive(Debug, Default, Clone)]
pub struct Record {
    pub decided: usize,
    pub body: Bytes,
    pub status: Option<u16>,
    pub served: Option<String>,
    pub response: Vec<u8>,
    pub response_ended: usize,
    pub ends: Vec<Outcome>,
}

/// Routes JSON bodies with a model to the first pod allowed.
#[derive(Default)]
pub struct Fake {
    pub pods: Vec<SocketAddr>,
    pub records: Mutex<Vec<Arc<Mutex<Record>>>>,
    pub ended: AtomicUsize,
    /// Keeps decisions that ask to wait from finishing.
    pub closed: AtomicBool,
    /// Requests that are held now, and who waits for them.
    pub held: AtomicUsize,
    pub wakers: Mutex<Vec<std::task::Waker>>,
}

pub struct FakeExchange(Arc<Fake>, Arc<Mutex<Record>>, Option<HeldRequest>);

/// A request that is held until the fake is opened.
pub struct HeldRequest(CompleteRequest, Arc<Fake>);

impl HeldRequest {
    fn new(request: CompleteRequest, fake: &Arc<Fake>) -> Self {
        fake.held.fetch_add(1, Ordering::SeqCst);
        Self(request, fake.clone())
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        self.1.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The pods of the vectors.
pub fn pods(count: usize) -> Vec<SocketAddr> {
    (1..=count).map(|n| SocketAddr::from(([192, 168, 1, n as u8], 8000))).collect()
}

/// Gives the trait to a shared fake.
pub struct SharedFake(pub Arc<Fake>);

impl Exchanges for SharedFake {
    type Exchange = FakeExchange;

    fn open(&self) -> FakeExchange {
        let record = Arc::new(Mutex::new(Record::default()));
        self.0.records.lock().push(record.clone());
        FakeExchange(self.0.clone(), record, None)
    }
}

impl Exchange for FakeExchange {
    fn decide(&mut self, request: CompleteRequest) -> Result<Route, Rejection> {
        let fake = &self.0;
        {
            let mut record = self.1.lock();
            record.decided += 1;
            record.body = request.body.clone();
        }
        if request.headers.get("x-test") == Some("wait") {
            while fake.closed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        assert!(request.headers.get("x-test") != Some("panic"), "a decision that panics");
        decide(&fake.pods, &request)
    }

    fn submit(&mut self, request: CompleteRequest) -> Option<Result<Route, Rejection>> {
        if request.headers.get("x-test") == Some("hold") && request.may_wait {
            self.2 = Some(HeldRequest::new(request, &self.0));
            return None;
        }
        Some(self.decide(request))
    }

    fn poll_held(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<Route, Rejection>> {
        self.0.wakers.lock().push(cx.waker().clone());
        if self.0.closed.load(Ordering::SeqCst) {
            return std::task::Poll::Pending;
        }
        let held = self.2.take().expect("it is held");
        std::task::Poll::Ready(self.decide(held.0.clone()))
    }

    fn response_headers(&mut self, status: u16, headers: Headers, served: &Served, _end: bool) -> Vec<SetHeader> {
        self.2 = None;
        let mut record = self.1.lock();
        assert!(record.status.is_none(), "response headers twice");
        record.status = Some(status);
        record.served = served.endpoint().map(str::to_owned);
        assert!(headers.get("x-test") != Some("panic"), "an observer that panics");
        headers.get("x-token").map(|token| ("x-session-token".into(), token.to_owned().into())).into_iter().collect()
    }

    fn response_body(&mut self, chunk: &Bytes, end: bool) -> Option<SmallVec<[Bytes; 3]>> {
        let mut record = self.1.lock();
        record.response.extend_from_slice(chunk);
        record.response_ended += usize::from(end);
        None
    }

    fn end(&mut self, outcome: Outcome) {
        self.2 = None;
        self.1.lock().ends.push(outcome);
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Fake {
    /// Lets what is held go.
    pub fn open_up(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.wakers.lock().drain(..).for_each(std::task::Waker::wake);
    }
}

/// The decision of the fake.
pub fn decide(pods: &[SocketAddr], request: &CompleteRequest) -> Result<Route, Rejection> {
    let mut route = Route::default();
    if request.has_body && request.headers.get("content-type") != Some("text/plain") {
        let json: serde_json::Value =
            serde_json::from_slice(&request.body).map_err(|error| Rejection::BadRequest(error.to_string()))?;
        let Some(model) = json["model"].as_str() else {
            return Err(Rejection::BadRequest("model not found in request body".into()));
        };
        let rewrite = request.headers.first_of(&["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"]);
        if let Some(target) = rewrite {
            let at = request.body.windows(model.len()).position(|part| part == model.as_bytes()).unwrap_or(0);
            let tail = request.body.slice(at + model.len()..);
            let target = Bytes::copy_from_slice(target.as_bytes());
            route.body = Some(smallvec::smallvec![request.body.slice(..at), target, tail]);
        }
    }
    let allowed = |pod: &&SocketAddr| request.subset.as_ref().is_none_or(|hint: &SubsetHint| hint.allows(**pod));
    let pod = pods.iter().find(allowed).ok_or_else(Rejection::no_endpoints)?;
    route.destination = pod.to_string().into();
    if request.headers.get("x-request-id").is_none() {
        route.set_headers.push(("x-request-id".into(), Bytes::from_static(b"made")));
    }
    Ok(route)
}

/// A served service with its client.
pub struct Lab {
    pub fake: Arc<Fake>,
    pub service: ExtProc<SharedFake>,
    pub drain: Option<DrainTrigger>,
    pub channel: Channel,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Starts a server on a free loopback port and connects.
pub async fn lab(pod_count: usize, settings: Settings) -> Lab {
    let fake = Arc::new(Fake { pods: pods(pod_count), ..Fake::default() });
    let (drain, signal) = drain::channel();
    let service = ExtProc::new(Arc::new(SharedFake(fake.clone())), settings, signal);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mounted = TowerToHyperService::new(service.clone().into_server());
    let server = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).expect("nodelay");
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), mounted.clone());
            tokio::spawn(connection);
        }
    });
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("a URI").connect().await.expect("connects");
    Lab { fake, service, drain: Some(drain), channel, server }
}

/// A call in progress.
pub struct Call {
    to: Option<mpsc::UnboundedSender<wire::ProcessingRequest>>,
    from: tonic::Streaming<wire::ProcessingResponse>,
}

struct Outbound(mpsc::UnboundedReceiver<wire::ProcessingRequest>);

impl Stream for Outbound {
    type Item = wire::ProcessingRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

impl Lab {
    pub async fn call(&self) -> Call {
        self.call_with(ExternalProcessorClient::new(self.channel.clone())).await
    }

    pub async fn call_with(&self, mut client: ExternalProcessorClient<Channel>) -> Call {
        let (to, receiver) = mpsc::unbounded_channel();
        let from = client.process(Outbound(receiver)).await.expect("the call begins").into_inner();
        Call { to: Some(to), from }
    }

    /// The only record.
    pub fn record(&self) -> Record {
        let records = self.fake.records.lock();
        assert_eq!(records.len(), 1);
        records[0].lock().clone()
    }

    /// Waits until so many streams have sent their first message.
    pub async fn opened(&self, count: usize) {
        self.until("streams begin", || self.fake.records.lock().len() >= count).await;
    }

    /// Waits for a condition, by looking at it.
    pub async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let met = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), met).await.expect(what);
    }

    /// Waits until no stream is open and every exchange has ended.
    pub async fn settled(&self) {
        self.until("all streams end", || {
            self.service.open_streams() == 0 && self.fake.ended.load(Ordering::SeqCst) >= self.fake.records.lock().len()
        })
        .await;
    }
}

impl Call {
    /// Sends; a stream that the server has ended takes nothing, which the next read shows.
    pub fn send(&self, request: wire::ProcessingRequest) {
        let _ = self.to.as_ref().expect("not half-closed").send(request);
    }

    pub fn half_close(&mut self) {
        self.to = None;
    }

    pub async fn next(&mut self) -> Result<Option<wire::ProcessingResponse>, tonic::Status> {
        tokio::time::timeout(Duration::from_secs(10), self.from.message()).await.expect("an answer in time")
    }
}

/// What a data plane sends, for the machine and for the wire alike.
#[derive(Clone, Debug)]
pub enum In {
    H(Vec<(&'static str, &'static str)>, bool),
    B(Bytes, bool),
    T,
    Rh(Vec<(&'static str, &'static str)>, bool),
    Rb(Bytes, bool),
    Rt,
    HalfClose,
}

/// Where header values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Style {
    /// All in `raw_value`.
    #[default]
    Raw,
    /// All in `value`.
    Value,
    /// Pseudo-headers in `value`, others in `raw_value`.
    Mixed,
}

/// What accompanies the messages of a case.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub modes: Option<(i32, i32)>,
    pub style: Style,
    pub subset: Option<Subset>,
    pub served: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub enum Subset {
    List(&'static [&'static str]),
    Text(&'static str),
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn header_map(entries: &[(&'static str, &'static str)], style: Style) -> Option<core::HeaderMap> {
    let headers = entries.iter().map(|(name, text)| {
        let in_value = style == Style::Value || (style == Style::Mixed && name.starts_with(':'));
        let (value, raw_value) = if in_value { (bytes(text), Bytes::new()) } else { (Bytes::new(), bytes(text)) };
        core::HeaderValue { key: bytes(name), value, raw_value }
    });
    Some(core::HeaderMap { headers: headers.collect() })
}

fn string(text: &'static str) -> meta::Value {
    meta::Value { kind: Some(meta::value::Kind::StringValue(bytes(text))) }
}

fn metadata(context: &Context, response: bool) -> Bytes {
    let mut filter_metadata = Vec::new();
    let mut add = |namespace: &'static str, key: &'static str, value: meta::Value| {
        let fields = vec![meta::StructEntry { key: bytes(key), value: Some(value) }];
        let value = Some(meta::Struct { fields });
        filter_metadata.push(core::MetadataEntry { key: bytes(namespace), value });
    };
    match &context.subset {
        Some(Subset::Text(text)) => {
            add("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", string(text));
        }
        Some(Subset::List(list)) => {
            let values = list.iter().map(|text| string(text)).collect();
            let list = meta::Value { kind: Some(meta::value::Kind::ListValue(meta::ListValue { values })) };
            add("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", list);
        }
        None => {}
    }
    if let (Some(served), true) = (context.served, response) {
        add("envoy.lb", "x-gateway-destination-endpoint-served", string(served));
    }
    core::Metadata { filter_metadata }.encode_to_vec().into()
}

/// The message for the wire; `None` for a half-close.
pub fn to_wire(input: &In, context: &Context, first: bool) -> Option<wire::ProcessingRequest> {
    use wire::processing_request::Request;
    let headers =
        |entries: &[_], end| wire::HttpHeaders { headers: header_map(entries, context.style), end_of_stream: end };
    let body = |body: &Bytes, end| wire::HttpBody { body: body.clone(), end_of_stream: end };
    let request = match input {
        In::H(entries, end) => Request::RequestHeaders(headers(entries, *end)),
        In::B(chunk, end) => Request::RequestBody(body(chunk, *end)),
        In::T => Request::RequestTrailers(wire::HttpTrailers {}),
        In::Rh(entries, end) => Request::ResponseHeaders(headers(entries, *end)),
        In::Rb(chunk, end) => Request::ResponseBody(body(chunk, *end)),
        In::Rt => Request::ResponseTrailers(wire::HttpTrailers {}),
        In::HalfClose => return None,
    };
    let response = matches!(input, In::Rh(..) | In::Rb(..) | In::Rt);
    Some(wire::ProcessingRequest {
        request: Some(request),
        metadata_context: metadata(context, response),
        protocol_config: context.modes.filter(|_| first).map(|(request_body_mode, response_body_mode)| {
            wire::ProtocolConfiguration { request_body_mode, response_body_mode, ..Default::default() }
        }),
    })
}

/// The same message for the machine.
pub fn to_event(input: &In, context: &Context, first: bool) -> Event {
    let headers = |entries: &[(&'static str, &'static str)]| {
        let mut headers = Headers::default();
        entries.iter().for_each(|(name, value)| headers.push(bytes(name), bytes(value)));
        headers
    };
    let part = match input {
        In::H(entries, end) => Part::RequestHeaders { headers: headers(entries), end: *end },
        In::B(chunk, end) => Part::RequestBody { chunk: chunk.clone(), end: *end },
        In::T => Part::RequestTrailers,
        In::Rh(entries, end) => Part::ResponseHeaders {
            headers: headers(entries),
            served: context.served.map_or(Served::Unreported, |s| Served::By(s.into())),
            end: *end,
        },
        In::Rb(chunk, end) => Part::ResponseBody { chunk: chunk.clone(), end: *end },
        In::Rt => Part::ResponseTrailers,
        In::HalfClose => return Event::HalfClosed,
    };
    let subset = context.subset.as_ref().map(|subset| {
        let mut hint = SubsetHint::default();
        match subset {
            Subset::List(list) => list.iter().for_each(|text| hint.extend_from_text(text)),
            Subset::Text(text) => hint.extend_from_text(text),
        }
        hint
    });
    let modes = context.modes.filter(|_| first).map(|(request, response)| Modes {
        request: BodyMode::from_wire(request),
        response: BodyMode::from_wire(response),
    });
    Event::Message(Message { part, modes, subset })
}

/// Bytes given back, per direction.
#[derive(Debug, Default)]
pub struct Given {
    pub request: Vec<u8>,
    pub response: Vec<u8>,
}

fn eos(end: bool) -> &'static str {
    if end { " eos" } else { "" }
}

/// The text of a reply of the machine.
pub fn describe(reply: &Reply, given: &mut Given) -> String {
    match reply {
        Reply::RequestHeadersPass => "H pass".into(),
        Reply::RequestHeaders(answer) => format!("H {}", describe_answer(answer)),
        Reply::RequestBody { piece, end } => {
            given.request.extend_from_slice(piece);
            format!("B {}{}", piece.len(), eos(*end))
        }
        Reply::RequestBodyWhole { answer, replaced } => {
            let replaced = replaced.as_ref().map(|body| {
                given.request.extend_from_slice(body);
                format!(" body={}", body.len())
            });
            format!("B {}{}", describe_answer(answer), replaced.unwrap_or_default())
        }
        Reply::RequestBodyPass => "B pass".into(),
        Reply::RequestTrailers => "T".into(),
        Reply::ResponseHeaders(added) => {
            let added = added.iter().map(|(name, value)| format!(" +{name}={}", String::from_utf8_lossy(value)));
            format!("RH{}", added.collect::<String>())
        }
        Reply::ResponseBody { piece, end } => {
            given.response.extend_from_slice(piece);
            format!("RB {}{}", piece.len(), eos(*end))
        }
        Reply::ResponseBodyPass => "RB pass".into(),
        Reply::ResponseTrailers => "RT".into(),
        Reply::Immediate(rejection) => format!(
            "I {} {} inference error: {} - {rejection}",
            rejection.status(),
            rejection.reason().map_or("-", |reason| reason.as_str()),
            rejection.code()
        ),
    }
}

fn describe_answer(answer: &Answer) -> String {
    let mut text = format!("-> {}", answer.destination);
    if let Some(length) = answer.content_length {
        text += &format!(" +content-length={length}");
    }
    for (name, value) in &answer.set_headers {
        text += &format!(" +{name}={}", String::from_utf8_lossy(value));
    }
    for name in &answer.remove_headers {
        text += &format!(" -{}", String::from_utf8_lossy(name));
    }
    text
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The destination in `envoy.lb` metadata.
fn destination(metadata: Option<&meta::Struct>) -> Option<&str> {
    let lb = metadata?.fields.iter().find(|field| field.key == "envoy.lb")?;
    let Some(meta::value::Kind::StructValue(lb)) = &lb.value.as_ref()?.kind else { return None };
    match &lb.fields.iter().find(|field| field.key == DESTINATION)?.value.as_ref()?.kind {
        Some(meta::value::Kind::StringValue(value)) => Some(text(value)),
        _ => None,
    }
}

/// The text of a message on the wire, equal to that of the machine's reply if all went well.
pub fn describe_wire(response: &wire::ProcessingResponse, given: &mut Given) -> String {
    use wire::body_mutation::Mutation;
    use wire::processing_response::Response;

    let picked = |common: &wire::CommonResponse| -> Option<String> {
        let mutation = common.header_mutation.as_ref()?;
        assert!(common.clear_route_cache);
        let mut headers = mutation.set_headers.iter().map(|option| option.header.as_ref().expect("a header"));
        let first = headers.next().expect("the destination");
        assert_eq!(first.key, DESTINATION);
        assert_eq!(destination(response.dynamic_metadata.as_ref()), Some(text(&first.raw_value)), "R-03");
        let set = headers.map(|header| format!(" +{}={}", text(&header.key), text(&header.raw_value)));
        let removed = mutation.remove_headers.iter().map(|name| format!(" -{}", text(name)));
        Some(format!("-> {}{}", text(&first.raw_value), set.chain(removed).collect::<String>()))
    };
    let body = |direction: &str, body: &wire::BodyResponse, given: &mut Vec<u8>| {
        let common = body.response.as_ref().expect("a common response");
        match common.body_mutation.as_ref().and_then(|mutation| mutation.mutation.as_ref()) {
            Some(Mutation::StreamedResponse(piece)) => {
                given.extend_from_slice(&piece.body);
                format!("{direction} {}{}", piece.body.len(), eos(piece.end_of_stream))
            }
            whole => {
                let mut said = format!("{direction} {}", picked(common).unwrap_or_else(|| "pass".into()));
                if let Some(Mutation::Body(body)) = whole {
                    given.extend_from_slice(body);
                    said += &format!(" body={}", body.len());
                }
                said
            }
        }
    };
    match response.response.as_ref().expect("a response") {
        Response::RequestHeaders(headers) => {
            format!("H {}", picked(headers.response.as_ref().expect("common")).unwrap_or_else(|| "pass".into()))
        }
        Response::RequestBody(response) => body("B", response, &mut given.request),
        Response::RequestTrailers(_) => "T".into(),
        Response::ResponseHeaders(headers) => {
            let mutation = headers.response.as_ref().expect("common").header_mutation.as_ref();
            let set = mutation.into_iter().flat_map(|mutation| &mutation.set_headers).map(|option| {
                let header = option.header.as_ref().expect("a header");
                format!(" +{}={}", text(&header.key), text(&header.raw_value))
            });
            format!("RH{}", set.collect::<String>())
        }
        Response::ResponseBody(response) => body("RB", response, &mut given.response),
        Response::ResponseTrailers(_) => "RT".into(),
        Response::ImmediateResponse(immediate) => {
            let reason = immediate.headers.as_ref().map(|headers| {
                let header = headers.set_headers[0].header.as_ref().expect("a header");
                assert_eq!(header.key, DROPPED_REASON);
                text(&header.raw_value).to_owned()
            });
            let status = immediate.status.as_ref().expect("a status").code;
            format!("I {status} {} {}", reason.as_deref().unwrap_or("-"), text(&immediate.body))
        }
    }
}

/// The machine with the fake's decision and observation, as the stream would drive it.
pub struct Bench {
    machine: Machine,
    pods: Vec<SocketAddr>,
    pub outcome: Option<Outcome>,
    pub closed: Option<Close>,
}

impl Bench {
    pub fn new(pod_count: usize, settings: &Settings) -> Self {
        let rules = Rules {
            max_request_body: settings.max_request_body,
            remove_request_headers: CONTROL_HEADERS.iter().map(|name| bytes(name)).collect(),
        };
        Self { machine: Machine::new(Arc::new(rules)), pods: pods(pod_count), outcome: None, closed: None }
    }

    /// The replies to an event.
    pub fn feed(&mut self, event: Event, given: &mut Given) -> Vec<String> {
        let mut said = Vec::new();
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let mut actions = Vec::new();
            self.machine.on(event, &mut actions);
            for action in actions {
                match action {
                    Action::Decide(request) => next = Some(Event::Decided(decide(&self.pods, &request))),
                    Action::AnswerResponseHeaders { .. } => {
                        said.push(describe(&Reply::ResponseHeaders(Vec::new()), given));
                    }
                    Action::ObserveResponseBody { .. } => {}
                    Action::AnswerResponseBody { chunk, end } => {
                        response_replies(&[chunk], end, |reply| said.push(describe(&reply, given)));
                    }
                    Action::AnswerResponseTrailers => said.push(describe(&Reply::ResponseTrailers, given)),
                    Action::Reply(reply) => said.push(describe(&reply, given)),
                    Action::End(outcome) => assert!(self.outcome.replace(outcome).is_none()),
                    Action::Close(how) => self.closed = Some(how),
                }
            }
        }
        said
    }
}
