//! TLS versions and cipher suites by the names of Go's `crypto/tls`.

use crate::config::settings::{CipherSuite, TlsVersion};
use crate::domain::node::{Position, Problems, nearest};

pub(super) fn min_version(text: &str, problems: &mut Problems) -> TlsVersion {
    const FLAG: &str = "--tls-min-version";
    match text {
        "" | "VersionTLS12" => TlsVersion::Tls12,
        "VersionTLS13" => TlsVersion::Tls13,
        "VersionTLS10" | "VersionTLS11" => {
            let message = format!("`{text}` is no longer secure and raised to TLS 1.2");
            problems.warn(Position::default(), FLAG, message, "write VersionTLS12");
            TlsVersion::Tls12
        }
        _ => {
            let known = ["VersionTLS12", "VersionTLS13"];
            let fix = nearest(text, known).map_or("write one of them".into(), |near| format!("did you mean `{near}`?"));
            let message = format!("`{text}` is not one of {}", known.join(", "));
            problems.error(Position::default(), FLAG, message, fix);
            TlsVersion::Tls12
        }
    }
}

/// Go's names of the suites that exist here. The two names without `_SHA256` are Go's older ones.
const SUITES: [(&str, CipherSuite); 11] = [
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// Suites of Go that the TLS library leaves out on purpose: no forward secrecy, CBC, RC4 or 3DES.
const OUTDATED: [&str; 15] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

pub(super) fn cipher_suites(names: &[String], problems: &mut Problems) -> Vec<CipherSuite> {
    const FLAG: &str = "--tls-cipher-suites";
    let nowhere = Position::default();
    let mut suites = Vec::new();
    let mut written = names.iter().map(|n| n.trim()).filter(|n| !n.is_empty()).peekable();
    if written.peek().is_none() {
        return suites;
    }
    for name in written {
        if let Some((_, suite)) = SUITES.iter().find(|(known, _)| *known == name) {
            if !suites.contains(suite) {
                suites.push(*suite);
            }
        } else if OUTDATED.contains(&name) || name == "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA" {
            problems.warn(nowhere, FLAG, format!("`{name}` is outdated, not offered and left out"), "remove it");
        } else {
            let known = SUITES.map(|(name, _)| name);
            let fix = match nearest(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "write one of them".into(),
            };
            problems.error(nowhere, FLAG, format!("`{name}` is not one of {}", known.join(", ")), fix);
        }
    }
    if suites.is_empty() && problems.errors.iter().all(|p| p.path != FLAG) {
        problems.error(nowhere, FLAG, "none of the suites listed is offered", "add a suite with AES_GCM or CHACHA20");
    }
    suites
}
