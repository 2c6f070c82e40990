//! The vocabulary of the [machine](super): what happens on a stream and what must be done about it.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::domain::{Headers, Outcome, Rejection, Served};
use crate::extproc::exchange::{CompleteRequest, Route, SetHeader};
use crate::extproc::subset::SubsetHint;

/// How bodies are sent to us: Envoy's `ProcessingMode.BodySendMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// No body messages.
    None,
    /// The whole body in one message; answered by one message.
    Buffered,
    /// Chunks in, any number of chunks back.
    FullDuplex,
    /// A mode that cannot carry a pick made from the body.
    Unsupported(i32),
}

impl BodyMode {
    /// From the wire's number.
    pub const fn from_wire(number: i32) -> Self {
        match number {
            0 => Self::None,
            2 => Self::Buffered,
            4 => Self::FullDuplex,
            other => Self::Unsupported(other),
        }
    }

    /// Envoy's name of the mode.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Buffered => "BUFFERED",
            Self::FullDuplex => "FULL_DUPLEX_STREAMED",
            Self::Unsupported(1) => "STREAMED",
            Self::Unsupported(3) => "BUFFERED_PARTIAL",
            Self::Unsupported(5) => "GRPC",
            Self::Unsupported(_) => "(unknown)",
        }
    }
}

/// The modes of a stream, told by its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// Request bodies.
    pub request: BodyMode,
    /// Response bodies.
    pub response: BodyMode,
}

/// One message of the data plane.
#[derive(Clone, Debug)]
pub struct Message {
    /// What it carries.
    pub part: Part,
    /// `protocol_config`, if present; looked at on the first message only.
    pub modes: Option<Modes>,
    /// The subset hint, if this message carries one; the first one counts.
    pub subset: Option<SubsetHint>,
}

impl From<Part> for Message {
    fn from(part: Part) -> Self {
        Self { part, modes: None, subset: None }
    }
}

/// The part of the HTTP exchange that a message carries.
#[derive(Clone, Debug)]
pub enum Part {
    /// Request headers; `end` if no body follows.
    RequestHeaders { headers: Headers, end: bool },
    /// A piece of the request body.
    RequestBody { chunk: Bytes, end: bool },
    /// The start of a piece of the request body, of which more comes: no message of its own.
    RequestBodyPart { chunk: Bytes },
    /// Request trailers: the end of the request.
    RequestTrailers,
    /// Response headers; `served` is the endpoint that answered, if reported.
    ResponseHeaders { headers: Headers, served: Served, end: bool },
    /// A piece of the response body.
    ResponseBody { chunk: Bytes, end: bool },
    /// Response trailers: the end of the response.
    ResponseTrailers,
    /// Something that needs no answer (flow-control messages of newer data planes).
    Other,
}

/// What can happen to a stream.
#[derive(Clone, Debug)]
pub enum Event {
    /// The data plane sent a message.
    Message(Message),
    /// The answer to [`Action::Decide`].
    Decided(Result<Route, Rejection>),
    /// The data plane will send no more but may still read.
    HalfClosed,
    /// Reading failed.
    Failed(ReadFailure),
    /// The process stops and waits no longer.
    Stop,
    /// Our code failed (a panic was caught).
    Fault,
    /// The stream is gone; nothing can be sent.
    Dropped,
}

/// Why reading from the data plane failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// The stream or connection was reset: also the normal end of an exchange with Envoy.
    Disconnected,
    /// A message above the decode limit (bytes).
    TooLarge { limit: u64 },
    /// A message that does not decode.
    Malformed,
}

/// What the caller must do, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Decide and come back with [`Event::Decided`]; always the last action of an event.
    Decide(Box<CompleteRequest>),
    /// Show the response headers to the exchange and send [`Reply::ResponseHeaders`] with what it adds.
    AnswerResponseHeaders { status: u16, headers: Headers, served: Served, end: bool },
    /// Show a piece of the response body to the exchange; it has been passed on as it is.
    ObserveResponseBody { chunk: Bytes, end: bool },
    /// Show a piece of the response body to the exchange and pass on what it makes of it
    /// ([`response_replies`](super::response_replies)).
    AnswerResponseBody { chunk: Bytes, end: bool },
    /// Tell the exchange that the body has ended with trailers, pass on what it held back (without an end
    /// flag), then the trailers.
    AnswerResponseTrailers,
    /// Send this.
    Reply(Reply),
    /// Tell the exchange how it ended.
    End(Outcome),
    /// Send nothing more and end the stream.
    Close(Close),
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Status OK.
    Ok,
    /// Status UNAVAILABLE: we are stopping in the middle of a response.
    Unavailable,
    /// Status CANCELLED: the peer went away in the middle of a response.
    Cancelled,
    /// Status INTERNAL, with what went wrong.
    Internal(&'static str),
}

/// One message to the data plane, in domain terms; `respond` writes it.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Continue without changes (BUFFERED: the pick follows with the body).
    RequestHeadersPass,
    /// The pick.
    RequestHeaders(Box<Answer>),
    /// A piece of the request body given back.
    RequestBody { piece: Bytes, end: bool },
    /// BUFFERED: the pick, and the new body if it was rewritten.
    RequestBodyWhole { answer: Box<Answer>, replaced: Option<Bytes> },
    /// BUFFERED: continue with the body as it is.
    RequestBodyPass,
    /// Continue with the request trailers.
    RequestTrailers,
    /// Response headers with additions.
    ResponseHeaders(Vec<SetHeader>),
    /// A piece of the response body given back.
    ResponseBody { piece: Bytes, end: bool },
    /// BUFFERED: continue with the response body as it is.
    ResponseBodyPass,
    /// Continue with the response trailers.
    ResponseTrailers,
    /// Refuse: the client gets this instead.
    Immediate(Rejection),
}

/// What is written on the request when it is routed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The destination, for the header and the metadata.
    pub destination: Box<str>,
    /// Further headers to set.
    pub set_headers: Vec<SetHeader>,
    /// Size of the body that goes upstream; `None` for requests without one.
    pub content_length: Option<usize>,
    /// Headers to remove: control headers that came with the request.
    pub remove_headers: SmallVec<[Bytes; 2]>,
    /// Scores for the metadata.
    pub scores: Vec<(Box<str>, f64)>,
}

/// Limits and habits that all streams share.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Largest request body, in bytes.
    pub max_request_body: usize,
    /// Names (lower case) of the request headers that are removed on the way to the model server.
    pub remove_request_headers: Vec<Bytes>,
}
