//! Endpoints as a data plane or a client names them: one address, or every port of an IP.

use std::net::{IpAddr, SocketAddr};

/// One entry of such a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsetEntry {
    /// Exactly one endpoint.
    Address(SocketAddr),
    /// Every port of a pod.
    Ip(IpAddr),
}

impl SubsetEntry {
    /// Reads `ip:port` or an IP, IPv6 with or without brackets, blanks around it allowed; IPv4 mapped into IPv6
    /// counts as IPv4. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self::Address(SocketAddr::new(address.ip().to_canonical(), address.port())));
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        bare.parse::<IpAddr>().ok().map(|ip| Self::Ip(ip.to_canonical()))
    }
}
