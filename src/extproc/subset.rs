//! The subset hint: which endpoints the data plane allows for a request (protocol 1.3, R-01).
//!
//! Producers differ, so more is read than the text of the protocol says: lists and strings, commas
//! inside an element, `ip:port` and bare IPs, IPv6 with and without brackets. Values are compared
//! parsed, never as text. Entries that do not parse are ignored; a hint that is present but names
//! nothing is kept as an empty hint, which allows nothing.

use std::net::SocketAddr;

pub use crate::domain::SubsetEntry;

/// The endpoints that a data plane allows. Empty allows none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubsetHint {
    /// Allowed endpoints in the order given.
    pub entries: Vec<SubsetEntry>,
}

impl SubsetHint {
    /// Adds the endpoints of one text: entries separated by commas, blanks allowed.
    pub fn extend_from_text(&mut self, text: &str) {
        self.entries.extend(text.split(',').filter_map(SubsetEntry::parse));
    }

    /// Whether a request with this hint may go to `address`.
    pub fn allows(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.entries.iter().any(|entry| match entry {
            SubsetEntry::Address(allowed) => allowed.port() == address.port() && allowed.ip() == ip,
            SubsetEntry::Ip(allowed) => *allowed == ip,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(text: &str) -> SubsetHint {
        let mut hint = SubsetHint::default();
        hint.extend_from_text(text);
        hint
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("test address")
    }

    #[test]
    fn every_written_form_is_read() {
        let hint = hint("10.0.0.1:8000, 10.0.0.2 ,[fd00::1]:8000,[fd00::2],fd00::3,::ffff:10.0.0.4");
        assert_eq!(hint.entries.len(), 6);
        for allowed in ["10.0.0.1:8000", "10.0.0.2:1", "[fd00::1]:8000", "[fd00::2]:9", "[fd00::3]:9", "10.0.0.4:5"] {
            assert!(hint.allows(address(allowed)), "{allowed}");
        }
        for other in ["10.0.0.1:8001", "10.0.0.3:8000", "[fd00::1]:8001"] {
            assert!(!hint.allows(address(other)), "{other}");
        }
    }

    #[test]
    fn garbage_is_ignored_and_leaves_an_empty_hint() {
        for text in ["", ",", "pod-1:8000", "10.0.0.1:99999", "10.0.0", "[10.0.0.1", "10.0.0.1:", "\u{fffd}"] {
            assert_eq!(hint(text), SubsetHint::default(), "{text:?}");
        }
        assert!(!SubsetHint::default().allows(address("10.0.0.1:8000")));
    }
}
