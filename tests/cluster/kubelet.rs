//! What a kubelet does with the rendered pod, without containers: files of the ConfigMap in a folder, ports that are free.

use std::net::SocketAddr;
use std::path::Path;

use pointsman::sim::client;
use pointsman::sim::envoy::Envoy;
use serde_json::Value;

use super::helm::text;

/// Writes the files of a ConfigMap's data into `folder`.
pub fn mount<'a>(data: impl IntoIterator<Item = (&'a String, &'a str)>, folder: &Path) {
    for (name, content) in data {
        std::fs::write(folder.join(name), content).unwrap();
    }
}

/// The container's arguments with the files in `folder` and ports of the system's choice. Nothing waits for the process at
/// its end.
pub fn arguments(rendered: &[&str], folder: &Path) -> Vec<String> {
    let at = format!("{}/", folder.display());
    let mut args: Vec<String> = rendered.iter().map(|a| a.replace("/config/", &at)).collect();
    for port in ["--grpc-port", "--grpc-health-port", "--metrics-port"] {
        let place = args.iter().position(|a| a == port).unwrap_or_else(|| panic!("no {port} in {args:?}"));
        "0".clone_into(&mut args[place + 1]);
    }
    args.push("--drain-timeout=0s".to_owned());
    args
}

/// The sidecar's bootstrap with ports of the system's choice and the picker at this address.
pub fn bootstrap(rendered: &str, picker: SocketAddr, namespace: &str) -> String {
    let mut config = rendered.to_owned();
    let mut replacements = vec![
        ("port_value: 8081".to_owned(), "port_value: 0".to_owned()),
        ("port_value: 19001".to_owned(), "port_value: 0".to_owned()),
        ("port_value: 19000".to_owned(), "port_value: 0".to_owned()),
        ("port_value: 9002".to_owned(), format!("port_value: {}", picker.port())),
    ];
    let service = format!("{}-epp-endpoints.{namespace}.svc.cluster.local", super::helm::RELEASE);
    if rendered.contains(&service) {
        // The fall-back is a name of the cluster's DNS, which nobody serves here.
        replacements.push((service, "localhost".to_owned()));
    }
    for (from, to) in replacements {
        assert!(config.contains(&from), "no {from:?} in\n{rendered}");
        config = config.replace(&from, &to);
    }
    config
}

/// Where clients connect to the sidecar, which has a second listener for its statistics.
pub async fn inference(envoy: &Envoy) -> SocketAddr {
    let (_, listeners) = client::get(envoy.admin(), "/listeners?format=json").await.unwrap();
    let listeners: Value = serde_json::from_slice(&listeners).unwrap();
    let listeners = listeners["listener_statuses"].as_array().unwrap();
    let found = listeners.iter().find(|l| text(&l["name"]) == "inference").unwrap();
    let port = found["local_address"]["socket_address"]["port_value"].as_u64().unwrap();
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
}
