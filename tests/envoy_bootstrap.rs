//! Every bootstrap that `sim::envoy` can render is one that the real Envoy accepts, and one of them
//! runs. Needs the binary that `scripts/get-envoy` installs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt as _;
use pointsman::sim::client;
use pointsman::sim::envoy::{self, Bootstrap, Envoy, EnvoyError};
use pointsman::sim::server::{self, SimConfig};

/// Never skipped: without an Envoy the test fails and says how to get one.
fn binary() -> PathBuf {
    let env: BTreeMap<String, String> = std::env::vars().collect();
    envoy::find_binary(&env).unwrap_or_else(|e| panic!("this test needs a real Envoy: {e}"))
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The bootstrap whose options are the bits of `bits`, of which there are seven.
fn combination(bits: u32) -> Bootstrap {
    let on = |bit: u32| bits & (1 << bit) != 0;
    let variant = if on(0) {
        Bootstrap::override_host(address(9002), vec![address(8000), "[::1]:8001".parse().unwrap()])
    } else {
        Bootstrap::original_dst(address(9002))
    };
    Bootstrap {
        epp_tls: on(1),
        failure_mode_allow: on(2),
        request_timeout: on(3).then_some(Duration::from_secs(1)),
        buffer_limit: on(4).then_some(65536),
        response_phase: on(5),
        buffered: on(6),
        // Envoy opens the file even to validate.
        access_log: on(3).then(|| "/dev/null".into()),
        ..variant
    }
}

async fn accepted(binary: &Path, bootstrap: &Bootstrap) {
    envoy::validate(binary, bootstrap).await.unwrap_or_else(|e| panic!("{bootstrap:?}: {e}"));
}

/// Sixteen rows in which every three options meet in all eight ways: the columns are vectors of four
/// bits with an odd number of ones, any three of which are independent (an orthogonal array of strength 3).
#[tokio::test]
async fn envoy_accepts_every_triple_of_options() {
    const COLUMNS: [u32; 7] = [1, 2, 4, 8, 7, 11, 13];
    let binary = binary();
    for row in 0u32..16 {
        let bits = (0..).zip(COLUMNS).map(|(option, column)| ((row & column).count_ones() & 1) << option).sum();
        accepted(&binary, &combination(bits)).await;
    }
}

#[tokio::test]
async fn envoy_says_what_it_refuses() {
    let binary = binary();
    let bootstrap = Bootstrap { health_interval: Duration::ZERO, ..Bootstrap::original_dst(address(9002)) };
    match envoy::validate(&binary, &bootstrap).await {
        Err(EnvoyError::Failed { log, .. }) => assert!(log.contains("Interval"), "{log}"),
        other => panic!("{other:?}"),
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Envoy::start(&binary, &bootstrap, 1, dir.path()).await.unwrap_err().to_string();
    assert!(error.contains("ended with"), "{error}");
}

/// Without a picker: fail-open lets a request pass to a pool member, and what Envoy tells about it is read back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_started_envoy_routes_counts_logs_and_goes() {
    let binary = binary();
    let sim = server::start(SimConfig { name: "one".to_owned(), ..SimConfig::default() }, None).await.unwrap();
    let nobody = tokio::net::TcpListener::bind(address(0)).await.unwrap();
    let epp = nobody.local_addr().unwrap();
    drop(nobody);
    let bootstrap = Bootstrap { failure_mode_allow: true, ..Bootstrap::override_host(epp, vec![sim.address]) };
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let envoy = Envoy::start(&binary, &bootstrap, 2, dir.path()).await.unwrap();
    // A second one at the same time gets ports of its own.
    let other = Envoy::start(&binary, &bootstrap, 1, other_dir.path()).await.unwrap();
    assert_ne!(envoy.address(), other.address());
    assert_ne!(envoy.admin(), other.admin());

    let (status, body) = client::post(envoy.address(), "/echo", "{}").await.unwrap();
    let echo: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status.as_u16(), &echo["endpoint"], &echo["body_bytes"]), (200, &"one".into(), &2.into()));
    // Trailers of the model server pass, too.
    let request = http::Request::post("/echo").header("te", "trailers").header("x-sim-trailers", "1");
    let request = request.body(String::new()).unwrap();
    let answer = client::send(other.address(), request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().map(|t| &t["x-sim-trailer"]), Some(&"one".parse().unwrap()));
    let stats = envoy.stats("ext_proc").await.unwrap();
    assert_eq!(stats["http.inference.ext_proc.streams_failed"], 1, "{stats:?}");
    assert_eq!(stats["http.inference.ext_proc.failure_mode_allowed"], 1, "{stats:?}");
    assert_eq!(other.stats("ext_proc").await.unwrap()["http.inference.ext_proc.streams_failed"], 1);
    let log = envoy.access_log(1, Duration::from_secs(20)).await;
    assert_eq!(log.len(), 1);
    assert!(log[0].starts_with("200 ") && log[0].contains(&format!("up={}", sim.address)), "{log:?}");

    let gone = (envoy.admin(), envoy.pid());
    drop((envoy, other));
    assert!(client::get(gone.0, "/ready").await.is_err());
    assert!(!std::path::Path::new(&format!("/proc/{}", gone.1)).exists());
}
