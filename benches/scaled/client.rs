//! One request as the data plane makes it, whose answer comes from a simulated server.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use pointsman::replay::text::mix;
use pointsman::replay::trace::Trace;
use tokio::net::TcpStream;

use super::fleet::{Fleet, Scaled};
use super::wire::{self, Response};

/// Characters of text that stand for one token, as the picker counts them.
const TOKEN_BYTES: usize = 4;

/// A connection to the picker.
#[derive(Clone)]
pub struct Connection(SendRequest<Bytes>);

impl Connection {
    /// Connects as soon as the picker listens.
    pub async fn open_patiently(address: SocketAddr) -> Self {
        for _ in 0..200 {
            if let Ok(stream) = TcpStream::connect(address).await {
                return Self::over(stream).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the picker does not listen on {address}");
    }

    async fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(16 << 20)
            .initial_connection_window_size(64 << 20)
            .max_send_buffer_size(64 << 20)
            .initial_max_send_streams(10_000)
            .handshake(stream)
            .await
            .expect("HTTP/2");
        tokio::task::spawn_local(async move {
            // Its end is no event of the generator.
            let _ = connection.await;
        });
        Self(send)
    }
}

/// What became of a request.
pub struct Served {
    /// Virtual time of its first token.
    pub first: f64,
    /// Tokens of its prompt that the server had cached.
    pub cached: u32,
}

/// Sends request `id` of `trace` through the picker and to the server it names.
///
/// # Errors
/// A refusal, or a stream that ended early.
pub async fn exchange(
    connection: &Connection,
    trace: &Trace,
    id: usize,
    fleet: &Rc<RefCell<Fleet>>,
    addresses: &[SocketAddr],
    clock: Scaled,
) -> Result<Served, String> {
    let request = trace.requests[id];
    let mut stream = Stream::open(connection.0.clone()).await?;
    stream.send(wire::request_headers())?;
    stream.send(wire::request_body(body(trace, id)))?;
    let destination = match stream.next().await? {
        Response::RequestHeaders(answer) => wire::destination(&answer).ok_or("no destination in the answer")?,
        Response::ImmediateResponse(refusal) => return Err(format!("refused: {:?}", refusal.status)),
        _ => return Err("an answer out of turn".into()),
    };
    let pod = addresses.iter().position(|a| a.to_string() == destination).ok_or("an unknown destination")?;
    let (first, done) = fleet.borrow_mut().send(id, pod, clock.now());
    let first = first.await.map_err(|_| "the server is gone")?;
    stream.send(wire::response_headers())?;
    stream.send(wire::response_body("data: {\"choices\":[{\"index\":0,\"text\":\" a\"}]}\n\n".into(), false))?;
    done.await.map_err(|_| "the server is gone")?;
    let cached = fleet.borrow().cached(id);
    let usage = format!(
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}}}\n\ndata: [DONE]\n\n",
        request.input,
        request.output,
        request.input + request.output
    );
    stream.send(wire::response_body(usage, true))?;
    stream.close().await;
    Ok(Served { first, cached })
}

/// The body of request `id`: text that has its blocks in common with other requests as the trace says.
fn body(trace: &Trace, id: usize) -> Bytes {
    let request = &trace.requests[id];
    let length = request.input as usize * TOKEN_BYTES;
    let block = trace.block_tokens as usize * TOKEN_BYTES;
    let mut text = String::with_capacity(length + 80);
    text.push_str("{\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"prompt\":\"");
    let start = text.len();
    let words = trace.blocks(request).iter().map(|id| u64::from(*id)).chain([u64::MAX - id as u64]);
    for word in words {
        let word = format!("{:016x}", mix(word));
        let end = (text.len() - start + block).min(length) + start;
        while text.len() < end {
            let room = end - text.len();
            text.push_str(&word[..room.min(word.len())]);
        }
    }
    text.push_str("\"}");
    text.into()
}

struct Stream {
    to: SendStream<Bytes>,
    response: Option<h2::client::ResponseFuture>,
    from: Option<RecvStream>,
    buffer: BytesMut,
}

impl Stream {
    async fn open(send: SendRequest<Bytes>) -> Result<Self, String> {
        let mut send = send.ready().await.map_err(|e| format!("connection: {e}"))?;
        let request = Request::post(wire::PATH)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|e| e.to_string())?;
        let (response, to) = send.send_request(request, false).map_err(|e| format!("open a stream: {e}"))?;
        Ok(Self { to, response: Some(response), from: None, buffer: BytesMut::new() })
    }

    fn send(&mut self, message: Bytes) -> Result<(), String> {
        self.to.send_data(message, false).map_err(|e| format!("send: {e}"))
    }

    async fn next(&mut self) -> Result<Response, String> {
        loop {
            if let Some(message) = wire::next(&mut self.buffer)? {
                return Ok(message);
            }
            if !self.read().await? {
                return Err("the picker ended the stream early".into());
            }
        }
    }

    /// Reads a piece; false at the end.
    async fn read(&mut self) -> Result<bool, String> {
        if let Some(response) = self.response.take() {
            self.from = Some(response.await.map_err(|e| format!("response: {e}"))?.into_body());
        }
        let Some(from) = &mut self.from else { return Ok(false) };
        let Some(data) = from.data().await else { return Ok(false) };
        let data = data.map_err(|e| format!("read: {e}"))?;
        from.flow_control().release_capacity(data.len()).map_err(|e| e.to_string())?;
        self.buffer.extend_from_slice(&data);
        Ok(true)
    }

    /// Ends our side and reads what is left.
    async fn close(mut self) {
        // A picker that has ended the stream may reset it, which is as good an end as any by now.
        let _ = self.to.send_data(Bytes::new(), true);
        while let Ok(true) = self.read().await {
            self.buffer.clear();
        }
    }
}
