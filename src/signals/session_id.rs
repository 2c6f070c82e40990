//! `session-id-producer`: finds the name of the client's session in a header or a cookie.
//!
//! Rule: the value of `headerName`, or of the cookie `cookieName` in any `cookie` header. Exactly one
//! of the two is set.
//!
//! Inputs: request headers.
//!
//! When it misleads: the value is whatever the client sends. Ids longer than 1024 bytes count as
//! absent, so that a client cannot make us hold large keys.
//!
//! Unlike in the picker we replace, the producer does not also remember endpoints: the binding
//! belongs to the plugin that scores it (`session-affinity-scorer`).
//!
//! ```yaml
//! - type: session-id-producer
//!   parameters:
//!     headerName: x-session-id
//! ```

use crate::domain::{Headers, InferenceRequest, Signals, Snapshot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Producer, Row, SignalKind, Stability};

/// Longer ids count as absent.
const MAX_ID: usize = 1024;

crate::params! {
    /// Parameters of `session-id-producer`; exactly one must be set.
    pub struct Params {
        /// Request header that holds the session id.
        header_name: Option<String> = None, "headerName";
        /// Cookie that holds the session id.
        cookie_name: Option<String> = None, "cookieName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "session-id-producer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Finds the client's session id in a request header or a cookie.",
        params: Params::SPEC,
        sample: "- type: session-id-producer\n  parameters:\n    headerName: x-session-id\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params { header_name, cookie_name } = b.params();
    let given = |name: Option<String>| name.filter(|n| !n.is_empty());
    let source = match (given(header_name), given(cookie_name)) {
        (Some(header), None) => Source::Header(header.to_ascii_lowercase()),
        (None, Some(cookie)) => Source::Cookie(cookie),
        (Some(_), Some(_)) => {
            b.error("cookieName", "a session id comes from one place", "set either `headerName` or `cookieName`");
            return None;
        }
        (None, None) => {
            b.error("headerName", "where to find the session id is required", "set `headerName` or `cookieName`");
            return None;
        }
    };
    let ordinal = b.produces(SignalKind::Session);
    Some(Built { producer: Some(std::sync::Arc::new(SessionId { ordinal, source })), ..Built::default() })
}

enum Source {
    Header(String),
    Cookie(String),
}

struct SessionId {
    ordinal: usize,
    source: Source,
}

impl Producer for SessionId {
    fn produce(&self, request: &InferenceRequest, _: &Snapshot, signals: &mut Signals) {
        let id = match &self.source {
            Source::Header(name) => request.headers.get(name),
            Source::Cookie(name) => cookie(&request.headers, name),
        };
        let id = id.filter(|id| !id.is_empty() && id.len() <= MAX_ID);
        signals.set_session(self.ordinal, id.map(Into::into));
    }
}

/// The first cookie called `name`. HTTP/2 clients may split cookies over several headers.
fn cookie<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .filter(|(header, _)| *header == b"cookie")
        .filter_map(|(_, value)| std::str::from_utf8(value).ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::{build, build_in, errors, pool, text};
    use crate::scheduling::plugin::Registry;

    fn found(built: &Built, headers: Headers) -> Option<Box<str>> {
        let mut scene = pool(1);
        scene.request.headers = headers;
        built.producer.as_ref().unwrap().produce(&scene.request, &scene.snapshot, &mut scene.signals);
        scene.signals.sessions[0].clone()
    }

    #[test]
    fn reads_a_header() {
        let built = build(&ROW, vec![("headerName", text("X-Session-Id"))]);
        assert_eq!(found(&built, [("X-SESSION-ID", "abc")].into()).as_deref(), Some("abc"));
        assert_eq!(found(&built, [("x-session-id", "")].into()), None);
        assert_eq!(found(&built, Headers::default()), None);
        let long: &'static str = Box::leak("x".repeat(MAX_ID + 1).into_boxed_str());
        assert_eq!(found(&built, [("x-session-id", long)].into()), None);
    }

    #[test]
    fn reads_a_cookie_among_others() {
        let built = build(&ROW, vec![("cookieName", text("sid"))]);
        let cookies: [(&'static str, &'static str); 2] =
            [("cookie", "a=1; xsid=no; flag"), ("cookie", " sid=\"q=7\";b=2")];
        assert_eq!(found(&built, cookies.into()).as_deref(), Some("q=7"));
        assert_eq!(found(&built, [("cookie", "; ;=;sid")].into()), None);
    }

    #[test]
    fn exactly_one_source_is_required_and_instances_are_numbered() {
        assert!(errors(&ROW, vec![])[0].contains("set `headerName` or `cookieName`"));
        assert!(errors(&ROW, vec![("headerName", text("a")), ("cookieName", text("b"))])[0].contains("one place"));
        let mut registry = Registry::default();
        let first = build_in(&mut registry, &ROW, vec![("headerName", text("a"))]).0.unwrap();
        let second = build_in(&mut registry, &ROW, vec![("headerName", text("b"))]).0.unwrap();
        let mut scene = pool(1);
        scene.request.headers = [("a", "1"), ("b", "2")].into();
        for built in [second, first] {
            built.producer.unwrap().produce(&scene.request, &scene.snapshot, &mut scene.signals);
        }
        assert_eq!(scene.signals.sessions, [Some("1".into()), Some("2".into())]);
    }
}
