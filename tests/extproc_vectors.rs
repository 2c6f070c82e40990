//! The message-level vectors of the protocol (section 9), each against the machine and through a real gRPC
//! server, and what a vector cannot show: panics, disconnects, limits, drain.

#[path = "extproc_vectors/harness.rs"]
mod harness;
#[path = "extproc_vectors/streams.rs"]
mod streams;

use bytes::Bytes;
use harness::{Bench, Context, Given, In, Style, Subset, describe_wire, lab, to_event, to_wire};
use pointsman::domain::Outcome;
use pointsman::extproc::Settings;
use pointsman::extproc::machine::Close;

const DUPLEX: Context = Context { modes: Some((4, 4)), style: Style::Raw, subset: None, served: None };
const BODY: &str = r#"{"max_tokens":100,"model":"m1","prompt":"p","temperature":0}"#;
const NO_ENDPOINTS: &str = "I 503 rejected-no-endpoints inference error: ServiceUnavailable - \
                            failed to find endpoint candidates for serving the request";

/// One conversation: what is sent, and exactly what is answered to each message.
struct Vector {
    name: &'static str,
    context: Context,
    pods: usize,
    steps: Vec<(In, Vec<String>)>,
    /// What it ends as; for streams that the data plane ends, after it has dropped them.
    outcome: Outcome,
    /// Whether we end the stream, OK.
    ends: bool,
    /// The request body upstream and the response body downstream, if they are given back.
    request: Option<Bytes>,
    response: Option<Bytes>,
}

impl Vector {
    fn new(name: &'static str, context: Context) -> Self {
        Self {
            name,
            context,
            pods: 3,
            steps: Vec::new(),
            outcome: Outcome::ClientDisconnect,
            ends: false,
            request: None,
            response: None,
        }
    }

    fn step<T: Into<String>>(mut self, input: In, replies: impl IntoIterator<Item = T>) -> Self {
        self.steps.push((input, replies.into_iter().map(Into::into).collect()));
        self
    }

    fn silent(self, input: In) -> Self {
        self.step(input, Vec::<String>::new())
    }

    fn pods(mut self, pods: usize) -> Self {
        self.pods = pods;
        self
    }

    fn request(mut self, body: impl Into<Bytes>) -> Self {
        self.request = Some(body.into());
        self
    }

    fn response(mut self, body: impl Into<Bytes>) -> Self {
        self.response = Some(body.into());
        self
    }

    /// We end the stream.
    fn ends(mut self, outcome: Outcome) -> Self {
        (self.ends, self.outcome) = (true, outcome);
        self
    }

    /// The data plane ends it.
    fn left(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// A routed POST with [`BODY`], as the first steps.
    fn routed(self) -> Self {
        self.silent(post()).step(chunk(BODY, true), [picked("192.168.1.1:8000", BODY.len()), body(BODY.len(), true)])
    }
}

fn post() -> In {
    post_with(vec![])
}

fn post_with(more: Vec<(&'static str, &'static str)>) -> In {
    let mut headers = vec![
        (":method", "POST"),
        (":path", "/v1/completions"),
        ("content-type", "application/json"),
        ("x-request-id", "given"),
    ];
    headers.retain(|(name, _)| !more.iter().any(|(other, _)| name == other));
    headers.extend(more);
    In::H(headers, false)
}

fn get() -> In {
    In::H(vec![(":method", "GET"), (":path", "/v1/models")], true)
}

fn chunk(text: &'static str, end: bool) -> In {
    In::B(Bytes::from_static(text.as_bytes()), end)
}

fn answer(text: &'static str, end: bool) -> In {
    In::Rb(Bytes::from_static(text.as_bytes()), end)
}

fn upstream(status: &'static str, content_type: &'static str) -> In {
    In::Rh(vec![(":status", status), ("content-type", content_type), ("x-envoy-upstream-service-time", "1")], false)
}

fn local(status: &'static str) -> In {
    In::Rh(vec![(":status", status), ("content-type", "text/plain")], false)
}

fn picked(destination: &str, length: usize) -> String {
    format!("H -> {destination} +content-length={length}")
}

fn body(len: usize, end: bool) -> String {
    format!("B {len}{}", if end { " eos" } else { "" })
}

fn large(len: usize) -> Bytes {
    let mut text = br#"{"model":"m1","prompt":""#.to_vec();
    text.resize(len - 2, b'x');
    text.extend_from_slice(b"\"}");
    text.into()
}

fn subset(subset: Subset) -> Context {
    Context { subset: Some(subset), ..DUPLEX }
}

fn modes(request: i32, response: i32) -> Context {
    Context { modes: Some((request, response)), ..DUPLEX }
}

/// 9.1 to 9.9, 9.11 and 9.12: requests. (9.10 needs Kubernetes objects and is the director's.)
fn request_vectors() -> Vec<Vector> {
    let (first, second) = BODY.split_at(29);
    let large = large(125_000);
    let rewritten = BODY.replace("m1", "target");
    let mut vectors = vec![
        Vector::new("9.1 body-less", DUPLEX).step(get(), ["H -> 192.168.1.1:8000 +x-request-id=made"]),
        Vector::new("9.1 body-less, empty pool", DUPLEX).pods(0).step(get(), [NO_ENDPOINTS]).ends(Outcome::Rejected),
        Vector::new("9.1 body-less, subset", subset(Subset::List(&["192.168.1.2:8000"])))
            .step(get(), ["H -> 192.168.1.2:8000 +x-request-id=made"]),
        Vector::new("9.2 split body", DUPLEX)
            .silent(post())
            .silent(chunk(first, false))
            .step(chunk(second, true), [picked("192.168.1.1:8000", BODY.len()), body(BODY.len(), true)])
            .request(BODY),
        Vector::new("9.3 empty end marker", DUPLEX)
            .silent(post())
            .silent(chunk(BODY, false))
            .step(chunk("", true), [picked("192.168.1.1:8000", BODY.len()), body(BODY.len(), true)])
            .request(BODY),
        Vector::new("9.4 trailers", DUPLEX)
            .silent(post())
            .silent(chunk(BODY, false))
            .step(In::T, [picked("192.168.1.1:8000", BODY.len()), body(BODY.len(), false), "T".into()])
            .request(BODY),
        Vector::new("9.4 trailers without a body", DUPLEX)
            .silent(post_with(vec![("content-type", "text/plain")]))
            .step(In::T, ["H -> 192.168.1.1:8000", "T"]),
        Vector::new("9.5 large", DUPLEX)
            .silent(post())
            .step(
                In::B(large.clone(), true),
                [picked("192.168.1.1:8000", 125_000), body(62_000, false), body(62_000, false), body(1000, true)],
            )
            .request(large),
        Vector::new("an empty body", DUPLEX)
            .silent(post_with(vec![("content-type", "text/plain")]))
            .step(chunk("", true), ["H -> 192.168.1.1:8000", "B 0 eos"]),
        Vector::new("9.6 bad JSON", DUPLEX)
            .silent(post())
            .step(
                chunk("no healthy upstream", true),
                ["I 400 - inference error: BadRequest - expected ident at line 1 column 2"],
            )
            .ends(Outcome::Rejected),
        Vector::new("9.7 no model", DUPLEX)
            .silent(post())
            .step(
                chunk(r#"{"prompt":"hello world"}"#, true),
                ["I 400 - inference error: BadRequest - model not found in request body"],
            )
            .ends(Outcome::Rejected),
        Vector::new("9.11 unknown objective; control headers leave", DUPLEX)
            .silent(post_with(vec![("x-llm-d-inference-objective", "nobody"), ("x-slo-ttft-ms", "5")]))
            .step(
                chunk(BODY, true),
                [
                    picked("192.168.1.1:8000", BODY.len()) + " -x-llm-d-inference-objective -x-slo-ttft-ms",
                    body(BODY.len(), true),
                ],
            )
            .request(BODY),
        Vector::new("9.12 pass-through", DUPLEX)
            .silent(post_with(vec![("content-type", "text/plain")]))
            .step(chunk("any text", true), [picked("192.168.1.1:8000", 8), body(8, true)])
            .request("any text"),
    ];
    for header in ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"] {
        vectors.push(
            Vector::new("9.9 rewrite by header", DUPLEX)
                .silent(post_with(vec![(header, "target")]))
                .step(
                    chunk(BODY, true),
                    [picked("192.168.1.1:8000", rewritten.len()) + &format!(" -{header}"), body(rewritten.len(), true)],
                )
                .request(rewritten.clone()),
        );
    }
    let all: &[&str] = &["192.168.1.1:8000", "192.168.1.2:8000", "192.168.1.3:8000"];
    for (hint, expected) in [
        (Subset::List(all), Some("192.168.1.1:8000")),
        (Subset::List(&["192.168.1.3:8000"]), Some("192.168.1.3:8000")),
        (Subset::Text("192.168.1.3:8000"), Some("192.168.1.3:8000")),
        (Subset::Text("192.168.1.3, 192.168.1.2:8000"), Some("192.168.1.2:8000")),
        (Subset::List(&["192.168.1.99:8000"]), None),
        (Subset::List(&["192.168.1.1:8001"]), None),
        (Subset::List(&[]), None),
    ] {
        let vector = Vector::new("9.8 subset", subset(hint)).silent(post());
        vectors.push(match expected {
            Some(pod) => {
                vector.step(chunk(BODY, true), [picked(pod, BODY.len()), body(BODY.len(), true)]).request(BODY)
            }
            None => vector.step(chunk(BODY, true), [NO_ENDPOINTS]).ends(Outcome::Rejected),
        });
    }
    vectors
}

/// 9.13 to 9.21: responses, other clients, answers of the data plane.
fn response_vectors() -> Vec<Vector> {
    let served = Context { served: Some("192.168.1.1:8000"), ..DUPLEX };
    let agentgateway = Context { style: Style::Mixed, ..served.clone() };
    let nginx = Context { modes: None, style: Style::Value, ..DUPLEX };
    let long = Bytes::from(vec![b'y'; 62_001]);
    vec![
        Vector::new("9.13 JSON in chunks", DUPLEX)
            .routed()
            .step(upstream("200", "application/json"), ["RH"])
            .step(answer(r#"{"us"#, false), ["RB 4"])
            .step(answer(r#"age":{}}"#, true), ["RB 8 eos"])
            .response(r#"{"usage":{}}"#)
            .ends(Outcome::Completed),
        Vector::new("9.13 lone end marker", DUPLEX)
            .routed()
            .step(upstream("200", "application/json"), ["RH"])
            .step(answer("", true), ["RB 0 eos"])
            .ends(Outcome::Completed),
        Vector::new("a long response chunk is cut", DUPLEX)
            .routed()
            .step(upstream("200", "application/json"), ["RH"])
            .step(In::Rb(long.clone(), true), ["RB 62000", "RB 1 eos"])
            .response(long)
            .ends(Outcome::Completed),
        Vector::new("9.14 SSE", DUPLEX)
            .routed()
            .step(upstream("200", "text/event-stream"), ["RH"])
            .step(answer("data: {\"a\":", false), ["RB 11"])
            .step(answer("1}\n\n", false), ["RB 4"])
            .step(answer("data: [DONE]\n\n", true), ["RB 14 eos"])
            .response("data: {\"a\":1}\n\ndata: [DONE]\n\n")
            .ends(Outcome::Completed),
        Vector::new("9.15 gRPC", DUPLEX)
            .routed()
            .step(upstream("200", "application/grpc"), ["RH"])
            .step(answer("frame", false), ["RB 5"])
            .step(answer("frame", false), ["RB 5"])
            .step(In::Rt, ["RT"])
            .response("frameframe")
            .ends(Outcome::Completed),
        Vector::new("9.16 no content", DUPLEX)
            .routed()
            .step(In::Rh(vec![(":status", "204")], true), ["RH"])
            .ends(Outcome::Completed),
        Vector::new("9.17 NGF", nginx)
            .silent(In::H(vec![("content-type", "application/json"), ("x-request-id", "given")], false))
            .step(chunk(BODY, true), [picked("192.168.1.1:8000", BODY.len()), body(BODY.len(), true)])
            .silent(In::HalfClose)
            .request(BODY)
            .ends(Outcome::RoutedOnly),
        Vector::new("9.18 agentgateway", agentgateway)
            .silent(post())
            .step(chunk(BODY, true), [picked("192.168.1.1:8000", BODY.len()), body(BODY.len(), true)])
            .step(In::Rh(vec![(":status", "200")], false), ["RH"])
            .step(answer("{}", false), ["RB 2"])
            .step(answer("", true), ["RB 0 eos"])
            .request(BODY)
            .response("{}")
            .ends(Outcome::Completed),
        Vector::new("9.18 agentgateway, server error", Context { style: Style::Mixed, ..served })
            .routed()
            .step(In::Rh(vec![(":status", "404")], false), ["RH"])
            .step(answer("no", true), ["RB 2 eos"])
            .ends(Outcome::UpstreamError),
        Vector::new("9.19 drop after the pick", DUPLEX).routed().left(Outcome::ClientDisconnect),
        Vector::new("9.19 drop in the request body", DUPLEX).silent(post()).silent(chunk("{", false)),
        Vector::new("9.19 drop in the response", DUPLEX)
            .routed()
            .step(upstream("200", "text/event-stream"), ["RH"])
            .step(answer("data: ", false), ["RB 6"]),
        Vector::new("9.20 local reply", DUPLEX)
            .routed()
            .step(local("503"), ["RH"])
            .step(answer("upstream connect error", true), ["RB 22 eos"])
            .response("upstream connect error")
            .ends(Outcome::LocalReply),
        Vector::new("an error of the server is not a local reply", DUPLEX)
            .routed()
            .step(upstream("503", "application/json"), ["RH"])
            .step(answer("{}", true), ["RB 2 eos"])
            .ends(Outcome::UpstreamError),
        Vector::new("9.21 early response", DUPLEX)
            .silent(post())
            .silent(chunk("{\"model\":", false))
            .step(local("408"), ["RH"])
            .step(answer("request timeout", true), ["RB 15 eos"])
            .silent(chunk("late", true))
            .response("request timeout")
            .left(Outcome::LocalReply),
        Vector::new("response phase switched off", modes(4, 0)).routed().left(Outcome::RoutedOnly),
    ]
}

/// 9.22 and the modes that are refused.
fn mode_vectors() -> Vec<Vector> {
    let rewritten = BODY.replace("m1", "target");
    let whole = format!("B -> 192.168.1.1:8000 +content-length={}", BODY.len());
    let mut vectors = vec![
        Vector::new("9.22 BUFFERED", modes(2, 2))
            .step(post(), ["H pass"])
            .step(chunk(BODY, true), [whole.clone()])
            .step(upstream("200", "application/json"), ["RH"])
            .step(answer("{}", true), ["RB pass"])
            .ends(Outcome::Completed),
        Vector::new("9.22 BUFFERED with trailers", modes(2, 2))
            .step(post(), ["H pass"])
            .step(chunk(BODY, false), [whole])
            .step(In::T, ["T"])
            .step(upstream("200", "application/json"), ["RH"])
            .step(answer("{}", false), ["RB pass"])
            .step(In::Rt, ["RT"])
            .ends(Outcome::Completed),
        Vector::new("9.22 BUFFERED rewrite", modes(2, 2))
            .step(post_with(vec![("x-llm-d-model-name-rewrite", "target")]), ["H pass"])
            .step(
                chunk(BODY, true),
                [format!(
                    "B -> 192.168.1.1:8000 +content-length={0} -x-llm-d-model-name-rewrite body={0}",
                    rewritten.len()
                )],
            )
            .request(rewritten),
        Vector::new("BUFFERED body-less", modes(2, 2))
            .step(get(), ["H -> 192.168.1.1:8000 +x-request-id=made"])
            .step(In::Rh(vec![(":status", "200")], true), ["RH"])
            .ends(Outcome::Completed),
        Vector::new("BUFFERED trailers without a body", modes(2, 2))
            .step(post(), ["H pass"])
            .step(
                In::T,
                ["I 500 - inference error: Internal - a request with trailers and no body cannot be routed in \
                  BUFFERED mode: use FULL_DUPLEX_STREAMED"],
            )
            .ends(Outcome::InternalError),
        Vector::new("BUFFERED refusal", modes(2, 2))
            .step(post(), ["H pass"])
            .step(chunk("{}", true), ["I 400 - inference error: BadRequest - model not found in request body"])
            .ends(Outcome::Rejected),
    ];
    for (request, response, direction, mode, allowed) in [
        (0, 0, "request", "NONE", "FULL_DUPLEX_STREAMED or BUFFERED"),
        (1, 1, "request", "STREAMED", "FULL_DUPLEX_STREAMED or BUFFERED"),
        (3, 4, "request", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED or BUFFERED"),
        (4, 1, "response", "STREAMED", "FULL_DUPLEX_STREAMED, BUFFERED or NONE"),
        (4, 9, "response", "(unknown)", "FULL_DUPLEX_STREAMED, BUFFERED or NONE"),
    ] {
        let text = format!(
            "I 500 - inference error: Internal - {direction}_body_mode {mode} is not supported: set it to {allowed} \
             in the ext_proc filter's processing_mode"
        );
        vectors
            .push(Vector::new("R-24 mode", modes(request, response)).step(post(), [text]).ends(Outcome::InternalError));
    }
    vectors
}

fn vectors() -> Vec<Vector> {
    [request_vectors(), response_vectors(), mode_vectors()].into_iter().flatten().collect()
}

fn check_given(vector: &Vector, given: &Given) {
    if let Some(request) = &vector.request {
        assert!(given.request == request[..], "{}: the request body", vector.name);
    }
    if let Some(response) = &vector.response {
        assert!(given.response == response[..], "{}: the response body", vector.name);
    }
}

#[test]
fn the_machine_answers_every_vector() {
    for vector in vectors() {
        let mut bench = Bench::new(vector.pods, &Settings::default());
        let mut given = Given::default();
        for (index, (input, expected)) in vector.steps.iter().enumerate() {
            let replies = bench.feed(to_event(input, &vector.context, index == 0), &mut given);
            assert_eq!(&replies, expected, "{} step {index}", vector.name);
        }
        assert_eq!(bench.closed, vector.ends.then_some(Close::Ok), "{}", vector.name);
        bench.feed(pointsman::extproc::machine::Event::Dropped, &mut given);
        assert_eq!(bench.outcome, Some(vector.outcome), "{}", vector.name);
        check_given(&vector, &given);
    }
}

#[tokio::test]
async fn the_service_answers_every_vector() {
    for vector in vectors() {
        let lab = lab(vector.pods, Settings::default()).await;
        let mut call = lab.call().await;
        let mut given = Given::default();
        for (index, (input, expected)) in vector.steps.iter().enumerate() {
            match to_wire(input, &vector.context, index == 0) {
                Some(request) => call.send(request),
                None => call.half_close(),
            }
            for reply in expected {
                let response = call.next().await.unwrap_or_else(|error| panic!("{} {error}", vector.name));
                let response = response.unwrap_or_else(|| panic!("{} step {index}: the stream ended", vector.name));
                assert_eq!(&describe_wire(&response, &mut given), reply, "{} step {index}", vector.name);
            }
        }
        if vector.ends {
            assert!(call.next().await.expect(vector.name).is_none(), "{}: one answer too many", vector.name);
        }
        lab.opened(1).await;
        drop(call);
        lab.settled().await;
        let record = lab.record();
        assert_eq!(record.ends, [vector.outcome], "{}", vector.name);
        check_given(&vector, &given);
        if let (Some(response), true) = (&vector.response, vector.ends) {
            assert_eq!(record.response, response[..], "{}", vector.name);
        }
        assert!(record.decided <= 1 && record.response_ended <= 1, "{}", vector.name);
        let responded = vector.steps.iter().any(|(input, _)| matches!(input, In::Rh(..)));
        assert_eq!(record.served.as_deref(), vector.context.served.filter(|_| responded), "{}", vector.name);
    }
}
