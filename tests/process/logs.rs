//! Log lines.

use serde_json::Value;

use super::client::Call;
use super::harness::{Folder, Picker};

async fn one_request(picker: &Picker) {
    let mut call = Call::open(&picker.plain().await).await.unwrap();
    call.request(&[("x-request-id", "7f3a")], r#"{"model":"m","prompt":"p"}"#).await.unwrap();
    let answer = br#"{"usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
    assert_eq!(call.response("200", "application/json", &[answer]).await, answer);
    call.finish().await;
}

const QUICK: [&str; 2] = ["--secure-serving=false", "--drain-timeout=0s"];

#[tokio::test]
async fn lines_are_json_and_each_request_has_one() {
    let folder = Folder::usual();
    // The loudest level, so that library events are formatted as well.
    let picker = Picker::start(&folder, &[&QUICK[..], &["-v", "5"]].concat()).await;
    one_request(&picker).await;
    let lines = picker.stop().await;
    let mut requests = 0;
    for line in &lines {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for key in ["level", "ts", "caller", "msg"] {
            assert!(value[key].as_str().is_some_and(|v| !v.is_empty()), "no {key} in {line}");
        }
        if value["msg"] == "request" {
            requests += 1;
            assert_eq!(value["x-request-id"], "7f3a", "{line}");
            assert_eq!((value["outcome"].as_str(), value["status"].as_u64()), (Some("completed"), Some(200)), "{line}");
            assert_eq!(
                (value["promptTokens"].as_u64(), value["completionTokens"].as_u64()),
                (Some(7), Some(2)),
                "{line}"
            );
            assert!(value["endpoint"].as_str().is_some_and(|e| e.starts_with("192.0.2.")), "{line}");
        }
    }
    assert_eq!(requests, 1, "{}", lines.join("\n"));
    assert!(lines.iter().any(|l| l.contains(r#""level":"debug""#)), "-v 5 shows debugging");
}

#[tokio::test]
async fn verbosity_decides_what_is_shown() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &QUICK).await;
    one_request(&picker).await;
    let lines = picker.stop().await;
    assert!(!lines.iter().any(|l| l.contains(r#""level":"debug""#)), "{}", lines.join("\n"));
    assert!(lines.iter().any(|l| l.contains("stopping: not ready any more")));

    let picker = Picker::start(&folder, &[&QUICK[..], &["--access-log=false"]].concat()).await;
    one_request(&picker).await;
    assert!(!picker.stop().await.iter().any(|l| l.contains("7f3a")));
}

#[tokio::test]
async fn the_console_encoder_writes_text() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &[&QUICK[..], &["--zap-encoder", "console"]].concat()).await;
    one_request(&picker).await;
    let lines = picker.stop().await;
    assert!(lines.iter().all(|l| !l.starts_with('{') && l.contains('\t')), "{}", lines.join("\n"));
    let line = lines.iter().find(|l| l.contains("7f3a")).expect("an access-log line");
    assert!(line.contains("\trequest\t") && line.contains("completed"), "{line}");
}
