//! What the picker logs, for tests of what it can tell in no other way. Warnings and errors of all tests
//! of a program come together, so look for a text that only one test causes.

use std::io;
use std::sync::Once;

use parking_lot::Mutex;

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
        tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false).with_writer(|| Lines).init();
    });
}

/// The kept lines that hold all of `parts`.
pub fn lines_with(parts: &[&str]) -> Vec<String> {
    let text = String::from_utf8_lossy(&LINES.lock()).into_owned();
    text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
}
