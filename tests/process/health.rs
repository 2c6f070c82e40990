//! gRPC health on its own port and on the ext_proc port, before and after SIGTERM.

use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::harness::{Folder, Picker, until};
use super::tls;

const FOLLOW_READINESS: [&str; 4] =
    ["readiness", "", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension"];

pub async fn check(channel: &Channel, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(channel.clone());
    client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status()
}

async fn names_have(channel: &Channel, readiness: ServingStatus) {
    for name in FOLLOW_READINESS {
        assert_eq!(check(channel, name).await, readiness, "{name:?}");
    }
    assert_eq!(check(channel, "liveness").await, ServingStatus::Serving);
    assert_eq!(check(channel, "made-up").await, ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn both_ports_tell_readiness_before_and_after_sigterm() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--drain-timeout=2s"]).await;
    let ports = [picker.health().await, tls::channel(picker.grpc).await.unwrap()];
    for port in &ports {
        names_have(port, ServingStatus::Serving).await;
    }
    assert_eq!(picker.get("/readyz").await.0, 200);
    picker.signal("TERM").await;
    until("readiness goes", async || check(&ports[0], "readiness").await == ServingStatus::NotServing).await;
    // Old connections and new ones, plaintext and TLS: the drain serves all of them.
    names_have(&ports[1], ServingStatus::NotServing).await;
    names_have(&ports[0], ServingStatus::NotServing).await;
    names_have(&tls::channel(picker.grpc).await.unwrap(), ServingStatus::NotServing).await;
    names_have(&picker.health().await, ServingStatus::NotServing).await;
    assert_eq!(picker.get("/readyz").await, (503, "draining\n".into()));
    assert_eq!(picker.get("/healthz").await.0, 200);
    assert_eq!(picker.ended().await.0.code(), Some(0));
}
