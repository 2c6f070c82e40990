//! The environment of OpenTelemetry: whether traces are exported, where to, and which.
//!
//! Nothing is exported unless the environment names an exporter or a collector, so that `--tracing`, which
//! is on by default as in the picker we replace, costs nothing by itself. (There, spans go to standard
//! output then.) As the OpenTelemetry specification asks, a value that cannot be used is reported and
//! left out: traces never stop a start.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::settings::TraceExport;
use crate::domain::node::{Position, Problems};

const ENDPOINT: &str = "http://localhost:4317";
const SERVICE: &str = "llm-d-epp";
const RATIO: f64 = 0.1;
/// Most resource attributes and headers that are read.
const MAX_PAIRS: usize = 128;

struct Env<'a> {
    env: &'a BTreeMap<String, String>,
    problems: &'a mut Problems,
}

/// What `env` asks for; `None` if nothing is to be exported.
pub fn traces(env: &BTreeMap<String, String>, problems: &mut Problems) -> Option<TraceExport> {
    let mut env = Env { env, problems };
    if !env.asks_for_export() {
        return None;
    }
    if let Some(protocol) = env.otlp("PROTOCOL").filter(|p| *p != "grpc").map(str::to_owned) {
        env.ignored(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            &protocol,
            "spans are exported by grpc only",
            "name the collector's gRPC port",
        );
    }
    let (ratio, follows_parent) = env.sampler();
    Some(TraceExport {
        endpoint: env.endpoint(),
        headers: env.otlp("HEADERS").map(pairs).unwrap_or_default(),
        timeout: Duration::from_millis(env.otlp_number("TIMEOUT", 10_000, 1..=600_000)),
        gzip: env.gzip(),
        certificate: env.otlp("CERTIFICATE").map(Into::into),
        ratio,
        follows_parent,
        resource: env.resource(),
        queue: env.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1..=1_000_000) as usize,
        batch: env.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1..=1_000_000) as usize,
        delay: Duration::from_millis(env.number("OTEL_BSP_SCHEDULE_DELAY", 5_000, 10..=600_000)),
    })
}

impl Env<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A setting of the exporter: that for traces, else that for everything.
    fn otlp(&self, name: &str) -> Option<&str> {
        self.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
            .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{name}")))
    }

    fn ignored(&mut self, name: &str, value: &str, rule: &str, fix: &str) {
        self.problems.warn(Position::default(), name, format!("`{value}` is ignored: {rule}"), fix);
    }

    fn asks_for_export(&mut self) -> bool {
        if self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return false;
        }
        let Some(exporter) = self.get("OTEL_TRACES_EXPORTER").map(str::to_owned) else {
            return self.otlp("ENDPOINT").is_some();
        };
        match exporter.as_str() {
            "otlp" => true,
            "none" => false,
            _ => {
                let rule = "there is no such exporter of traces here, so there are none";
                self.ignored("OTEL_TRACES_EXPORTER", &exporter, rule, "write `otlp` or `none`");
                false
            }
        }
    }

    fn endpoint(&self) -> String {
        let insecure = self.otlp("INSECURE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        match self.otlp("ENDPOINT") {
            None => ENDPOINT.to_owned(),
            Some(named) if named.contains("://") => named.to_owned(),
            Some(bare) if insecure => format!("http://{bare}"),
            Some(bare) => format!("https://{bare}"),
        }
    }

    fn gzip(&mut self) -> bool {
        match self.otlp("COMPRESSION").map(str::to_owned) {
            None => false,
            Some(named) if named == "gzip" => true,
            Some(named) => {
                if named != "none" {
                    self.ignored(
                        "OTEL_EXPORTER_OTLP_COMPRESSION",
                        &named,
                        "spans are sent as they are",
                        "write `gzip` or `none`",
                    );
                }
                false
            }
        }
    }

    /// Share of root requests that are recorded, and whether the client's decision counts.
    fn sampler(&mut self) -> (f64, bool) {
        let named = self.get("OTEL_TRACES_SAMPLER").unwrap_or("parentbased_traceidratio").to_owned();
        match named.as_str() {
            "always_on" => (1.0, false),
            "always_off" => (0.0, false),
            "parentbased_always_on" => (1.0, true),
            "parentbased_always_off" => (0.0, true),
            "traceidratio" => (self.ratio(), false),
            "parentbased_traceidratio" => (self.ratio(), true),
            _ => {
                self.ignored(
                    "OTEL_TRACES_SAMPLER",
                    &named,
                    "there is no such sampler",
                    "write `parentbased_traceidratio`",
                );
                (self.ratio(), true)
            }
        }
    }

    fn ratio(&mut self) -> f64 {
        const NAME: &str = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.get(NAME).map(str::to_owned) else { return RATIO };
        match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                self.ignored(NAME, &text, "a share is a number from 0 to 1", "write a number such as 0.1");
                RATIO
            }
        }
    }

    fn resource(&self) -> Vec<(String, String)> {
        let mut all = self.get("OTEL_RESOURCE_ATTRIBUTES").map(pairs).unwrap_or_default();
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            all.retain(|(key, _)| key != "service.name");
            all.push(("service.name".into(), name.to_owned()));
        }
        for (key, value) in [("service.name", SERVICE), ("service.version", env!("CARGO_PKG_VERSION"))] {
            if !all.iter().any(|(known, _)| known == key) {
                all.push((key.into(), value.into()));
            }
        }
        all
    }

    fn otlp_number(&mut self, name: &str, default: u64, range: std::ops::RangeInclusive<u64>) -> u64 {
        let own = format!("OTEL_EXPORTER_OTLP_TRACES_{name}");
        let name = if self.get(&own).is_some() { own } else { format!("OTEL_EXPORTER_OTLP_{name}") };
        self.number(&name, default, range)
    }

    fn number(&mut self, name: &str, default: u64, range: std::ops::RangeInclusive<u64>) -> u64 {
        let Some(text) = self.get(name).map(str::to_owned) else { return default };
        match text.parse::<u64>() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let rule = format!("it must be a number from {} to {}", range.start(), range.end());
                self.ignored(name, &text, &rule, &format!("write a number such as {default}"));
                default
            }
        }
    }
}

/// `key=value,…` with percent-encoded values, as OpenTelemetry writes lists.
fn pairs(text: &str) -> Vec<(String, String)> {
    let split = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let key = key.trim();
        (!key.is_empty()).then(|| (key.to_owned(), decoded(value.trim())))
    };
    text.split(',').filter_map(split).take(MAX_PAIRS).collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(vars: &[(&str, &str)]) -> (Option<TraceExport>, Vec<String>) {
        let env = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut problems = Problems::default();
        let export = traces(&env, &mut problems);
        assert!(problems.errors.is_empty());
        (export, problems.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_is_exported_unless_asked_for() {
        for vars in [
            &[][..],
            &[("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")],
            &[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_SDK_DISABLED", "true")],
            &[("OTEL_TRACES_SAMPLER", "always_on"), ("OTEL_SERVICE_NAME", "x")],
        ] {
            assert_eq!(read(vars), (None, Vec::new()), "{vars:?}");
        }
        let (export, warnings) = read(&[("OTEL_TRACES_EXPORTER", "console")]);
        assert!(export.is_none() && warnings[0].contains("OTEL_TRACES_EXPORTER"), "{warnings:?}");
    }

    #[test]
    fn the_defaults_are_those_of_the_picker_we_replace() {
        let (export, warnings) = read(&[("OTEL_TRACES_EXPORTER", "otlp")]);
        let export = export.unwrap();
        assert!(warnings.is_empty());
        assert_eq!(
            (export.endpoint.as_str(), export.ratio, export.follows_parent),
            ("http://localhost:4317", 0.1, true)
        );
        assert_eq!(export.resource[0], ("service.name".into(), "llm-d-epp".into()));
        assert_eq!((export.queue, export.batch, export.delay), (2048, 512, Duration::from_secs(5)));
        assert_eq!((export.timeout, export.gzip, export.certificate), (Duration::from_secs(10), false, None));
    }

    #[test]
    fn everything_can_be_said() {
        let (export, warnings) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://everything:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%2Cb, x = 1,bad,=worse"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_SERVICE_NAME", "mine"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,k8s.pod.name=p-1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ]);
        assert!(warnings.is_empty(), "{warnings:?}");
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            export.unwrap(),
            TraceExport {
                endpoint: "https://traces:4317".into(),
                headers: vec![pair("authorization", "Bearer a,b"), pair("x", "1")],
                timeout: Duration::from_millis(2500),
                gzip: true,
                certificate: Some("/ca.pem".into()),
                ratio: 0.25,
                follows_parent: false,
                resource: vec![
                    pair("k8s.pod.name", "p-1"),
                    pair("service.name", "mine"),
                    pair("service.version", env!("CARGO_PKG_VERSION")),
                ],
                queue: 64,
                batch: 16,
                delay: Duration::from_millis(100),
            }
        );
    }

    #[test]
    fn what_cannot_be_used_is_said_and_left_out() {
        let (export, warnings) = read(&[
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ]);
        let export = export.unwrap();
        assert_eq!((export.ratio, export.follows_parent, export.gzip), (0.1, true, false));
        assert_eq!((export.timeout, export.delay), (Duration::from_secs(10), Duration::from_secs(5)));
        for name in ["SAMPLER", "SAMPLER_ARG", "PROTOCOL", "COMPRESSION", "SCHEDULE_DELAY", "TIMEOUT"] {
            assert!(warnings.iter().any(|w| w.contains(name)), "{name}: {warnings:?}");
        }
    }

    #[test]
    fn addresses_without_a_scheme_are_secure_unless_told_otherwise() {
        let at = |vars: &[(&str, &str)]| read(vars).0.unwrap().endpoint;
        assert_eq!(at(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")]), "https://c:4317");
        let insecure = [("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")];
        assert_eq!(at(&insecure), "http://c:4317");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>(), name in 0..6usize) {
            let name = ["HEADERS", "TIMEOUT", "ENDPOINT", "COMPRESSION", "PROTOCOL", "CERTIFICATE"][name];
            let (export, _) = read(&[
                ("OTEL_TRACES_EXPORTER", "otlp"),
                (&format!("OTEL_EXPORTER_OTLP_{name}"), &text),
                ("OTEL_RESOURCE_ATTRIBUTES", &text),
                ("OTEL_TRACES_SAMPLER_ARG", &text),
            ]);
            let export = export.unwrap();
            prop_assert!((0.0..=1.0).contains(&export.ratio));
            prop_assert!(export.headers.len() <= MAX_PAIRS && !export.endpoint.is_empty());
        }
    }
}
