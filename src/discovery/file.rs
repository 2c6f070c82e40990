//! `file-discovery`: endpoints from a YAML file, for running without a cluster.
//!
//! ```yaml
//! endpoints:
//! - name: server-a          # unique with its namespace
//!   namespace: default      # optional
//!   address: 10.0.0.7       # IPv4 or IPv6, with or without brackets
//!   port: 8000
//!   labels: {llm-d.ai/role: decode}
//! ```
//!
//! With `watchFile: true` a change of the file is picked up without a restart. A file that cannot be
//! used (unreadable, broken, two endpoints with one name or one address) changes nothing: the last good
//! set stays, and the log says why. An explicit `endpoints: []` is a valid, empty pool; a file with
//! nothing in it is not, because that is what a half-written file looks like.
//!
//! Unlike the picker we replace, IPv6 addresses are accepted.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::domain::EndpointSpec;
use crate::domain::node::{Node, Position, Problems, Value};
use crate::params;
use crate::pool::MAX_ENDPOINTS;
use crate::scheduling::params::{Anything, Fields, Param, Params};
use crate::scheduling::plugin::{About, Stability};

/// Largest endpoints file, bytes.
pub const MAX_FILE: u64 = 1 << 20;

params! {
    /// Parameters of `file-discovery`.
    pub struct FileDiscovery {
        /// Path of the endpoints file. Required.
        path: String = String::new(), "path";
        /// Whether changes of the file are followed while running.
        watch_file: bool = false, "watchFile";
    }
}

/// The row of `file-discovery` in the table of discovery sources.
pub const ABOUT: About = About {
    kind: "file-discovery",
    aliases: &[],
    stability: Stability::Beta,
    summary: "Reads endpoints from a YAML file; no Kubernetes needed.",
    params: FileDiscovery::SPEC,
    sample: "- type: file-discovery\n  parameters:\n    path: config/endpoints.yaml\n    watchFile: true\n",
};

/// Checks the parameters of a `file-discovery` entry.
pub fn check(node: Option<&Node>, path: &str, problems: &mut Problems) {
    let params = FileDiscovery::decode_fields(node, path, problems);
    if params.path.is_empty() && node.and_then(|n| n.get("path")).is_none_or(|n| n.as_str() == Some("")) {
        let at = node.map(|n| n.at).unwrap_or_default();
        problems.error(at, format!("{path}.path"), "missing", "name the endpoints file: `path: endpoints.yaml`");
    }
}

/// A port as a number or as text that holds one.
#[derive(Clone, Copy, Debug)]
struct Port(u16);

impl Param for Port {
    const TYPE: &'static str = "port (1 to 65535)";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        let port = match &node.value {
            Value::Integer(i) => u16::try_from(*i).ok(),
            Value::String(s) => s.parse().ok(),
            _ => None,
        };
        match port {
            Some(port) if port > 0 => Some(Port(port)),
            _ => {
                problems.error(
                    node.at,
                    path,
                    format!("{} is not a port", node.describe()),
                    "write a number from 1 to 65535",
                );
                None
            }
        }
    }
}

/// Decodes an endpoints file. On any error the result must not be used.
pub fn decode(document: &Node, problems: &mut Problems) -> Vec<EndpointSpec> {
    if document.value == Value::Null {
        problems.error(
            document.at,
            "endpoints",
            "the file is empty",
            "write `endpoints: []` for a pool without endpoints",
        );
        return Vec::new();
    }
    let mut fields = Fields::open(Some(document), "", problems);
    let list = fields.take("endpoints");
    fields.finish(problems);
    let entries: &[Node] = match list.map(|n| (&n.value, n)) {
        Some((Value::Sequence(entries), _)) => entries,
        None => {
            problems.error(document.at, "endpoints", "missing", "write `endpoints:` with a list of endpoints");
            return Vec::new();
        }
        Some((_, n)) => {
            problems.error(
                n.at,
                "endpoints",
                format!("expected a list, found {}", n.describe()),
                "write `- name: …` entries",
            );
            return Vec::new();
        }
    };
    if entries.len() > MAX_ENDPOINTS {
        let message = format!("{} endpoints are more than a pool can hold ({MAX_ENDPOINTS})", entries.len());
        problems.error(document.at, "endpoints", message, "split the pool");
        return Vec::new();
    }
    let mut names: HashMap<(String, String), Position> = HashMap::new();
    let mut addresses: HashMap<SocketAddr, Position> = HashMap::new();
    let mut specs = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let path = format!("endpoints[{i}]");
        let Some(spec) = endpoint(entry, &path, problems) else { continue };
        let key = (spec.namespace.clone(), spec.name.clone());
        if let Some(first) = names.insert(key, entry.at) {
            let message = format!("`{}/{}` is already defined on line {}", spec.namespace, spec.name, first.line);
            problems.error(entry.at, format!("{path}.name"), message, "give each endpoint a name of its own");
        }
        if let Some(first) = addresses.insert(spec.address, entry.at) {
            let message = format!("{} is already listed on line {}", spec.address, first.line);
            problems.error(entry.at, format!("{path}.address"), message, "list each address and port once");
        }
        specs.push(spec);
    }
    specs
}

fn endpoint(entry: &Node, path: &str, problems: &mut Problems) -> Option<EndpointSpec> {
    let mut fields = Fields::open(Some(entry), path, problems);
    let name: Option<String> = fields.optional("name", problems);
    let namespace = fields.ruled("namespace", "default".to_owned(), &Anything, problems);
    let address: Option<String> = fields.optional("address", problems);
    let port: Option<Port> = fields.optional("port", problems);
    let labels: BTreeMap<String, String> = fields.ruled("labels", BTreeMap::new(), &Anything, problems);
    let missing = |key: &str, problems: &mut Problems| {
        if entry.get(key).is_none_or(|n| n.value == Value::Null) {
            problems.error(entry.at, format!("{path}.{key}"), "missing", format!("add `{key}: …`"));
        }
    };
    fields.finish(problems);
    for (key, given) in [("name", name.is_some()), ("address", address.is_some()), ("port", port.is_some())] {
        if !given {
            missing(key, problems);
        }
    }
    let (name, address, port) = (name?, address?, port?);
    if name.is_empty() {
        problems.error(entry.at, format!("{path}.name"), "empty", "give the endpoint a name");
        return None;
    }
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(&address);
    let Ok(ip) = bare.parse::<IpAddr>() else {
        let at = entry.get("address").map_or(entry.at, |n| n.at);
        let message = format!("`{address}` is not an IP address");
        problems.error(
            at,
            format!("{path}.address"),
            message,
            "write an IPv4 or IPv6 address; host names are not resolved",
        );
        return None;
    };
    // `::ffff:10.0.0.7` is 10.0.0.7; subset hints are read the same way.
    let ip = ip.to_canonical();
    if ip.is_unspecified() {
        let at = entry.get("address").map_or(entry.at, |n| n.at);
        problems.error(
            at,
            format!("{path}.address"),
            format!("`{address}` is no destination"),
            "write the server's address",
        );
        return None;
    }
    Some(EndpointSpec { name, namespace, address: SocketAddr::new(ip, port.0), rank: 0, incarnation: 0, labels })
}

#[cfg(test)]
mod tests;
