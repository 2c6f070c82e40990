//! What the picker logs, for tests of what it can tell in no other way. Warnings, errors and access-log lines of all
//! tests of a program come together, so look for a text that only one test causes.

use std::io;
use std::sync::Once;

use parking_lot::Mutex;
use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts to keep what is logged; call it before the first thing that matters.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let kept = Targets::new().with_default(Level::WARN).with_target("pointsman::request", Level::INFO);
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| Lines);
        tracing_subscriber::registry().with(lines.with_filter(kept)).init();
    });
}

/// The kept lines that hold all of `parts`.
pub fn lines_with(parts: &[&str]) -> Vec<String> {
    let text = String::from_utf8_lossy(&LINES.lock()).into_owned();
    text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
}
