//! SIGTERM and SIGINT as a future.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The installed handlers. From installation on the signals no longer kill the process.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Installs the handlers. Call it before anything is served, so that no signal is lost.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name. The caller may wait again: a second signal
    /// during a drain asks for an immediate stop.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_is_received_by_name() {
        let mut shutdown = Shutdown::install().unwrap();
        let own = std::process::id().to_string();
        let killed = tokio::process::Command::new("kill").args(["-TERM", &own]).status().await.unwrap();
        assert!(killed.success());
        assert_eq!(shutdown.recv().await, "SIGTERM");
    }
}
