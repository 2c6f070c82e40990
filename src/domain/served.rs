//! What the data plane says of the endpoint that answered (protocol 1.1, `envoy.lb`).

/// The report beside the headers of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Served {
    /// No metadata of the load balancer came along.
    #[default]
    Unreported,
    /// The metadata came and names no endpoint.
    Unnamed,
    /// This endpoint (`ip:port`, not empty).
    By(Box<str>),
}

impl Served {
    /// The endpoint, if one is named.
    pub fn endpoint(&self) -> Option<&str> {
        match self {
            Served::By(endpoint) => Some(endpoint),
            Served::Unreported | Served::Unnamed => None,
        }
    }
}
