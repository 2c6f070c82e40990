//! How a request ended: every stream gets exactly one of these.

/// The closed set of endings. `as_str` is the label in metrics and the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The model server answered 2xx and the answer passed to its end.
    Completed,
    /// The model server answered with another status.
    UpstreamError,
    /// The data plane answered by itself: connect failure, timeout, too large (protocol R-30).
    LocalReply,
    /// We refused: bad request, no endpoint, overload, shutdown.
    Rejected,
    /// The client or the data plane went away before the answer had ended.
    ClientDisconnect,
    /// The stream ended after the pick without any response phase (data planes that skip it).
    RoutedOnly,
    /// Cut off because the process is stopping.
    Shutdown,
    /// A fault of ours: a protocol violation of the peer that we could not serve, or a panic.
    InternalError,
}

impl Outcome {
    /// All endings, in the order of declaration.
    pub const ALL: [Outcome; 8] = [
        Outcome::Completed,
        Outcome::UpstreamError,
        Outcome::LocalReply,
        Outcome::Rejected,
        Outcome::ClientDisconnect,
        Outcome::RoutedOnly,
        Outcome::Shutdown,
        Outcome::InternalError,
    ];

    /// The label of this ending.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::UpstreamError => "upstream-error",
            Outcome::LocalReply => "local-reply",
            Outcome::Rejected => "rejected",
            Outcome::ClientDisconnect => "client-disconnect",
            Outcome::RoutedOnly => "routed-only",
            Outcome::Shutdown => "shutdown",
            Outcome::InternalError => "internal-error",
        }
    }
}
