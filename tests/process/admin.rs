//! The metrics port, friendly and hostile.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{Folder, PATIENCE, Picker};

/// Writes, then reads to the end of the connection, which must come.
async fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other side may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    // A reset after an answer loses nothing that matters here.
    let _ = read;
    answer
}

fn status(answer: &[u8]) -> Option<u16> {
    String::from_utf8_lossy(answer).strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

#[tokio::test]
async fn every_page_answers() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--drain-timeout=0s", "--debug-decisions=10"]).await;
    let (code, metrics) = picker.get("/metrics").await;
    assert!(code == 200 && metrics.contains("# TYPE llm_d_epp_info gauge"), "{code} {metrics}");
    assert_eq!(picker.get("/healthz").await, (200, "ok\n".into()));
    assert_eq!(picker.get("/readyz").await, (200, "ok\n".into()));
    let (code, plugins) = picker.get("/debug/plugins/state").await;
    assert_eq!(code, 200);
    let plugins: serde_json::Value = serde_json::from_str(&plugins).unwrap();
    assert_eq!(plugins["approx-prefix-cache-producer"]["blockTokens"], 16, "{plugins}");
    let (code, config) = picker.get("/debug/config").await;
    assert!(code == 200 && config.contains("kind: EndpointPickerConfig"), "{config}");
    let (code, decisions) = picker.get("/debug/decisions").await;
    assert!(code == 200 && decisions.contains("\"decisions\":[]"), "{decisions}");
    let (code, wrong) = picker.get("/debug/decisions?limit=many").await;
    assert_eq!((code, wrong.as_str()), (400, "limit=many: a number is expected\n"));
    let url = format!("http://{}", picker.metrics);
    let mut explain = tokio::process::Command::new(env!("CARGO_BIN_EXE_pointsman"));
    let explained = explain.args(["explain", "--url", &url]).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&explained.stderr), "error: there is no decision yet\n");
    assert!(!explained.status.success());
    assert_eq!(picker.get("/nothing").await.0, 404);
    picker.stop().await;
}

#[tokio::test]
async fn hostile_peers_do_no_harm() {
    let folder = Folder::usual();
    let mut picker = Picker::start(&folder, &["--drain-timeout=0s"]).await;
    let at = picker.metrics;

    // Slow ones first: they stay open, byte by byte, while everything else happens.
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nx-slow: ").await.unwrap();
        slow.push(stream);
    }
    let huge = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-many: 1\r\n".repeat(5_000));
    let garbage: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (what, bytes, allowed) in [
        ("garbage", garbage.as_slice(), &[None, Some(400)][..]),
        ("a huge header", huge.as_bytes(), &[None, Some(400), Some(431)]),
        ("many headers", many.as_bytes(), &[None, Some(400), Some(431)]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[None, Some(400), Some(404), Some(405), Some(505)]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[None, Some(400)]),
        ("a body", b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", &[Some(413)]),
        ("a method", b"DELETE /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", &[Some(405)]),
        ("a path", b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", &[Some(404)]),
    ] {
        let answer = say(at, bytes).await;
        assert!(allowed.contains(&status(&answer)), "{what}: {}", String::from_utf8_lossy(&answer));
        for stream in &mut slow {
            let _ = stream.write_all(b"a").await;
        }
    }
    assert_eq!(picker.get("/healthz").await.0, 200);
    // Beyond the limit of connections the newest are closed, the process goes on.
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(TcpStream::connect(at).await.unwrap());
    }
    drop((crowd, slow));
    super::harness::until("the port answers again", async || {
        pointsman::sim::client::get(at, "/metrics").await.is_ok_and(|(status, _)| status == 200)
    })
    .await;
    assert!(picker.runs().await);
    let lines = picker.stop().await;
    assert!(!lines.iter().any(|l| l.contains("panic")), "{}", lines.join("\n"));
}
