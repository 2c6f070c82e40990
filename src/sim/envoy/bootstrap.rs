//! The two Envoy bootstraps (spec/protocol.md section 7) as templates and what may vary in them.
//!
//! The templates are the YAML files of `config/envoy/`, so that a reader finds a whole, commented
//! Envoy configuration there and not one pieced together in code. A placeholder is a quoted scalar
//! (`"${LISTEN_PORT}"`) and a condition is a pair of comments, which keeps a template valid YAML.
//! A template engine was rejected: two rules do not need one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const ORIGINAL_DST: &str = include_str!("../../../config/envoy/original-dst.yaml");
const OVERRIDE_HOST: &str = include_str!("../../../config/envoy/override-host.yaml");

/// How Envoy learns the endpoint the picker chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A: an ORIGINAL_DST cluster dials what the destination header says (section 7.1).
    OriginalDst,
    /// B: Envoy knows the pool; the list in the dynamic metadata overrides its choice (section 7.2).
    OverrideHost,
}

/// Everything that may vary in an Envoy in front of a picker.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Which template.
    pub variant: Variant,
    /// Port on 127.0.0.1 that clients use. 0, the default, lets the system choose: Envoy binds with
    /// SO_REUSEPORT, so two Envoys on one port share its traffic without an error.
    pub listen_port: u16,
    /// Admin port on 127.0.0.1; 0, the default, lets the system choose.
    pub admin_port: u16,
    /// Where the picker serves ext_proc.
    pub epp: SocketAddr,
    /// More pickers of the same pool, balanced with the first by their health. None by default.
    pub replicas: Vec<SocketAddr>,
    /// TLS to the picker, any certificate accepted. Default off.
    pub epp_tls: bool,
    /// What happens without a picker: true lets the request pass (FailOpen; useful with variant B
    /// only), false answers 5xx (FailClose). Default false.
    pub failure_mode_allow: bool,
    /// Members of the pool; variant B needs at least one, variant A ignores them.
    pub endpoints: Vec<SocketAddr>,
    /// How long a client may take to send its request; none by default.
    pub request_timeout: Option<Duration>,
    /// Envoy's buffer per connection in bytes, both sides; Envoy's own default (1 MiB) if absent.
    pub buffer_limit: Option<u32>,
    /// False: the picker sees the request only. Default true.
    pub response_phase: bool,
    /// Whether the header `x-test-subset` narrows the pool: for tests, never where others may call.
    pub subset_header: bool,
    /// Bodies in BUFFERED instead of FULL_DUPLEX_STREAMED mode. Default false.
    pub buffered: bool,
    /// How long Envoy waits for an answer of the picker in the modes that are not full duplex.
    /// Default 1000 s, so that a slow test machine does not decide a test.
    pub message_timeout: Duration,
    /// Pause between health checks of the picker. Default 250 ms; Envoy wants at least 1 ms.
    pub health_interval: Duration,
    /// File for the access log; [`super::Envoy::start`] sets it if absent.
    pub access_log: Option<PathBuf>,
}

impl Bootstrap {
    /// Variant A in front of the picker at `epp`.
    pub fn original_dst(epp: SocketAddr) -> Self {
        Self {
            variant: Variant::OriginalDst,
            listen_port: 0,
            admin_port: 0,
            epp,
            replicas: Vec::new(),
            epp_tls: false,
            failure_mode_allow: false,
            endpoints: Vec::new(),
            request_timeout: None,
            buffer_limit: None,
            response_phase: true,
            subset_header: true,
            buffered: false,
            message_timeout: Duration::from_secs(1000),
            health_interval: Duration::from_millis(250),
            access_log: None,
        }
    }

    /// Variant B in front of the picker at `epp`, with these pool members.
    pub fn override_host(epp: SocketAddr, endpoints: Vec<SocketAddr>) -> Self {
        Self { variant: Variant::OverrideHost, endpoints, ..Self::original_dst(epp) }
    }

    /// The bootstrap as YAML.
    ///
    /// # Errors
    /// Variant B without an endpoint, which Envoy would accept and answer 503 to everything.
    pub fn render(&self) -> Result<String, BootstrapError> {
        let template = match self.variant {
            Variant::OriginalDst => ORIGINAL_DST,
            Variant::OverrideHost if self.endpoints.is_empty() => return Err(BootstrapError::NoEndpoints),
            Variant::OverrideHost => OVERRIDE_HOST,
        };
        let options = [
            ("buffer_limit", self.buffer_limit.is_some()),
            ("request_timeout", self.request_timeout.is_some()),
            ("access_log", self.access_log.is_some()),
            ("response_phase", self.response_phase),
            ("subset_header", self.subset_header),
            ("epp_tls", self.epp_tls),
        ];
        fill(template, &BTreeMap::from(options), &self.values())
    }

    fn values(&self) -> BTreeMap<&'static str, String> {
        let body = if self.buffered { "BUFFERED" } else { "FULL_DUPLEX_STREAMED" };
        // Envoy refuses SKIP for the trailers of a side whose body is full duplex; in the other
        // modes trailers are of no use to the picker.
        let trailer = if self.buffered { "SKIP" } else { "SEND" };
        let (response_header, response_body, response_trailer) =
            if self.response_phase { ("SEND", body, trailer) } else { ("SKIP", "NONE", "SKIP") };
        BTreeMap::from([
            ("LISTEN_PORT", self.listen_port.to_string()),
            ("ADMIN_PORT", self.admin_port.to_string()),
            ("EPP_ENDPOINTS", endpoints(std::iter::once(&self.epp).chain(&self.replicas))),
            ("FAILURE_MODE_ALLOW", self.failure_mode_allow.to_string()),
            ("POOL_ENDPOINTS", endpoints(&self.endpoints)),
            ("REQUEST_TIMEOUT", self.request_timeout.map(seconds).unwrap_or_default()),
            ("BUFFER_LIMIT", self.buffer_limit.map(|b| b.to_string()).unwrap_or_default()),
            ("ACCESS_LOG", quoted(&self.access_log.as_deref().unwrap_or("".as_ref()).to_string_lossy())),
            ("MESSAGE_TIMEOUT", seconds(self.message_timeout)),
            ("HEALTH_INTERVAL", seconds(self.health_interval)),
            ("REQUEST_BODY_MODE", body.to_owned()),
            ("REQUEST_TRAILER_MODE", trailer.to_owned()),
            ("RESPONSE_HEADER_MODE", response_header.to_owned()),
            ("RESPONSE_BODY_MODE", response_body.to_owned()),
            ("RESPONSE_TRAILER_MODE", response_trailer.to_owned()),
        ])
    }
}

/// Why a bootstrap cannot be rendered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// Variant B needs the members of the pool.
    #[error("override-host bootstrap: endpoints is empty, at least one is needed: name the members of the pool")]
    NoEndpoints,
    /// A template and this file disagree.
    #[error("bootstrap template, line {line}: {what}")]
    Template {
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
}

/// The list of a cluster's endpoints in YAML's flow form.
fn endpoints<'a>(addresses: impl IntoIterator<Item = &'a SocketAddr>) -> String {
    let one = |at: &SocketAddr| {
        let (ip, port) = (at.ip(), at.port());
        format!("{{ endpoint: {{ address: {{ socket_address: {{ address: \"{ip}\", port_value: {port} }} }} }} }}")
    };
    format!("[{}]", addresses.into_iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Protobuf's JSON form of a duration.
fn seconds(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos => format!("{}.{nanos:09}s", duration.as_secs()),
    }
}

/// A double-quoted YAML scalar; JSON's escapes are a subset of YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn fill(
    template: &str,
    options: &BTreeMap<&str, bool>,
    values: &BTreeMap<&str, String>,
) -> Result<String, BootstrapError> {
    let mut out = String::with_capacity(template.len());
    let mut skipping = None;
    for (number, line) in template.lines().enumerate() {
        let fault = |what: String| BootstrapError::Template { line: number + 1, what };
        let mark = line.trim();
        if let Some(name) = mark.strip_prefix("# @if ") {
            if skipping.is_some() {
                return Err(fault(format!("condition {name:?} inside another condition, which is not supported")));
            }
            let on = options.get(name).ok_or_else(|| fault(format!("unknown option {name:?}")))?;
            skipping = Some(!on);
        } else if mark == "# @end" {
            skipping.take().ok_or_else(|| fault("@end without @if".to_owned()))?;
        } else if skipping != Some(true) {
            let mut rest = line;
            // Comments may talk about placeholders.
            if mark.starts_with('#') {
                out.push_str(rest);
                rest = "";
            }
            while let Some((before, after)) = rest.split_once("\"${") {
                let (name, after) =
                    after.split_once("}\"").ok_or_else(|| fault("placeholder without its end".to_owned()))?;
                let value = values.get(name).ok_or_else(|| fault(format!("unknown placeholder {name:?}")))?;
                out.push_str(before);
                out.push_str(value);
                rest = after;
            }
            out.push_str(rest);
            out.push('\n');
        }
    }
    match skipping {
        None => Ok(out),
        Some(_) => {
            Err(BootstrapError::Template { line: template.lines().count(), what: "@if without @end".to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epp() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9002))
    }

    #[test]
    fn both_templates_render_without_leftovers() {
        for bootstrap in [Bootstrap::original_dst(epp()), Bootstrap::override_host(epp(), vec![epp()])] {
            let text = bootstrap.render().unwrap();
            let left: Vec<&str> = text.lines().filter(|l| !l.starts_with('#') && l.contains("${")).collect();
            assert_eq!(left, Vec::<&str>::new());
            assert!(text.contains("request_body_mode: FULL_DUPLEX_STREAMED"));
            assert!(!text.contains("transport_socket"));
        }
    }

    #[test]
    fn options_show_in_the_text() {
        let text = Bootstrap {
            epp_tls: true,
            failure_mode_allow: true,
            request_timeout: Some(Duration::from_millis(1500)),
            buffer_limit: Some(65536),
            response_phase: false,
            access_log: Some("/tmp/a \"b\".log".into()),
            ..Bootstrap::override_host("[::1]:9002".parse().unwrap(), vec!["[::1]:8000".parse().unwrap()])
        }
        .render()
        .unwrap();
        for part in [
            "transport_socket:",
            "failure_mode_allow: true",
            "request_timeout: 1.500000000s",
            "per_connection_buffer_limit_bytes: 65536",
            "response_body_mode: NONE",
            r#"path: "/tmp/a \"b\".log""#,
            r#"address: "::1", port_value: 8000"#,
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn a_pool_is_needed_for_the_variant_that_knows_it() {
        assert_eq!(Bootstrap::override_host(epp(), vec![]).render(), Err(BootstrapError::NoEndpoints));
    }

    #[test]
    fn faulty_templates_are_named_by_line() {
        let options = BTreeMap::from([("tls", true)]);
        let values = BTreeMap::from([("A", "1".to_owned())]);
        let fill = |text| fill(text, &options, &values).map_err(|e| e.to_string());
        assert_eq!(fill("a: \"${A}\"\n# @if tls\nb: 1\n# @end\n").unwrap(), "a: 1\nb: 1\n");
        assert_eq!(fill("a: \"${B}\"").unwrap_err(), "bootstrap template, line 1: unknown placeholder \"B\"");
        assert_eq!(fill("\n# @if x").unwrap_err(), "bootstrap template, line 2: unknown option \"x\"");
        assert_eq!(fill("# @end").unwrap_err(), "bootstrap template, line 1: @end without @if");
        assert_eq!(fill("# @if tls").unwrap_err(), "bootstrap template, line 1: @if without @end");
    }
}
