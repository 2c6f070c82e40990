//! The ways in which a proxy may be connected: TLS or plain, whole bodies, without the response phase.

use pointsman::domain::Outcome;

use crate::stack::{Answer, MODEL, Stack, both, completion, sims};

const ECHO: (&str, &str) = ("x-sim-echo", "1");
const REWRITE: (&str, &str) = ("x-llm-d-model-name-rewrite", "a-longer-name-of-a-model");

/// Every other test uses TLS with the certificate that the picker makes for itself; this one does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picker_serves_plaintext_too() {
    let servers = sims(&["one"]).await;
    for mut setup in both(&servers) {
        setup.settings.tls.enabled = false;
        let stack = Stack::start(setup).await;
        assert_eq!(stack.post("/v1/completions", &[], completion("Hello")).await.endpoint(), "one");
        assert_eq!(stack.get("/v1/models", &[]).await.endpoint(), "one");
        // Health on the port of ext_proc follows readiness: Envoy's checks have passed.
        let stats = stack.envoy.stats("cluster.epp.health_check").await.unwrap();
        assert!(stats["cluster.epp.health_check.success"] > 0 && stats["cluster.epp.health_check.failure"] == 0);
        stack.finish(&[(Outcome::Completed, 2)]).await;
    }
}

/// R-24, vector 9.22: BUFFERED bodies, where the length that the server is told must be right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffered_bodies_are_routed_and_rewritten() {
    let servers = sims(&["one"]).await;
    for mut setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        setup.bootstrap.buffered = true;
        let stack = Stack::start(setup).await;
        let body = completion(&"Hello ".repeat(20_000));
        let intact = |answer: &Answer, body: &str| {
            assert_eq!(answer.status, 200, "{variant:?} {answer:?}");
            assert_eq!(answer.echoed("content-length"), [body.len().to_string()], "{variant:?}");
            let hash = format!("{:016x}", twox_hash::XxHash64::oneshot(0, body.as_bytes()));
            assert_eq!(answer.json()["body_xxh64"], hash.as_str(), "{variant:?}");
        };
        intact(&stack.post("/v1/completions", &[ECHO], body.clone()).await, &body);
        let rewritten = body.replace(MODEL, REWRITE.1);
        intact(&stack.post("/v1/completions", &[ECHO, REWRITE], body).await, &rewritten);

        let answer = stack.get("/v1/models", &[ECHO]).await;
        assert_eq!((answer.status, answer.echoed("content-length")), (200, vec![]), "{variant:?}");
        let answer = stack.post("/v1/completions", &[], completion("Hello")).await;
        assert_eq!(answer.json()["model"], MODEL, "{variant:?}");
        assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "{variant:?}");
        let stream = serde_json::json!({"model": MODEL, "prompt": "Hello", "max_tokens": 5, "stream": true});
        let answer = stack.post("/v1/completions", &[], stream.to_string()).await;
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{variant:?} {answer:?}");
        let refused = stack.post("/v1/completions", &[], "{}").await;
        assert_eq!((refused.status, refused.endpoint()), (400, ""), "{variant:?}");
        assert_eq!(refused.text(), "inference error: BadRequest - model not found in request body");
        stack.finish(&[(Outcome::Completed, 5), (Outcome::Rejected, 1)]).await;
    }
}

/// A proxy that shows the picker requests only: what was reserved is given back all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_response_phase_nothing_stays_reserved() {
    let servers = sims(&["one", "two"]).await;
    for mut setup in both(&servers) {
        setup.bootstrap.response_phase = false;
        let stack = Stack::start(setup).await;
        for _ in 0..10 {
            let answer = stack.post("/v1/completions", &[REWRITE], completion("Hello")).await;
            assert_eq!(answer.status, 200);
            // Nobody can put the client's model name back.
            assert_eq!(answer.json()["model"], REWRITE.1);
            assert_eq!(stack.get("/v1/models", &[]).await.status, 200);
        }
        assert_eq!(stack.post("/v1/completions", &[], "{}").await.status, 400);
        stack.finish(&[(Outcome::RoutedOnly, 20), (Outcome::Rejected, 1)]).await;
    }
}
