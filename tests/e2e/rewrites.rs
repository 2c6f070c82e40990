//! Model rewrites by header: the server sees the target, the client its own name.

use pointsman::domain::Outcome;
use pointsman::sim::server::{self, SimConfig};
use serde_json::{Value, json};

use crate::stack::{Stack, both, quick};

const TARGET: &str = "base-model/with \"quotes\" and ü";
const ASKED: &str = "the-name-of-the-client";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_sees_the_target_and_the_client_its_own_name() {
    // Strict: a request for any other model is refused, so every answer proves what the server saw.
    let config = SimConfig { model: TARGET.into(), strict_model: true, ..quick("one") };
    let server = server::start(config, None).await.unwrap();
    for setup in both([&server]) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup).await;
        let ask =
            |stream: bool| json!({"model": ASKED, "prompt": "Hello", "max_tokens": 6, "stream": stream}).to_string();
        let plain = stack.post("/v1/completions", &[], ask(false)).await;
        assert_eq!((plain.status, plain.endpoint()), (404, "one"), "{variant:?}: the server is strict");

        for name in ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"] {
            let headers = [(name, TARGET)];
            let answer = stack.post("/v1/completions", &headers, ask(false)).await;
            assert_eq!(answer.status, 200, "{variant:?} {name} {answer:?}");
            assert_eq!(answer.json()["model"], ASKED, "{variant:?} {name}");
            assert!(!answer.text().contains("base-model"), "{answer:?}");

            let answer = stack.post("/v1/completions", &headers, ask(true)).await;
            let text = answer.text();
            let events: Vec<&str> = text.split("\n\n").filter(|e| !e.is_empty()).collect();
            let (last, events) = events.split_last().unwrap();
            assert_eq!(*last, "data: [DONE]");
            assert!(events.len() >= 6, "{text}");
            for event in events {
                let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
                assert_eq!(event["model"], ASKED, "{variant:?} {name}");
            }
        }
        // Only the name changes: blanks, order, numbers and unknown members of the body stay.
        let odd = format!("{{ \"z\": 1.50e3,\n \"model\" :\t\"{ASKED}\", \"prompt\":\"x\", \"a\":[1,2 ] }} ");
        let answer =
            stack.post("/v1/completions", &[("x-sim-echo", "1"), ("x-llm-d-model-name-rewrite", TARGET)], odd.clone());
        let answer = answer.await;
        let expected = odd.replace(&format!("\"{ASKED}\""), &Value::from(TARGET).to_string());
        let hash = format!("{:016x}", twox_hash::XxHash64::oneshot(0, expected.as_bytes()));
        assert_eq!(
            (&answer.json()["body_bytes"], &answer.json()["body_xxh64"]),
            (&expected.len().into(), &hash.into())
        );
        assert_eq!(answer.echoed("x-llm-d-model-name-rewrite"), Vec::<String>::new(), "R-16");
        // The current name of the header beats the older one.
        let headers = [("x-gateway-model-name-rewrite", "no-such-model"), ("x-llm-d-model-name-rewrite", TARGET)];
        assert_eq!(stack.post("/v1/completions", &headers, ask(false)).await.status, 200);

        stack.settled(&[(Outcome::Completed, 6), (Outcome::UpstreamError, 1)]).await;
        let page = stack.metrics().await;
        let labels = [("model_name", ASKED), ("target_model", TARGET)];
        assert_eq!(page.sum("llm_d_epp_model_rewrite_decisions_total", &labels), 6.0);
        stack.finish(&[(Outcome::Completed, 6), (Outcome::UpstreamError, 1)]).await;
    }
}
