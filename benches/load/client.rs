//! One request as Envoy makes it, on a connection of the `h2` crate: no gRPC library, no decoding.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;

use super::wire::{self, Messages, Seen, answer};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bytes of the request body.
    pub body: usize,
    /// Pieces that it arrives in, before the empty one that ends it.
    pub pieces: usize,
    /// Pieces of the answer; one is sent when the one before has come back. With none there is no answer.
    pub chunks: usize,
}

/// Prompts and frames that all requests of one shape share.
pub struct Requests {
    shape: Shape,
    headers: Bytes,
    end: Bytes,
    response_headers: Bytes,
    chunk: Bytes,
    last_chunk: Bytes,
    /// JSON up to the text of the user.
    head: Vec<Bytes>,
    /// Text that fills the rest, and the end of the JSON.
    tail: Bytes,
}

const SENTENCE: &str = "The points are set before the train arrives, and \\\"before\\\" is what matters here.\\n";
/// Conversations, each with a beginning of its own that takes a quarter of the body.
const CONVERSATIONS: usize = 64;
/// Room for the number that makes each request's text differ from all others.
const NUMBER: usize = 20;

impl Requests {
    /// Prepares requests of a shape that share beginnings: conversations.
    pub fn new(shape: Shape) -> Arc<Self> {
        let share = shape.body / 4;
        Self::sharing(shape, share)
    }

    /// Prepares requests that have nothing in common.
    pub fn distinct(shape: Shape) -> Arc<Self> {
        Self::sharing(shape, 0)
    }

    /// Prepares requests of which those of one conversation begin with the same `share` bytes.
    fn sharing(shape: Shape, share: usize) -> Arc<Self> {
        let conversation = |number: usize| {
            let mut text = format!(
                r#"{{"model":"bench/model","stream":true,"max_tokens":64,"messages":[{{"role":"system","content":"Conversation {number:04}. "#
            );
            if share == 0 {
                return r#"{"model":"bench/model","stream":true,"messages":[{"role":"user","content":""#.to_owned();
            }
            while text.len() + SENTENCE.len() < share {
                text.push_str(SENTENCE);
            }
            text.push_str(r#""},{"role":"user","content":""#);
            text
        };
        let head: Vec<Bytes> = (0..CONVERSATIONS).map(|number| conversation(number).into()).collect();
        let closing = r#""}]}"#;
        let mut tail = String::from(" ");
        let room = shape.body.saturating_sub(head[0].len() + NUMBER + closing.len());
        while tail.len() + SENTENCE.len() < room {
            tail.push_str(SENTENCE);
        }
        while tail.len() < room {
            tail.push('.');
        }
        tail.push_str(closing);
        let token = br#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795254000,"model":"bench/model","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}"#;
        let chunk = [token.as_slice(), b"\n\n"].concat();
        let usage = br#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":900,"completion_tokens":3,"total_tokens":903}}"#;
        let last = [usage.as_slice(), b"\n\ndata: [DONE]\n\n"].concat();
        Arc::new(Self {
            shape,
            headers: wire::request_headers(),
            end: wire::request_end(),
            response_headers: wire::response_headers(),
            chunk: wire::response_body(&chunk, false),
            last_chunk: wire::response_body(&last, true),
            head,
            tail: tail.into(),
        })
    }

    /// The body of request `number` as JSON.
    pub fn json(&self, number: u64) -> Vec<u8> {
        let digits = format!("{number:0NUMBER$}");
        [&self.head[number as usize % CONVERSATIONS], digits.as_bytes(), &self.tail].concat()
    }

    /// The body's messages of request `number`, as slices of what all requests share; the last one is the empty end.
    fn body(&self, number: u64, mut send: impl FnMut(Bytes)) {
        let digits = Bytes::from(format!("{number:0NUMBER$}"));
        let mut parts = [self.head[number as usize % CONVERSATIONS].clone(), digits, self.tail.clone()];
        let mut left: usize = parts.iter().map(Bytes::len).sum();
        let piece = left.div_ceil(self.shape.pieces.max(1));
        while left > 0 {
            let mut room = piece.min(left);
            left -= room;
            send(wire::request_body_head(room));
            for part in &mut parts {
                let now = part.split_to(room.min(part.len()));
                room -= now.len();
                if !now.is_empty() {
                    send(now);
                }
            }
        }
        send(self.end.clone());
    }
}

/// The last piece of the request given back.
const REQUEST_END: Seen = Seen { field: answer::REQUEST_BODY, end: true };

/// A connection.
#[derive(Clone)]
pub struct Connection(SendRequest<Bytes>);

impl Connection {
    /// Connects with Envoy's windows and drives the connection on this runtime.
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("connect to {address}: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(16 << 20)
            .initial_connection_window_size(24 << 20)
            .max_send_buffer_size(8 << 20)
            .initial_max_send_streams(10_000)
            .handshake(stream)
            .await
            .map_err(|e| format!("HTTP/2 with {address}: {e}"))?;
        tokio::spawn(async move {
            // The end of the server under test is not an event of the generator.
            let _ = connection.await;
        });
        Ok(Self(send))
    }

    /// Makes request `number` and returns the time from its last byte to the pick.
    pub async fn exchange(&self, requests: &Requests, number: u64) -> Result<Duration, String> {
        let mut exchange = Exchange::open(self.0.clone()).await?;
        exchange.send(requests.headers.clone())?;
        let mut failed = None;
        requests.body(number, |message| {
            if let Err(error) = exchange.send(message) {
                failed = Some(error);
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let sent = Instant::now();
        let mut picked = None;
        exchange
            .until(|seen| {
                match seen.field {
                    answer::REQUEST_HEADERS => picked = Some(sent.elapsed()),
                    answer::REQUEST_BODY => {}
                    other => return Err(format!("the request was answered by message {other}")),
                }
                Ok(seen == REQUEST_END)
            })
            .await?;
        if requests.shape.chunks > 0 {
            exchange.send(requests.response_headers.clone())?;
            exchange.until(|seen| Ok(seen.field == answer::RESPONSE_HEADERS)).await?;
        }
        for left in (0..requests.shape.chunks).rev() {
            exchange.send(if left > 0 { requests.chunk.clone() } else { requests.last_chunk.clone() })?;
            exchange.until(|seen| Ok(seen == Seen { field: answer::RESPONSE_BODY, end: left == 0 })).await?;
        }
        exchange.close().await?;
        picked.ok_or_else(|| "the body came back before the pick".to_owned())
    }

    /// Opens a request up to the first chunk of its answer and leaves it open.
    pub async fn hold_open(&self, requests: &Requests, number: u64) -> Result<Exchange, String> {
        let mut exchange = Exchange::open(self.0.clone()).await?;
        exchange.send(requests.headers.clone())?;
        let mut messages = Vec::new();
        requests.body(number, |message| messages.push(message));
        for message in messages {
            exchange.send(message)?;
        }
        exchange.until(|seen| Ok(seen == REQUEST_END)).await?;
        exchange.send(requests.response_headers.clone())?;
        exchange.until(|seen| Ok(seen.field == answer::RESPONSE_HEADERS)).await?;
        exchange.send(requests.chunk.clone())?;
        exchange.until(|seen| Ok(seen.field == answer::RESPONSE_BODY)).await?;
        Ok(exchange)
    }
}

/// An open stream.
pub struct Exchange {
    to: SendStream<Bytes>,
    from: From,
    messages: Messages,
    /// Messages that came in the same piece as the one waited for.
    early: std::collections::VecDeque<Seen>,
}

enum From {
    Response(h2::client::ResponseFuture),
    Body(RecvStream),
}

impl Exchange {
    async fn open(send: SendRequest<Bytes>) -> Result<Self, String> {
        let mut send = send.ready().await.map_err(|e| format!("connection: {e}"))?;
        let request = Request::post(wire::PATH)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|e| e.to_string())?;
        let (response, to) = send.send_request(request, false).map_err(|e| format!("open a stream: {e}"))?;
        Ok(Self { to, from: From::Response(response), messages: Messages::answers(), early: Default::default() })
    }

    fn send(&mut self, message: Bytes) -> Result<(), String> {
        self.to.send_data(message, false).map_err(|e| format!("send: {e}"))
    }

    /// Reads answers until `done` says so.
    async fn until(&mut self, mut done: impl FnMut(Seen) -> Result<bool, String>) -> Result<(), String> {
        loop {
            while let Some(seen) = self.early.pop_front() {
                if done(seen)? {
                    return Ok(());
                }
            }
            let data = self.data().await?.ok_or("the server ended the stream early")?;
            let early = &mut self.early;
            self.messages.push(data, |seen| early.push_back(seen));
        }
    }

    async fn data(&mut self) -> Result<Option<Bytes>, String> {
        if let From::Response(response) = &mut self.from {
            let response = response.await.map_err(|e| format!("response: {e}"))?;
            if response.status() != 200 || response.headers().contains_key("grpc-status") {
                return Err(format!("refused: {:?}", response.headers()));
            }
            self.from = From::Body(response.into_body());
        }
        let From::Body(body) = &mut self.from else { return Ok(None) };
        match body.data().await {
            None => Ok(None),
            Some(data) => {
                let data = data.map_err(|e| format!("read: {e}"))?;
                body.flow_control().release_capacity(data.len()).map_err(|e| e.to_string())?;
                Ok(Some(data))
            }
        }
    }

    /// Ends our side and reads the status. A server that has already ended the stream may reset what is left
    /// of it, which is as good an end as any once the answer has come back.
    async fn close(mut self) -> Result<(), String> {
        let _ = self.to.send_data(Bytes::new(), true);
        while let Ok(Some(_)) = self.data().await {}
        let From::Body(mut body) = self.from else { return Err("no body".into()) };
        match body.trailers().await {
            Ok(Some(trailers)) => match trailers.get("grpc-status") {
                Some(status) if status == "0" => Ok(()),
                other => Err(format!("grpc-status {other:?}")),
            },
            _ => Ok(()),
        }
    }
}
