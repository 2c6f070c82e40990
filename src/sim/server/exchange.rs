//! One request and its answer.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Faults, MetricsFault, Shared};
use crate::lifecycle::clock::Clock as _;
use crate::sim::answer::{self, Api, Call, Choice, Usage, Writer};
use crate::sim::echo;
use crate::sim::engine::{Refusal, TOKEN_BYTES, Ticket, Work};
use crate::sim::page;

type SimBody = UnsyncBoxBody<Bytes, io::Error>;

const ENDPOINT: HeaderName = HeaderName::from_static("x-sim-endpoint");
const ECHO: HeaderName = HeaderName::from_static("x-sim-echo");
const TRAILERS: HeaderName = HeaderName::from_static("x-sim-trailers");
const TRAILER: HeaderName = HeaderName::from_static("x-sim-trailer");

/// Answers one request.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    /// As they were when the request came.
    faults: Faults,
}

fn api(path: &str) -> Option<Api> {
    Some(match path {
        "/v1/completions" => Api::Completions,
        "/v1/chat/completions" => Api::Chat,
        "/v1/responses" => Api::Responses,
        "/v1/embeddings" => Api::Embeddings,
        "/v1/messages" => Api::Messages,
        "/v1/messages/count_tokens" => Api::CountTokens,
        "/inference/v1/generate" => Api::VllmGenerate,
        "/generate" => Api::SglangGenerate,
        _ => return None,
    })
}

fn whole(bytes: impl Into<Bytes>) -> SimBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn pieces(pieces: impl stream::Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> SimBody {
    StreamBody::new(pieces).boxed_unsync()
}

fn answer(status: StatusCode, kind: &'static str, body: SimBody) -> Response<SimBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json_answer(status: StatusCode, value: &Value) -> Response<SimBody> {
    answer(status, "application/json", whole(value.to_string()))
}

fn error(api: Option<Api>, status: StatusCode, message: &str) -> Response<SimBody> {
    json_answer(status, &Writer::error(api, status.as_u16(), message))
}

/// An error that breaks the connection off.
async fn broken() -> io::Result<Frame<Bytes>> {
    // An error in the same poll as the data before it would take that data along; after a pause the
    // HTTP layer has flushed it.
    tokio::task::yield_now().await;
    Err(io::Error::other("broken off as told"))
}

/// The first half of `body`, then the end of the connection.
fn half(body: String) -> SimBody {
    let mut half = Bytes::from(body);
    half.truncate(half.len() / 2);
    pieces(stream::iter([half]).map(|half| Ok(Frame::data(half))).chain(stream::once(broken())))
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let faults = shared.control.borrow().faults.clone();
        Self { shared, faults }
    }

    pub(super) async fn answer(self, request: Request<Incoming>) -> Response<SimBody> {
        let on = |name| request.headers().get(name).is_some_and(|value| value == "1");
        let (echo, trailers) = (on(ECHO) || request.uri().path() == "/echo", on(TRAILERS));
        let endpoint = self.shared.endpoint.clone();
        let mut response = if echo { self.echo(request).await } else { self.route(request).await };
        response.headers_mut().insert(ENDPOINT, endpoint.clone());
        if trailers {
            response = with_trailers(response, endpoint);
        }
        response
    }

    async fn echo(self, request: Request<Incoming>) -> Response<SimBody> {
        self.shared.echoes.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        let mut response = match echo::describe(&self.shared.config.name, &parts, body).await {
            Ok(description) => json_answer(StatusCode::OK, &description),
            Err(e) => error(None, StatusCode::BAD_REQUEST, &format!("the body broke off: {e}")),
        };
        self.add_cookies(&mut response);
        response
    }

    async fn route(self, request: Request<Incoming>) -> Response<SimBody> {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET, "/metrics") => {
                let names = page::names(request.uri().query().unwrap_or(""));
                self.metrics(&names).await
            }
            (&Method::GET, "/health") => answer(StatusCode::OK, "text/plain", whole("")),
            (&Method::GET, "/version") => json_answer(StatusCode::OK, &json!({"version": "0.32.0"})),
            (&Method::GET, "/v1/models") => json_answer(StatusCode::OK, &self.models()),
            (&Method::POST, "/reset_prefix_cache") => {
                self.shared.engine.clear_cache();
                json_answer(StatusCode::OK, &json!({"success": true}))
            }
            (&Method::POST, path) if let Some(api) = api(path) => self.inference(api, request.into_body()).await,
            (_, path) if api(path).is_some() => error(None, StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
            _ => error(None, StatusCode::NOT_FOUND, "Not Found"),
        }
    }

    fn models(&self) -> Value {
        let config = &self.shared.config;
        let model = |id: &str, parent: Option<&str>| {
            json!({
                "id": id, "object": "model", "created": self.wall().as_secs(), "owned_by": "vllm", "root": id,
                "parent": parent, "max_model_len": self.shared.engine.max_tokens(),
            })
        };
        let adapters = config.lora_adapters.iter().map(|id| model(id, Some(&config.model)));
        let all: Vec<Value> = std::iter::once(model(&config.model, None)).chain(adapters).collect();
        json!({"object": "list", "data": all})
    }

    fn wall(&self) -> Duration {
        self.shared.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn add_cookies(&self, response: &mut Response<SimBody>) {
        if self.faults.set_cookies {
            for cookie in ["sim-a=1; Path=/", "sim-b=2; Path=/"] {
                response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(cookie));
            }
        }
    }

    async fn metrics(&self, names: &[String]) -> Response<SimBody> {
        const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
        self.shared.scrapes.fetch_add(1, Ordering::Relaxed);
        let page = || {
            let nan = self.faults.metrics == MetricsFault::NaN;
            self.shared.page.render(&self.shared.engine.readings(), names, nan, self.wall().as_secs_f64())
        };
        match self.faults.metrics {
            MetricsFault::None | MetricsFault::NaN => answer(StatusCode::OK, TEXT, whole(page())),
            MetricsFault::Html => {
                let html =
                    "<!DOCTYPE html>\n<html><head><title>Login</title></head><body>Please log in.</body></html>\n";
                answer(StatusCode::OK, "text/html", whole(html))
            }
            MetricsFault::Status(code) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                answer(status, "text/plain", whole("broken as told\n"))
            }
            MetricsFault::Half => answer(StatusCode::OK, TEXT, half(page())),
            MetricsFault::Endless => {
                let chunk = Bytes::from("sim_endless{label=\"value\"} 1.0\n".repeat(512));
                answer(StatusCode::OK, TEXT, pieces(stream::repeat_with(move || Ok(Frame::data(chunk.clone())))))
            }
            MetricsFault::Hang => std::future::pending().await,
            MetricsFault::Slow(delay) => {
                tokio::time::sleep(delay).await;
                answer(StatusCode::OK, TEXT, whole(page()))
            }
        }
    }

    async fn inference(self, api: Api, body: Incoming) -> Response<SimBody> {
        let number = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        let mut response = match self.infer(api, number, body).await {
            Ok(response) => response,
            Err((status, message)) => error(Some(api), status, &message),
        };
        self.add_cookies(&mut response);
        response
    }

    async fn infer(&self, api: Api, number: u64, body: Incoming) -> Result<Response<SimBody>, (StatusCode, String)> {
        let config = &self.shared.config;
        let bad = |message: String| (StatusCode::BAD_REQUEST, message);
        let body = match Limited::new(body, config.max_body).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) if e.is::<LengthLimitError>() => {
                let limit = config.max_body;
                return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes")));
            }
            Err(e) => return Err(bad(format!("the body broke off: {e}"))),
        };
        if !self.faults.delay.is_zero() {
            tokio::time::sleep(self.faults.delay).await;
        }
        if let Some(code) = self.faults.status {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err((status, "failed as told".to_owned()));
        }
        let call = Call::parse(api, &body).map_err(bad)?;
        let model = call.model.as_deref().unwrap_or(&config.model);
        let adapter = config.lora_adapters.iter().position(|a| a == model);
        if config.strict_model && adapter.is_none() && model != config.model {
            return Err((StatusCode::NOT_FOUND, format!("The model `{model}` does not exist.")));
        }
        let writer = Writer { api, id: number, model: model.to_owned(), created: self.wall().as_secs() };
        let mut sequences = VecDeque::with_capacity(call.prompts.len());
        if api == Api::CountTokens {
            let prompt = call.prompts.iter().map(|p| p.len().div_ceil(TOKEN_BYTES) as u32).sum();
            let usage = Usage { prompt, ..Usage::default() };
            return Ok(json_answer(StatusCode::OK, &writer.whole(&[], usage)));
        }
        for prompt in &call.prompts {
            let intended = call.answer_tokens(config.answer_tokens, self.shared.engine.max_tokens());
            let mut text = answer::words(prompt, intended);
            let seed = call.salt ^ adapter.map_or(0, |a| a as u64 + 1);
            let work = Work { prompt, answer: &text, seed, adapter };
            let ticket = self.shared.engine.submit(&work).map_err(|refusal| match refusal {
                Refusal::TooLong { tokens, limit } => bad(format!(
                    "This model's maximum context length is {limit} tokens, but the prompt has {tokens} and the answer needs at least one."
                )),
                Refusal::QueueFull { limit } => {
                    (StatusCode::SERVICE_UNAVAILABLE, format!("{limit} requests are waiting already"))
                }
            })?;
            let cut = call.is_cut(ticket.answer_tokens(), intended);
            text.truncate(ticket.answer_tokens() as usize * TOKEN_BYTES);
            sequences.push_back(Sequence { ticket, choice: Choice { text, cut } });
        }
        let die_after = self.faults.die_after_chunks;
        if call.stream {
            let include_usage = call.include_usage || config.always_usage;
            let events = Events {
                writer,
                include_usage,
                sequences,
                index: 0,
                opened: false,
                last: None,
                usage: Usage::default(),
                ready: VecDeque::new(),
                chunks_left: die_after,
            };
            return Ok(answer(StatusCode::OK, "text/event-stream; charset=utf-8", events.into_body()));
        }
        let runs = sequences.into_iter().map(Sequence::run);
        let mut usage = Usage::default();
        let mut choices = Vec::new();
        for (choice, part) in futures_util::future::join_all(runs).await {
            usage.prompt += part.prompt;
            usage.cached += part.cached;
            usage.completion += part.completion;
            choices.push(choice);
        }
        let text = writer.whole(&choices, usage).to_string();
        if die_after.is_some() {
            return Ok(answer(StatusCode::OK, "application/json", half(text)));
        }
        Ok(answer(StatusCode::OK, "application/json", whole(text)))
    }
}

/// One choice under way.
struct Sequence {
    ticket: Ticket,
    choice: Choice,
}

impl Sequence {
    async fn run(mut self) -> (Choice, Usage) {
        self.ticket.finish().await;
        let usage = self.usage();
        (self.choice, usage)
    }

    fn usage(&self) -> Usage {
        let ticket = &self.ticket;
        Usage { prompt: ticket.prompt_tokens(), cached: ticket.cached_tokens(), completion: ticket.answer_tokens() }
    }
}

/// A streamed answer. Choices come one after the other; they run at once all the same.
struct Events {
    writer: Writer,
    include_usage: bool,
    sequences: VecDeque<Sequence>,
    index: usize,
    opened: bool,
    /// The newest finished choice.
    last: Option<Choice>,
    usage: Usage,
    ready: VecDeque<Bytes>,
    chunks_left: Option<u32>,
}

impl Events {
    fn into_body(self) -> SimBody {
        pieces(stream::unfold(Some(self), |events| async {
            let mut events = events?;
            if events.chunks_left == Some(0) {
                return Some((broken().await, None));
            }
            let chunk = events.next().await?;
            events.chunks_left = events.chunks_left.map(|left| left - 1);
            Some((Ok(Frame::data(chunk)), Some(events)))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(chunk) = self.ready.pop_front() {
            return Some(chunk);
        }
        while let Some(sequence) = self.sequences.front_mut() {
            sequence.ticket.prefill().await;
            if !self.opened {
                self.opened = true;
                self.ready.extend(self.writer.opening(sequence.usage()));
                if let Some(chunk) = self.ready.pop_front() {
                    return Some(chunk);
                }
            }
            if let Some(token) = sequence.ticket.next().await {
                let made = token + 1;
                let end = (made == sequence.ticket.answer_tokens()).then_some(sequence.choice.cut);
                let place = token as usize * TOKEN_BYTES;
                let word = sequence.choice.text.get(place..place + TOKEN_BYTES).unwrap_or_default();
                let usage = Usage { completion: made, ..sequence.usage() };
                return Some(self.writer.token(self.index, word, usage, end));
            }
            let part = sequence.usage();
            self.usage.prompt += part.prompt;
            self.usage.cached += part.cached;
            self.usage.completion += part.completion;
            self.index += 1;
            // Drops the ticket: the batch has a place again.
            self.last = self.sequences.pop_front().map(|sequence| sequence.choice);
        }
        let choice = self.last.take()?;
        self.ready.extend(self.writer.closing(&choice, self.usage, self.include_usage));
        self.ready.pop_front()
    }
}

/// Puts a trailer behind the body, which makes it chunked.
fn with_trailers(response: Response<SimBody>, endpoint: HeaderValue) -> Response<SimBody> {
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::TRAILER, HeaderValue::from_static("x-sim-trailer"));
    let frames = stream::unfold((Some(body), endpoint), |(body, endpoint)| async {
        let mut body = body?;
        match body.frame().await {
            Some(frame) => Some((frame, (Some(body), endpoint))),
            None => {
                let trailers = HeaderMap::from_iter([(TRAILER, endpoint.clone())]);
                Some((Ok(Frame::trailers(trailers)), (None, endpoint)))
            }
        }
    });
    Response::from_parts(parts, pieces(frames))
}
