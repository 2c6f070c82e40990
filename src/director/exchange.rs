//! One request from its first message to its one outcome.
//!
//! The exchange owns what the request reserved (its watches) and what is known about it so far. When
//! it ends, on whatever path, the watches are told, the metrics are observed and the access-log line is
//! written, once. Dropping an exchange that nobody ended counts as a disconnect of the client.

use std::borrow::Cow;
use std::future::Future as _;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::dialect::{self, AnswerFormat, ModelRestorer, Parsed, UsageReader};
use crate::domain::{
    Decision, Ended, Endpoint, Headers, InferenceRequest, Outcome, Record, Rejection, Served, Signals, Slot, Timestamp,
    Usage,
};
use crate::extproc::{CompleteRequest, Exchange, Route, SubsetHint};
use crate::scheduling::plugin::{End, ResponseStart, Watch};
use crate::scheduling::responses::served_verifier;
use crate::telemetry::access::AccessLine;
use crate::telemetry::metrics::{RequestMetrics, Running, StreamGuard};
use crate::telemetry::replay_log::Line;
use crate::telemetry::trace::RequestTrace;

use super::Director;
use super::decisions::DECISION_HEADER;
use super::dispatch::{Committed, Held, Submitted};

const OBJECTIVE: [&str; 2] = ["x-llm-d-inference-objective", "x-gateway-inference-objective"];
const FAIRNESS: [&str; 2] = ["x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"];
const REWRITE: [&str; 2] = ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"];

/// Longest value of a control header that is used; longer ones count as absent.
const MAX_CONTROL_VALUE: usize = 1024;

/// What is known of the answer so far.
#[derive(Default)]
struct Answer {
    status: u16,
    streamed: bool,
    bytes: u64,
    first_chunk_at: Option<Timestamp>,
    last_chunk_at: Option<Timestamp>,
    /// Our own time on its messages.
    processing: Duration,
}

/// What the answer to a request needs once it is decided.
struct Pending {
    set_headers: Vec<(Cow<'static, str>, Bytes)>,
    model_spans: SmallVec<[Range<usize>; 1]>,
    priority_at: Option<usize>,
}

/// See the module documentation.
pub struct DirectedExchange {
    director: Arc<Director>,
    opened_at: Timestamp,
    stream: Option<StreamGuard>,
    trace: Option<Box<RequestTrace>>,
    metrics: Option<Arc<RequestMetrics>>,
    running: Option<Running>,
    method: Option<Box<str>>,
    request: InferenceRequest,
    request_bytes: u64,
    answer_format: AnswerFormat,
    destination: Option<Arc<Endpoint>>,
    served: Option<Box<str>>,
    predicted_cached: Option<u64>,
    /// The request while it waits, and what its answer needs.
    held: Option<(Held, Pending)>,
    held_for: Duration,
    submitted_at: Timestamp,
    decided_in: Duration,
    rejection: Option<Rejection>,
    watches: Vec<Box<dyn Watch>>,
    /// The decision on it, if that is recorded, and whether the client is told its name.
    record: Option<Arc<Record>>,
    asked: bool,
    /// Its line for `--decision-log`, if that is written.
    logged: Option<Box<Line>>,
    usage: Option<UsageReader>,
    restore: Option<ModelRestorer>,
    answer: Answer,
    ended: bool,
}

impl DirectedExchange {
    pub(super) fn open(director: Arc<Director>) -> Self {
        let opened_at = director.parts.clock.now();
        let stream = director.parts.metrics.stream_opened();
        Self {
            stream: Some(stream),
            trace: None,
            metrics: None,
            running: None,
            director,
            opened_at,
            method: None,
            request: InferenceRequest::default(),
            request_bytes: 0,
            answer_format: AnswerFormat::Opaque,
            destination: None,
            served: None,
            predicted_cached: None,
            held: None,
            held_for: Duration::ZERO,
            submitted_at: opened_at,
            decided_in: Duration::ZERO,
            rejection: None,
            watches: Vec::new(),
            record: None,
            asked: false,
            logged: None,
            usage: None,
            restore: None,
            answer: Answer::default(),
            ended: false,
        }
    }

    /// Understands a request as far as its decision needs it.
    fn understand(&mut self, complete: CompleteRequest) -> Result<(Option<SubsetHint>, Pending), Rejection> {
        let CompleteRequest { headers, body, has_body, subset, .. } = complete;
        let director = Arc::clone(&self.director);
        let parts = director.parts();
        let control =
            |names: &[&str]| headers.first_of(names).filter(|v| !v.is_empty() && v.len() <= MAX_CONTROL_VALUE);

        let mut set_headers: Vec<(Cow<'static, str>, Bytes)> = Vec::new();
        let request = &mut self.request;
        request.received_at = self.opened_at;
        request.objective = control(&OBJECTIVE).map(Into::into);
        request.fairness_id = control(&FAIRNESS).unwrap_or("default-flow").into();
        // Once per request: a change of the policies never takes effect half-way through one.
        let policies = parts.pool.policies();
        request.priority = request.objective.as_deref().and_then(|name| policies.priority(name)).unwrap_or(0);
        if request.path.is_empty() {
            request.path = dialect::request_path(&headers).into();
        }
        match headers.get("x-request-id").filter(|id| !id.is_empty() && id.len() <= MAX_CONTROL_VALUE) {
            Some(id) => request.id = id.into(),
            None => {
                let id = new_request_id();
                set_headers.push((Cow::Borrowed("x-request-id"), Bytes::copy_from_slice(id.as_bytes())));
                request.id = id.into();
            }
        }
        if let Some(trace) = &self.trace {
            set_headers.push((Cow::Borrowed("traceparent"), trace.traceparent().into()));
        }
        self.trace.take_if(|trace| !trace.is_recording());
        let rewrite = control(&REWRITE).map(Box::<str>::from);
        request.headers = headers;
        self.request_bytes = body.len() as u64;

        let mut parsed = Parsed::default();
        if has_body {
            parsed = parts.dialects.parse(&request.path, &request.headers, &body, parts.settings.wants)?;
        }
        request.body = body;
        request.model = parsed.model.unwrap_or_default();
        request.prompts = parsed.prompts;
        request.cache_salt = parsed.cache_salt;
        request.stream = parsed.stream;
        request.max_output_tokens = parsed.max_output_tokens;
        self.answer_format = parsed.answer;
        request.target_model = request.model.clone();
        // A model name can only be put where the body has one (protocol 2.7).
        if !parsed.model_spans.is_empty() {
            // Without a name in the body (a null) there is none to look for, and none to put back.
            let rule = if request.model.is_empty() { None } else { policies.rule(&request.model) };
            let ruled = rule.and_then(|rule| Some((rule.rewrite(), rule.choose(|below| director.draw(below))?)));
            match (ruled, rewrite) {
                (Some((_, "")), _) => return Err(Rejection::BadRequest("model not found in request body".into())),
                (Some((name, target)), _) => {
                    director.pin_models(&policies);
                    parts.metrics.model_rewrite(name, &request.model, target);
                    request.target_model = target.into();
                }
                (None, Some(target)) if target != request.model => {
                    parts.metrics.model_rewrite("header", &request.model, &target);
                    request.target_model = target;
                }
                (None, _) => {}
            }
        }
        drop(policies);

        Ok((subset, Pending { set_headers, model_spans: parsed.model_spans, priority_at: parsed.priority_at }))
    }

    /// Decides, or holds if it may.
    fn try_decide(&mut self, complete: CompleteRequest, may_wait: bool) -> Option<Result<Route, Rejection>> {
        let (subset, pending) = match self.understand(complete) {
            Ok(understood) => understood,
            Err(rejection) => return Some(Err(rejection)),
        };
        // What has no prompt has nothing to wait for.
        let may_wait = may_wait && !self.request.prompts.is_empty();
        let director = Arc::clone(&self.director);
        let request = std::mem::take(&mut self.request);
        match director.submit_traced(request, subset.as_ref(), may_wait, self.trace.as_deref_mut()) {
            Submitted::Decided(decided) => {
                let (request, result) = *decided;
                self.request = request;
                Some(result.map(|committed| self.routed(committed, pending)))
            }
            Submitted::Held(mut held) => {
                director.plan();
                if let Some(decided) = held.take() {
                    let (request, result) = *decided;
                    self.request = request;
                    return Some(result.map(|committed| self.routed(committed, pending)));
                }
                self.request = held.names().clone();
                self.held = Some((held, pending));
                None
            }
        }
    }

    /// Goes on with what was decided and committed.
    fn routed(&mut self, committed: Committed, pending: Pending) -> Route {
        let Committed { decision, signals, watches, held, order_key } = committed;
        let Pending { mut set_headers, model_spans, priority_at } = pending;
        let director = Arc::clone(&self.director);
        let parts = director.parts();
        self.watches = watches;
        self.held_for = held;
        let destination = Arc::clone(decision.destination());
        self.predicted_cached =
            signals.prefix.first().filter(|m| m.total_blocks > 0).map(|m| m.tokens(destination.slot));
        self.observe_prefix(&signals, destination.slot);
        for (name, value) in &decision.headers {
            set_headers.push((Cow::Borrowed(*name), Bytes::copy_from_slice(value.as_bytes())));
        }
        let InferenceRequest { model, target_model, .. } = &self.request;
        let renamed = (target_model != model).then_some(&**target_model);
        if let Some(target) = renamed {
            self.restore = Some(ModelRestorer::new(target, model));
        }
        let priority = priority_at.zip(order_key.map(|key| self.director.wall_millis(key)));
        let body = match (priority, renamed) {
            (Some((at, priority)), renamed) => {
                Some(dialect::add_priority(&self.request.body, at, priority, &model_spans, renamed).pieces)
            }
            (None, Some(target)) => Some(dialect::rewrite_model(&self.request.body, &model_spans, target).pieces),
            (None, None) => None,
        };
        if parts.settings.test.echo_destination {
            let wanted = format!("{}:{}", served_verifier::HEADER, destination.destination());
            set_headers.push((Cow::Borrowed(served_verifier::ECHO_HEADER), wanted.into()));
        }
        let scores = if parts.settings.emit_scores { scores_of(&decision) } else { Vec::new() };
        let route = Route { destination: destinations_of(&decision), set_headers, body, scores };
        self.asked = parts.decisions.is_asked(&self.request);
        self.logged = parts.decisions.file().map(|log| log.line(&self.request, &signals, destination.name()));
        self.destination = Some(destination);
        self.record = parts.decisions.record(&self.request, decision, signals, self.opened_at, held);
        // The prompt has been read: what follows needs only names and counts.
        self.request.body = Bytes::new();
        self.request.prompts = SmallVec::new();
        route
    }

    /// The decision is made: tells everybody.
    fn decided(&mut self, result: &Result<Route, Rejection>) {
        let finished = self.director.parts.clock.now();
        self.decided_in = finished.since(self.submitted_at).saturating_sub(self.held_for);
        if let Some(trace) = &mut self.trace {
            trace.decided(self.submitted_at, finished);
        }
        if let Err(rejection) = result {
            self.rejection = Some(rejection.clone());
        }
        self.director.parts.metrics.observe_request_processing(finished.since(self.opened_at));
        self.observe_request();
    }

    /// Observes each index's best match and that of the `picked` endpoint; prompts below one block are no
    /// look-up.
    fn observe_prefix(&self, signals: &Signals, picked: Slot) {
        for (found, metrics) in signals.prefix.iter().zip(&self.director.prefix_metrics) {
            if found.total_blocks > 0 {
                let best = found.matched.iter().copied().max().unwrap_or(0);
                let bytes = u64::from(best) * u64::from(found.block_tokens) * 4;
                metrics.observe(best as f32 / found.total_blocks as f32, bytes);
                metrics.observe_picked(found.share(picked));
            }
        }
    }

    fn first_chunk(&mut self, now: Timestamp) {
        self.answer.first_chunk_at = Some(now);
        for watch in &mut self.watches {
            watch.first_token(now);
        }
        self.director.plan();
    }

    fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let now = self.director.parts.clock.now();
        let usage = self.usage.take().map(UsageReader::finish).unwrap_or_default();
        for watch in &mut self.watches {
            watch.finished(&End { outcome, usage, now });
        }
        let was_routed = !self.watches.is_empty();
        self.watches.clear();
        if let Some((held, _)) = self.held.take() {
            self.held_for = now.since(held.since());
        }
        if was_routed {
            self.director.plan();
        }
        self.observe(outcome, usage, now);
    }

    /// Counts the request: as running, or as refused.
    fn observe_request(&mut self) {
        let metrics = &self.director.parts.metrics;
        let request = &self.request;
        let handles = metrics.request(&request.model, &request.target_model, &request.fairness_id, request.priority);
        handles.received();
        handles.observe_request_size(self.request_bytes);
        if let Some(rejection) = &self.rejection {
            handles.error(rejection.code());
        } else {
            self.running = Some(handles.running());
        }
        self.metrics = Some(handles);
    }

    /// Observes the whole request at its end and writes its line.
    fn observe(&mut self, outcome: Outcome, usage: Usage, now: Timestamp) {
        let parts = self.director.parts();
        let total = now.since(self.opened_at);
        let answer = &self.answer;
        self.running = None;
        parts.metrics.outcome(outcome);
        let ttft = answer.first_chunk_at.map(|at| at.since(self.opened_at));
        if let Some(metrics) = self.metrics.take().filter(|_| self.destination.is_some()) {
            metrics.observe_duration(total);
            match outcome {
                Outcome::Completed => {
                    metrics.observe_response_size(answer.bytes);
                    metrics.observe_usage(&usage);
                    self.compare_prediction(&usage);
                    if let Some(ttft) = ttft {
                        metrics.observe_ttft(ttft, answer.streamed);
                    }
                    let tokens = usage.completion_tokens.unwrap_or(0);
                    metrics.observe_ntpot(total, tokens);
                    if let (true, Some(first), Some(last)) =
                        (answer.streamed, answer.first_chunk_at, answer.last_chunk_at)
                    {
                        metrics.observe_tpot(last.since(first), tokens);
                    }
                }
                Outcome::UpstreamError => metrics.error("ModelServerError"),
                Outcome::LocalReply => metrics.error("LocalReply"),
                Outcome::ClientDisconnect => metrics.error("ClientDisconnect"),
                Outcome::InternalError => metrics.error("Internal"),
                Outcome::Shutdown => metrics.error("ServiceUnavailable"),
                Outcome::Rejected | Outcome::RoutedOnly => {}
            }
        }
        if answer.status > 0 {
            parts.metrics.observe_response_processing(answer.processing);
        }
        if let Some(stream) = self.stream.take() {
            let code = match outcome {
                Outcome::ClientDisconnect => "Canceled",
                Outcome::Shutdown => "Unavailable",
                Outcome::InternalError => "Internal",
                _ => "OK",
            };
            stream.finish(code, total);
        }
        if let Some(record) = self.record.take() {
            record.end(Ended { outcome, status: answer.status, ttft, total, usage, served_by: self.served.clone() });
        }
        if let (Some(line), Some(log), Some(ttft), Outcome::Completed) =
            (self.logged.take(), parts.decisions.file(), ttft, outcome)
        {
            log.write(*line, ttft, &usage);
        }
        let trace = self.trace.take();
        if !parts.settings.access_log && trace.is_none() {
            return;
        }
        let request = &self.request;
        let refused = self.rejection.as_ref().map(Rejection::status);
        let line = AccessLine {
            request_id: &request.id,
            method: self.method.as_deref(),
            path: &request.path,
            model: &request.model,
            target_model: &request.target_model,
            objective: request.objective.as_deref(),
            fairness_id: &request.fairness_id,
            priority: request.priority,
            endpoint: self.destination.as_ref().map(|e| e.destination()),
            served_by: self.served.as_deref(),
            status: refused.or(Some(answer.status).filter(|s| *s > 0)),
            outcome,
            total,
            decision: self.metrics_decided(),
            held: Some(self.held_for).filter(|held| !held.is_zero()),
            ttft,
            request_bytes: self.request_bytes,
            response_bytes: answer.bytes,
            usage,
            rejection: self.rejection.as_ref(),
            predicted_cached_tokens: self.predicted_cached,
        };
        if parts.settings.access_log {
            line.emit();
        }
        if let Some(trace) = trace {
            trace.end(&line, &parts.plugins, now);
        }
    }

    /// Holds what the chosen endpoint was believed to have cached against what it says it had.
    fn compare_prediction(&self, usage: &Usage) {
        let (Some(predicted), Some(delivered)) = (self.predicted_cached, usage.cached_tokens) else { return };
        // An answer of another endpoint says nothing about the one that was chosen.
        let elsewhere = match (self.served.as_deref(), &self.destination) {
            (Some(served), Some(chosen)) => served != chosen.destination(),
            _ => false,
        };
        if let Some(metrics) = self.director.prefix_metrics.first().filter(|_| !elsewhere) {
            metrics.compare(predicted, delivered, usage.prompt_tokens.unwrap_or(0));
        }
    }

    fn metrics_decided(&self) -> Option<Duration> {
        (self.destination.is_some() || self.rejection.is_some()).then_some(self.decided_in)
    }
}

impl Exchange for DirectedExchange {
    fn request_headers(&mut self, headers: &Headers) {
        let request = &mut self.request;
        request.path = dialect::request_path(headers).into();
        request.id = headers.get("x-request-id").filter(|id| id.len() <= MAX_CONTROL_VALUE).unwrap_or("").into();
        self.trace = self.director.parts.traces.as_ref().and_then(|traces| traces.begin(headers, self.opened_at));
        self.method = headers.get(":method").filter(|m| m.len() <= MAX_CONTROL_VALUE).map(Into::into);
    }

    fn refused(&mut self, rejection: &Rejection) {
        if self.rejection.is_none() {
            self.rejection = Some(rejection.clone());
            self.observe_request();
        }
    }

    fn decide(&mut self, request: CompleteRequest) -> Result<Route, Rejection> {
        let request = CompleteRequest { may_wait: false, ..request };
        let nobody = || Err(Rejection::Internal("a request waits that may not".into()));
        self.submit(request).unwrap_or_else(nobody)
    }

    fn submit(&mut self, request: CompleteRequest) -> Option<Result<Route, Rejection>> {
        self.submitted_at = self.director.parts.clock.now();
        let may_wait = request.may_wait;
        let result = self.try_decide(request, may_wait)?;
        self.decided(&result);
        Some(result)
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<Route, Rejection>> {
        let Some((held, _)) = &mut self.held else { return Poll::Pending };
        let (request, result) = *ready!(Pin::new(held).poll(cx));
        let Some((held, pending)) = self.held.take() else { return Poll::Pending };
        self.held_for = self.director.parts.clock.now().since(held.since());
        self.request = request;
        let result = result.map(|committed| self.routed(committed, pending));
        self.decided(&result);
        Poll::Ready(result)
    }

    fn response_headers(
        &mut self,
        status: u16,
        headers: Headers,
        served: &Served,
        _end: bool,
    ) -> Vec<(Cow<'static, str>, Bytes)> {
        let now = self.director.parts.clock.now();
        // An answer without an endpoint is the data plane's own: nobody waits for ours any more.
        if let Some((held, _)) = self.held.take() {
            self.held_for = now.since(held.since());
        }
        self.answer.status = status;
        self.served = served.endpoint().map(Into::into);
        let content_type = headers.get("content-type");
        let encoding = headers.get("content-encoding");
        self.answer.streamed = self.request.stream || content_type.is_some_and(dialect::is_event_stream);
        let inspect = self.destination.is_some() && (200..300).contains(&status);
        if inspect && self.director.parts.settings.reads_usage && self.answer_format != AnswerFormat::Opaque {
            self.usage = Some(UsageReader::new(self.answer_format, content_type, encoding));
        }
        if encoding.is_some_and(|e| !e.eq_ignore_ascii_case("identity")) {
            // The bytes of an encoded answer are never touched.
            self.restore = None;
        }
        let mut add = Vec::new();
        let start = ResponseStart { status, headers: &headers, served, now };
        for watch in &mut self.watches {
            watch.response_headers(&start, &mut add);
        }
        if let Some(record) = self.record.as_ref().filter(|_| self.asked) {
            add.push((DECISION_HEADER, self.director.parts.decisions.name(record)));
        }
        add.into_iter().map(|(name, value)| (Cow::Borrowed(name), Bytes::from(value))).collect()
    }

    fn response_body(&mut self, chunk: &Bytes, end: bool) -> Option<SmallVec<[Bytes; 3]>> {
        if !chunk.is_empty() {
            let now = self.director.parts.clock.now();
            match self.answer.last_chunk_at {
                None => self.first_chunk(now),
                Some(last) => {
                    if let Some(metrics) = self.metrics.as_ref().filter(|_| self.answer.streamed) {
                        metrics.observe_itl(now.since(last));
                    }
                }
            }
            self.answer.last_chunk_at = Some(now);
            self.answer.bytes += chunk.len() as u64;
            if let Some(usage) = &mut self.usage {
                usage.push(chunk);
            }
        }
        let passed = self.restore.as_mut().map(|restore| restore.push(chunk, end));
        if !chunk.is_empty() {
            self.answer.processing +=
                self.director.parts.clock.now().since(self.answer.last_chunk_at.unwrap_or_default());
        }
        passed
    }

    fn end(&mut self, outcome: Outcome) {
        self.finish(outcome);
    }
}

impl Drop for DirectedExchange {
    fn drop(&mut self) {
        self.finish(Outcome::ClientDisconnect);
    }
}

/// A UUID v4 for requests that came without an id.
fn new_request_id() -> String {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_le_bytes()).into_uuid().to_string()
}

/// The destination header: every picked endpoint of the primary profile, best first.
fn destinations_of(decision: &Decision) -> Box<str> {
    let picked = &decision.primary().picked;
    if let [only] = picked.as_slice() {
        return only.endpoint.destination().into();
    }
    picked.iter().map(|r| r.endpoint.destination()).collect::<Vec<_>>().join(",").into()
}

/// The total of every candidate that was scored, for the scores metadata.
fn scores_of(decision: &Decision) -> Vec<(Box<str>, f64)> {
    let Some(why) = decision.primary().explanation.as_deref() else { return Vec::new() };
    let score = |i: usize| Some((why.endpoint(i)?.destination().into(), f64::from(why.total(i))));
    (0..why.candidates.len()).filter_map(score).collect()
}
