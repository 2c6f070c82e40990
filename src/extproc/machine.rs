//! The ext_proc protocol of one stream as a state machine without I/O: [`Event`] in, [`Action`]s out.
//!
//! It is defined for every order of events. What it promises, whatever comes in:
//!
//! * replies obey the contract of Envoy 1.40 (protocol 3.2): per direction headers, then body pieces, then one
//!   end (a last piece, or trailers); nothing after an immediate reply or after the close;
//! * a request body that was taken is given back in full or refused with an immediate reply, and the stream never
//!   ends OK in mid-body;
//! * [`Action::Decide`] comes at most once, [`Action::End`] exactly once (at the latest on [`Event::Dropped`]),
//!   [`Action::Close`] at most once and last.
//!
//! While a request is held the data plane may answer the client by itself; the request is then abandoned like one
//! that never was complete.
//!
//! The two directions are two small enums, because a data plane may answer the client itself in the middle of
//! the request body, or before it ever sent us the request.
//!
//! Modes: requests FULL_DUPLEX_STREAMED or BUFFERED, responses these or NONE; without a
//! `protocol_config` duplex is assumed. Everything else is refused at once, with the fix in the message.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::body::{self, Collected};
use super::exchange::{CompleteRequest, Route};
use super::subset::SubsetHint;
use crate::domain::{Headers, Outcome, Rejection, RejectionReason, Served};

pub mod events;
pub use events::{Action, Answer, BodyMode, Close, Event, Message, Modes, Part, ReadFailure, Reply, Rules};

/// The state of the request direction.
#[derive(Debug)]
enum Request {
    /// Nothing came yet.
    Waiting,
    /// Headers came; the body is being collected.
    Collecting { headers: Headers, body: Collected },
    /// Complete; the decision is out, perhaps for long, as a request may be held.
    Deciding { ending: Ending, body: Bytes, has_body: bool, remove: SmallVec<[Bytes; 2]> },
    /// Given back in full.
    Done { trailers_open: bool },
    /// A response came before the request was complete; the rest of the request is ignored.
    Abandoned { taken: bool },
}

/// What ended the request, which says where the pick is written and how the body is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Headers,
    Body,
    Trailers,
    Buffered,
}

/// The state of the response direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Response {
    Waiting,
    /// Headers were answered; `Outcome` is what it will be if it passes to its end.
    Streaming(Outcome),
    /// It has passed. `trailers_open`: BUFFERED trailers may still come.
    Done {
        trailers_open: bool,
    },
}

/// One stream. Feed it with [`Machine::on`].
#[derive(Debug)]
pub struct Machine {
    rules: Arc<Rules>,
    modes: Modes,
    /// Whether the data plane told its modes (those that do not may have no response phase).
    told_modes: bool,
    started: bool,
    subset: Option<SubsetHint>,
    request: Request,
    response: Response,
    /// The peer half-closed while the decision was out.
    half_closed: bool,
    ended: bool,
    closed: bool,
}

type Actions = Vec<Action>;

impl Machine {
    /// A stream that nothing has happened on.
    pub fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            modes: Modes { request: BodyMode::FullDuplex, response: BodyMode::FullDuplex },
            told_modes: false,
            started: false,
            subset: None,
            request: Request::Waiting,
            response: Response::Waiting,
            half_closed: false,
            ended: false,
            closed: false,
        }
    }

    /// Whether a decision is awaited.
    pub fn is_deciding(&self) -> bool {
        matches!(self.request, Request::Deciding { .. })
    }

    /// Whether a subset hint is still of use, so that metadata is decoded only then.
    pub fn wants_subset(&self) -> bool {
        self.subset.is_none() && matches!(self.request, Request::Waiting | Request::Collecting { .. })
    }

    /// Takes an event and appends what must be done. After [`Action::Close`] nothing is.
    pub fn on(&mut self, event: Event, out: &mut Actions) {
        if self.closed {
            return;
        }
        match event {
            Event::Message(message) => self.message(message, out),
            Event::Decided(result) => {
                self.decided(result, out);
                if self.half_closed && !self.closed {
                    self.half_closed(out);
                }
            }
            Event::HalfClosed => self.half_closed(out),
            Event::Failed(failure) => self.failed(failure, out),
            Event::Stop => self.stop(out),
            Event::Fault => self.violation("the endpoint picker failed on this request", out),
            Event::Dropped => {
                self.end(self.outcome_when_gone(false), out);
                self.closed = true;
            }
        }
    }

    fn message(&mut self, message: Message, out: &mut Actions) {
        if !std::mem::replace(&mut self.started, true) {
            self.told_modes = message.modes.is_some();
            self.modes = message.modes.unwrap_or(self.modes);
            if let Some(problem) = unsupported(self.modes) {
                return self.refuse(Rejection::Internal(problem), Outcome::InternalError, out);
            }
        }
        if self.wants_subset() && message.subset.is_some() {
            self.subset = message.subset;
        }
        match message.part {
            Part::RequestHeaders { headers, end } => self.request_headers(headers, end, out),
            Part::RequestBody { chunk, end } => self.request_body(chunk, end, out),
            Part::RequestBodyPart { chunk } => self.request_body_part(chunk, out),
            Part::RequestTrailers => self.request_trailers(out),
            Part::ResponseHeaders { headers, served, end } => self.response_headers(headers, served, end, out),
            Part::ResponseBody { chunk, end } => self.response_body(chunk, end, out),
            Part::ResponseTrailers => self.response_trailers(out),
            Part::Other => {}
        }
    }

    fn request_headers(&mut self, headers: Headers, end: bool, out: &mut Actions) {
        if !matches!(self.request, Request::Waiting) {
            return self.violation("request headers came at the wrong time", out);
        }
        if end {
            return self.complete(headers, Collected::default(), Ending::Headers, out);
        }
        if self.modes.request == BodyMode::Buffered {
            // Envoy sends the body only after this, and waits for it 200 ms by default.
            out.push(Action::Reply(Reply::RequestHeadersPass));
        }
        self.request = Request::Collecting { headers, body: Collected::default() };
    }

    fn request_body(&mut self, chunk: Bytes, end: bool, out: &mut Actions) {
        let buffered = self.modes.request == BodyMode::Buffered;
        match &self.request {
            Request::Collecting { .. } => {
                if self.collect(chunk, out) && (end || buffered) {
                    let ending = if buffered { Ending::Buffered } else { Ending::Body };
                    self.complete_collected(ending, out);
                }
            }
            // Each body message is owed an answer, until the trailers have been answered.
            Request::Abandoned { taken: true } | Request::Done { trailers_open: true } if buffered => {
                out.push(Action::Reply(Reply::RequestBodyPass));
            }
            Request::Abandoned { taken: true } => {}
            // The whole request has been given back, so nothing is owed for what comes after its end: an empty
            // end marker, or the last piece once more, which Envoy was seen to repeat (envoyproxy/envoy#46237).
            Request::Done { .. } if end => {}
            _ => self.violation("a request body came at the wrong time (request_header_mode must be SEND)", out),
        }
    }

    /// Nothing is owed for it yet, so in any other state the end of the message decides.
    fn request_body_part(&mut self, chunk: Bytes, out: &mut Actions) {
        if matches!(self.request, Request::Collecting { .. }) {
            self.collect(chunk, out);
        }
    }

    /// Keeps a chunk, or refuses a body that is too large.
    fn collect(&mut self, chunk: Bytes, out: &mut Actions) -> bool {
        let Request::Collecting { body, .. } = &mut self.request else { return false };
        if body.len().saturating_add(chunk.len()) <= self.rules.max_request_body {
            body.push(chunk);
            return true;
        }
        let limit = self.rules.max_request_body as u64;
        self.refuse(Rejection::TooLarge { limit, setting: "--max-request-body" }, Outcome::Rejected, out);
        false
    }

    fn request_trailers(&mut self, out: &mut Actions) {
        let buffered = self.modes.request == BodyMode::Buffered;
        match &mut self.request {
            Request::Collecting { .. } if !buffered => self.complete_collected(Ending::Trailers, out),
            // The headers have been let go and there is no body message to write the pick on.
            Request::Collecting { .. } => self.violation(
                "a request with trailers and no body cannot be routed in BUFFERED mode: use FULL_DUPLEX_STREAMED",
                out,
            ),
            Request::Done { trailers_open } if *trailers_open => {
                *trailers_open = false;
                out.push(Action::Reply(Reply::RequestTrailers));
            }
            Request::Abandoned { taken: true } if buffered => {
                self.request = Request::Done { trailers_open: false };
                out.push(Action::Reply(Reply::RequestTrailers));
            }
            Request::Abandoned { taken: true } => {}
            _ => self.violation("request trailers came at the wrong time", out),
        }
    }

    fn complete_collected(&mut self, ending: Ending, out: &mut Actions) {
        if let Request::Collecting { headers, body } = std::mem::replace(&mut self.request, Request::Waiting) {
            self.complete(headers, body, ending, out);
        }
    }

    fn complete(&mut self, headers: Headers, body: Collected, ending: Ending, out: &mut Actions) {
        let body = body.finish();
        let has_body = ending != Ending::Headers;
        let remove = self.removable(&headers);
        self.request = Request::Deciding { ending, body: body.clone(), has_body, remove };
        let subset = self.subset.take();
        // In BUFFERED mode Envoy gives up after message_timeout, 200 ms by default; who does not tell may as well.
        let may_wait = self.told_modes && self.modes.request == BodyMode::FullDuplex;
        out.push(Action::Decide(Box::new(CompleteRequest { headers, body, has_body, subset, may_wait })));
    }

    /// The configured headers that this request has, each once.
    fn removable(&self, headers: &Headers) -> SmallVec<[Bytes; 2]> {
        let mut found = SmallVec::new();
        for (name, _) in headers.iter() {
            if let Some(known) = self.rules.remove_request_headers.iter().find(|known| known.as_ref() == name)
                && !found.contains(known)
            {
                found.push(known.clone());
            }
        }
        found
    }

    fn decided(&mut self, result: Result<Route, Rejection>, out: &mut Actions) {
        if !matches!(self.request, Request::Deciding { .. }) {
            return;
        }
        let route = match result {
            Ok(route) if route.destination.is_empty() => {
                let problem = Rejection::Internal("the decision named no destination".into());
                return self.refuse(problem, Outcome::InternalError, out);
            }
            Ok(route) => route,
            Err(rejection @ Rejection::Internal(_)) => return self.refuse(rejection, Outcome::InternalError, out),
            Err(rejection) => return self.refuse(rejection, Outcome::Rejected, out),
        };
        let done = Request::Done { trailers_open: false };
        let Request::Deciding { ending, body, has_body, mut remove } = std::mem::replace(&mut self.request, done)
        else {
            return;
        };
        // Never remove what is set in the same breath: planes differ in which of the two they do first.
        remove.retain(|name| !route.set_headers.iter().any(|(set, _)| set.as_bytes().eq_ignore_ascii_case(name)));
        let parts = if has_body { route.body } else { None };
        let size = parts.as_ref().map_or(body.len(), |parts| parts.iter().map(Bytes::len).sum());
        let answer = Box::new(Answer {
            destination: route.destination,
            set_headers: route.set_headers,
            content_length: (size > 0).then_some(size),
            remove_headers: remove,
            scores: route.scores,
        });
        if ending == Ending::Buffered {
            let replaced = parts.map(|parts| body::join(&parts));
            self.request = Request::Done { trailers_open: true };
            return out.push(Action::Reply(Reply::RequestBodyWhole { answer, replaced }));
        }
        out.push(Action::Reply(Reply::RequestHeaders(answer)));
        let parts = parts.unwrap_or_else(|| SmallVec::from_iter([body]));
        match ending {
            Ending::Body => {
                give_back(&parts, true, |piece, end| out.push(Action::Reply(Reply::RequestBody { piece, end })));
            }
            Ending::Trailers => {
                give_back(&parts, false, |piece, end| out.push(Action::Reply(Reply::RequestBody { piece, end })));
                out.push(Action::Reply(Reply::RequestTrailers));
            }
            Ending::Headers | Ending::Buffered => {}
        }
    }

    fn response_headers(&mut self, headers: Headers, served: Served, end: bool, out: &mut Actions) {
        if self.response != Response::Waiting {
            return self.violation("response headers came at the wrong time", out);
        }
        let routed = matches!(self.request, Request::Done { .. });
        if !routed {
            // Only the data plane itself can answer a request that was not routed yet.
            self.request = Request::Abandoned { taken: !matches!(self.request, Request::Waiting) };
        }
        let status = headers.get(":status").and_then(|status| status.trim().parse().ok()).unwrap_or(0);
        let outcome = judge(routed, status, &headers, served.endpoint());
        out.push(Action::AnswerResponseHeaders { status, headers, served, end });
        self.response = Response::Streaming(outcome);
        if end {
            self.response_complete(outcome, true, out);
        }
    }

    fn response_body(&mut self, chunk: Bytes, end: bool, out: &mut Actions) {
        let buffered = self.modes.response == BodyMode::Buffered;
        match self.response {
            Response::Streaming(outcome) if self.modes.response != BodyMode::None => {
                if buffered {
                    // One message; trailers (if any) follow one without the end flag.
                    out.push(Action::Reply(Reply::ResponseBodyPass));
                    out.push(Action::ObserveResponseBody { chunk, end: true });
                } else {
                    out.push(Action::AnswerResponseBody { chunk, end });
                }
                if end || buffered {
                    self.response_complete(outcome, end, out);
                }
            }
            Response::Done { .. } if chunk.is_empty() && !buffered => {}
            _ => self.violation("a response body came at the wrong time", out),
        }
    }

    fn response_trailers(&mut self, out: &mut Actions) {
        match self.response {
            Response::Streaming(outcome) => {
                out.push(Action::AnswerResponseTrailers);
                self.response_complete(outcome, true, out);
            }
            // After the one body message of BUFFERED; see there.
            Response::Done { trailers_open: true } => {
                out.push(Action::Reply(Reply::ResponseTrailers));
                self.response = Response::Done { trailers_open: false };
                self.close_if_done(out);
            }
            _ => self.violation("response trailers came at the wrong time", out),
        }
    }

    /// The response has passed; `last` if nothing more of it can come.
    fn response_complete(&mut self, outcome: Outcome, last: bool, out: &mut Actions) {
        self.response = Response::Done { trailers_open: !last };
        self.end(outcome, out);
        if last {
            self.close_if_done(out);
        }
    }

    /// The stream ends with the response unless the request is half taken, where an OK could be read as "go on
    /// without it": then the peer must end the stream.
    fn close_if_done(&mut self, out: &mut Actions) {
        if matches!(self.request, Request::Done { .. } | Request::Abandoned { taken: false }) {
            self.close(Close::Ok, out);
        }
    }

    fn half_closed(&mut self, out: &mut Actions) {
        match (&self.request, self.response) {
            // The answer is owed: it comes with the decision.
            (Request::Deciding { .. }, _) => self.half_closed = true,
            (Request::Collecting { .. }, Response::Waiting) => {
                let problem = Rejection::BadRequest("the request ended before its body was complete".into());
                self.refuse(problem, Outcome::ClientDisconnect, out);
            }
            (_, Response::Streaming(_)) if self.modes.response != BodyMode::None => {
                self.end(Outcome::ClientDisconnect, out);
                self.close(Close::Cancelled, out);
            }
            _ => {
                self.end(self.outcome_when_gone(true), out);
                self.close(Close::Ok, out);
            }
        }
    }

    fn failed(&mut self, failure: ReadFailure, out: &mut Actions) {
        match failure {
            ReadFailure::Disconnected => {
                self.end(self.outcome_when_gone(false), out);
                self.close(Close::Cancelled, out);
            }
            ReadFailure::TooLarge { limit } if !matches!(self.request, Request::Done { .. }) => {
                let setting = "one message of the data plane, --grpc-max-recv-msg-size";
                self.refuse(Rejection::TooLarge { limit, setting }, Outcome::Rejected, out);
            }
            ReadFailure::TooLarge { .. } => {
                self.violation("a message is larger than --grpc-max-recv-msg-size allows", out);
            }
            ReadFailure::Malformed => self.violation("a message of the data plane could not be decoded", out),
        }
    }

    fn stop(&mut self, out: &mut Actions) {
        match (&self.request, self.response) {
            (_, Response::Streaming(_)) if self.modes.response != BodyMode::None => {
                self.end(Outcome::Shutdown, out);
                self.close(Close::Unavailable, out);
            }
            // Routed and given back: the response passes without us (protocol 3.11).
            (Request::Done { .. }, _) | (_, Response::Streaming(_) | Response::Done { .. }) => {
                let outcome = match self.outcome_when_gone(false) {
                    Outcome::ClientDisconnect => Outcome::Shutdown,
                    known => known,
                };
                self.end(outcome, out);
                self.close(Close::Ok, out);
            }
            _ => self.refuse(shutting_down(), Outcome::Shutdown, out),
        }
    }

    /// The exchange cannot go on. Before the response an immediate reply tells the client, later only the
    /// status of the stream can.
    fn violation(&mut self, what: &'static str, out: &mut Actions) {
        if self.response == Response::Waiting {
            return self.refuse(Rejection::Internal(what.into()), Outcome::InternalError, out);
        }
        self.end(Outcome::InternalError, out);
        self.close(Close::Internal(what), out);
    }

    fn refuse(&mut self, rejection: Rejection, outcome: Outcome, out: &mut Actions) {
        if self.response != Response::Waiting {
            self.end(outcome, out);
            return self.close(Close::Internal("the exchange cannot go on"), out);
        }
        out.push(Action::Reply(Reply::Immediate(rejection)));
        self.end(outcome, out);
        self.close(Close::Ok, out);
    }

    /// The outcome when the peer goes without a word. A routed request whose data plane has no response phase
    /// (it said NONE, or it told no modes and half-closed in peace) is not a disconnect.
    fn outcome_when_gone(&self, peacefully: bool) -> Outcome {
        let told_none = self.told_modes && self.modes.response == BodyMode::None;
        match (&self.request, self.response) {
            (_, Response::Streaming(outcome)) if told_none => outcome,
            (Request::Done { .. }, Response::Waiting) if told_none || (peacefully && !self.told_modes) => {
                Outcome::RoutedOnly
            }
            _ => Outcome::ClientDisconnect,
        }
    }

    fn end(&mut self, outcome: Outcome, out: &mut Actions) {
        if !std::mem::replace(&mut self.ended, true) {
            out.push(Action::End(outcome));
        }
    }

    fn close(&mut self, how: Close, out: &mut Actions) {
        self.closed = true;
        self.request = Request::Done { trailers_open: false };
        out.push(Action::Close(how));
    }
}

/// The refusal while stopping.
pub fn shutting_down() -> Rejection {
    Rejection::ServiceUnavailable {
        message: "the endpoint picker is shutting down".into(),
        reason: RejectionReason::ShuttingDown,
    }
}

/// The replies to a piece of the response that is passed on as `parts`.
pub fn response_replies(parts: &[Bytes], end: bool, mut emit: impl FnMut(Reply)) {
    give_back(parts, end, |piece, end| emit(Reply::ResponseBody { piece, end }));
}

/// Emits a body as pieces; `end` goes on the last one, which is empty if the body is.
fn give_back(parts: &[Bytes], end: bool, mut emit: impl FnMut(Bytes, bool)) {
    let mut held: Option<Bytes> = None;
    body::pieces(parts, |piece| {
        if let Some(previous) = held.replace(piece) {
            emit(previous, false);
        }
    });
    if end || held.is_some() {
        emit(held.unwrap_or_default(), end);
    }
}

/// What an answer with this status is: a request that was not routed can only have been answered by the
/// data plane; a success is always the model server's; of the failures those are the server's that carry
/// Envoy's upstream time, or come with a served endpoint and do not look like a proxy's own. The endpoint
/// alone proves nothing: Envoy names the one that it chose even if that one refused the connection.
fn judge(routed: bool, status: u16, headers: &Headers, served: Option<&str>) -> Outcome {
    // Plain text without the headers of a server, which Envoy gives to its own replies only after its filters.
    let proxys_own = || {
        headers.first_of(&["date", "server"]).is_none()
            && headers.get("content-type").is_some_and(|kind| kind.starts_with("text/plain"))
    };
    match status {
        _ if !routed => Outcome::LocalReply,
        200..=299 => Outcome::Completed,
        _ if headers.get("x-envoy-upstream-service-time").is_some() => Outcome::UpstreamError,
        _ if served.is_some() && !proxys_own() => Outcome::UpstreamError,
        _ => Outcome::LocalReply,
    }
}

fn unsupported(modes: Modes) -> Option<String> {
    let (direction, mode, allowed) = match modes {
        Modes { request: mode @ (BodyMode::None | BodyMode::Unsupported(_)), .. } => {
            ("request", mode, "FULL_DUPLEX_STREAMED or BUFFERED")
        }
        Modes { response: mode @ BodyMode::Unsupported(_), .. } => {
            ("response", mode, "FULL_DUPLEX_STREAMED, BUFFERED or NONE")
        }
        _ => return None,
    };
    Some(format!(
        "{direction}_body_mode {} is not supported: set it to {allowed} in the ext_proc filter's processing_mode",
        mode.name()
    ))
}

#[cfg(test)]
mod tests;
