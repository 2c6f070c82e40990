//! Bad input over HTTP: each gets its own answer, and nobody else notices.

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{Full, StreamBody};
use pointsman::domain::Outcome;

use crate::stack::{self, Setup, Stack, Traffic, completion, sims};

const PLUGINS: &str = "- type: approx-prefix-cache-producer\n  parameters: {autoTune: false, blockSizeTokens: 16}\n\
                       - type: prefix-cache-scorer\n- type: active-request-scorer\n";
const PROFILE: &str = "- pluginRef: prefix-cache-scorer\n- pluginRef: active-request-scorer\n";
const ECHO: (&str, &str) = ("x-sim-echo", "1");
const LIMIT: usize = 300_000;

/// What is sent where, and what it should get.
fn cases() -> Vec<(&'static str, &'static str, Vec<u8>, u16)> {
    const COMPLETIONS: &str = "/v1/completions";
    const CHAT: &str = "/v1/chat/completions";
    let whole = completion("Hello, how are you?");
    let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
    let with = |prompt: &str| format!("{{\"model\":\"m\",\"prompt\":{prompt}}}").into_bytes();
    let mut cases = vec![
        ("malformed", COMPLETIONS, b"no healthy upstream".to_vec(), 400),
        ("truncated", COMPLETIONS, whole.as_bytes()[..whole.len() - 5].to_vec(), 400),
        ("garbage behind it", COMPLETIONS, format!("{whole}{{}}").into_bytes(), 400),
        ("open brackets", COMPLETIONS, vec![b'['; 100_000], 400),
        (
            "open brackets in a prompt",
            COMPLETIONS,
            [&b"{\"model\":\"m\",\"prompt\":"[..], &vec![b'['; 100_000]].concat(),
            400,
        ),
        ("open objects", COMPLETIONS, "{\"a\":".repeat(50_000).into_bytes(), 400),
        ("a deep prompt", COMPLETIONS, with(&nested(100_000)), 400),
        (
            "deep and not read",
            COMPLETIONS,
            format!("{{\"x\":{},\"model\":\"m\",\"prompt\":\"p\"}}", nested(100_000)).into_bytes(),
            200,
        ),
        ("no UTF-8", COMPLETIONS, b"{\"model\":\"m\",\"prompt\":\"\xff\xfe\"}".to_vec(), 400),
        ("a surrogate alone", COMPLETIONS, with("\"\\ud800\""), 200),
        ("the model twice", COMPLETIONS, b"{\"model\":\"a\",\"prompt\":\"x\",\"model\":\"b\"}".to_vec(), 200),
        ("a model that is a number", COMPLETIONS, b"{\"model\":5,\"prompt\":\"x\"}".to_vec(), 400),
        ("a model that is a list", COMPLETIONS, b"{\"model\":[\"m\"],\"prompt\":\"x\"}".to_vec(), 400),
        ("a prompt that is a number", COMPLETIONS, with("5"), 400),
        ("a prompt that is an object", COMPLETIONS, with("{}"), 400),
        ("messages that are a text", CHAT, b"{\"model\":\"m\",\"messages\":\"hello\"}".to_vec(), 400),
        ("a chat of nothing", CHAT, b"{\"model\":\"m\",\"messages\":[]}".to_vec(), 200),
        ("no model", COMPLETIONS, b"{\"prompt\":\"hello world\"}".to_vec(), 400),
        ("an empty model", COMPLETIONS, b"{\"model\":\"\",\"prompt\":\"x\"}".to_vec(), 400),
        ("white space", COMPLETIONS, b" \n".to_vec(), 400),
        ("an unknown path", "/any/path", b"\x00\xff[[[".to_vec(), 200),
        ("an odd path", "/v1/completions/?a=%ff&b=../..", whole.clone().into_bytes(), 200),
        ("just too large", COMPLETIONS, completion(&"x".repeat(LIMIT + 1 - completion("").len())).into_bytes(), 413),
        ("just not too large", COMPLETIONS, completion(&"x".repeat(LIMIT - completion("").len())).into_bytes(), 200),
        ("too large elsewhere", "/any/path", vec![b'x'; LIMIT + 1], 413),
    ];
    for json in ["null", "5", "\"text\"", "[]", "true"] {
        cases.push(("no object", COMPLETIONS, json.as_bytes().to_vec(), 400));
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_bodies_get_the_right_status_and_disturb_nobody() {
    let servers = sims(&["one", "two"]).await;
    let mut setup = Setup::a(&servers).scheduling(PLUGINS, PROFILE);
    setup.settings.limits.request_body = LIMIT as u64;
    let stack = Stack::start(setup).await;
    let traffic = Traffic::start(&stack, 2);
    let (mut passed, mut refused) = (0, 0);
    let cases = cases();
    for (what, path, body, status) in &cases {
        let answer = stack.post(path, &[ECHO], body.clone()).await;
        assert_eq!(answer.status, *status, "{what}: {answer:?}");
        match status {
            200 => {
                passed += 1;
                let hash = format!("{:016x}", twox_hash::XxHash64::oneshot(0, body));
                assert_eq!(answer.json()["body_xxh64"], hash.as_str(), "{what}");
            }
            _ => {
                refused += 1;
                assert_eq!(answer.endpoint(), "", "{what}: {answer:?}");
                assert!(answer.text().starts_with("inference error: "), "{what}: {answer:?}");
                assert!(answer.body.len() < 1000, "{what}: an answer does not repeat the request");
                let reason = answer.header("x-llm-d-request-dropped-reason");
                assert_eq!(reason, "", "{what}: only overload and lack of endpoints are drops");
            }
        }
    }
    let no_model = stack.post("/v1/completions", &[], "{\"prompt\":\"hello world\"}").await;
    assert_eq!(no_model.text(), "inference error: BadRequest - model not found in request body");
    // A chunked body may turn out to be empty.
    let nothing = StreamBody::new(futures_util::stream::empty::<Result<http_body::Frame<Bytes>, std::io::Error>>());
    let answer = stack.send(Request::post("/v1/completions").body(nothing).unwrap()).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text().starts_with("inference error: BadRequest - "), "{answer:?}");
    refused += 2;

    // How much of it fits beside the cases is the machine's affair; that it goes on is not.
    traffic.reach(cases.len() as u64).await;
    let others = traffic.stop().await;
    assert!(others.keys().all(|(status, _)| *status == 200), "{others:?}");
    let sent: u64 = others.values().sum();
    stack.finish(&[(Outcome::Completed, sent + passed), (Outcome::Rejected, refused)]).await;
}

/// The default limit, with a body that is one byte larger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_and_one_byte_are_too_large() {
    let servers = sims(&["one"]).await;
    let stack = Stack::start(Setup::a(&servers)).await;
    let answer = stack.post("/any/path", &[], vec![b'x'; (64 << 20) + 1]).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().starts_with("inference error: "), "{answer:?}");
    assert_eq!(stack.post("/v1/completions", &[], completion("Hello")).await.status, 200);
    let errors = stack.metrics().await.sum("llm_d_epp_request_error_total", &[("error_code", "PayloadTooLarge")]);
    assert_eq!(errors, 1.0, "what the edge refuses is counted, too");
    stack.finish(&[(Outcome::Completed, 1), (Outcome::Rejected, 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_headers_are_carried_or_ignored() {
    let servers = sims(&["one"]).await;
    let stack = Stack::start(Setup::b(&servers).scheduling(PLUGINS, PROFILE)).await;
    let post = |change: &dyn Fn(&mut http::HeaderMap)| {
        let mut request = stack::post("/v1/completions", &[ECHO], completion("Hello"));
        change(request.headers_mut());
        request
    };
    let binary = || HeaderValue::from_bytes(b"caf\xe9 \x80\xff").unwrap();
    let long = |n: usize| HeaderValue::try_from("x".repeat(n)).unwrap();

    // An id that is no text or too long to keep is replaced; others travel.
    for id in [binary(), long(20_000)] {
        let answer = stack.send(post(&|headers| drop(headers.insert("x-request-id", id.clone())))).await;
        let ids = answer.echoed("x-request-id");
        assert!(answer.status == 200 && ids.len() == 1 && uuid::Uuid::parse_str(&ids[0]).is_ok(), "{answer:?}");
    }
    // Control headers that make no sense are as good as absent.
    let names = [
        "x-llm-d-inference-objective",
        "x-llm-d-inference-fairness-id",
        "x-llm-d-model-name-rewrite",
        "x-llm-d-slo-ttft-ms",
        "x-session-id",
        "x-session-token",
        "prefer",
    ];
    for value in [binary(), long(30_000), HeaderValue::from_static("")] {
        let odd = |headers: &mut http::HeaderMap| {
            for name in names {
                headers.remove(name);
            }
            // Two of them at most: Envoy takes 60 KiB of headers.
            headers.insert(names[2], value.clone());
        };
        let answer = stack.send(post(&odd)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["body_bytes"], completion("Hello").len(), "nothing was rewritten");
        if value.len() < 100 {
            let all = |headers: &mut http::HeaderMap| {
                for name in names {
                    headers.insert(name, value.clone());
                }
            };
            assert_eq!(stack.send(post(&all)).await.status, 200);
        }
    }
    // Many, and a long one that travels with all its bytes.
    let many = |headers: &mut http::HeaderMap| {
        for i in 0..80 {
            headers.insert(http::HeaderName::try_from(format!("x-many-{i}")).unwrap(), HeaderValue::from(i));
        }
        headers.insert("x-long", long(20_000));
        headers.append("x-twice", HeaderValue::from_static("first"));
        headers.append("x-twice", HeaderValue::from_static("second"));
    };
    let answer = stack.send(post(&many)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.echoed("x-many-79"), ["79"]);
    assert_eq!(answer.echoed("x-long")[0].len(), 20_000);
    assert_eq!(answer.echoed("x-twice").join(","), "first,second");
    let request =
        Request::post("/v1/completions").header("content-type", binary()).body(Full::new(completion("x").into()));
    assert_eq!(stack.send::<Full<Bytes>>(request.unwrap()).await.status, 200);
    stack.finish(&[(Outcome::Completed, 9)]).await;
}
