//! Lines are captured through the real layer and writer thread.

use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::lifecycle::clock::ManualClock;

/// Collects what is written.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `run` logs.
pub(in crate::telemetry) fn lines(options: LogOptions, run: impl FnOnce(&LogHandle)) -> Vec<String> {
    let sink = Sink::default();
    let clock = ManualClock::default();
    clock.advance(Duration::from_micros(1_785_000_000_123_999));
    let (layer, handle, guard) = layer(options, Arc::new(clock), sink.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || run(&handle));
    drop(guard);
    let bytes = sink.0.lock().clone();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

fn at(verbosity: Verbosity) -> LogOptions {
    LogOptions { verbosity, ..LogOptions::default() }
}

#[test]
fn a_line_has_the_keys_of_zap_in_order() {
    let all = lines(LogOptions::default(), |_| {
        tracing::info!("x-request-id" = "abc", priority = -1, hit = 0.5, ok = true, "Request received");
    });
    assert_eq!(all.len(), 1);
    let prefix = r#"{"level":"info","ts":"2026-07-25T17:20:00.123Z","caller":"log/tests.rs:"#;
    assert!(all[0].starts_with(prefix), "{}", all[0]);
    let rest = r#"","msg":"Request received","x-request-id":"abc","priority":-1,"hit":0.5,"ok":true}"#;
    assert!(all[0].ends_with(rest), "{}", all[0]);
}

#[test]
fn console_lines_stay_on_one_line() {
    let options = LogOptions { encoder: Encoder::Console, ..LogOptions::default() };
    let all = lines(options, |_| {
        tracing::warn!(path = "a\nb", "two\nlines");
        tracing::warn!("bare");
    });
    assert_eq!(all.len(), 2);
    assert!(all[0].starts_with("2026-07-25T17:20:00.123Z\tWARN\tlog/tests.rs:"), "{}", all[0]);
    assert!(all[0].ends_with("\ttwo\\nlines\t{\"path\":\"a\\nb\"}"), "{}", all[0]);
    assert!(all[1].ends_with("\tbare"), "{}", all[1]);
}

fn everything() {
    tracing::error!("error");
    tracing::warn!("warn");
    tracing::info!("info");
    tracing::info!(target: VERBOSE, "verbose");
    tracing::debug!("debug");
    tracing::trace!("trace");
    tracing::info!(target: "h2::codec", "library info");
    tracing::debug!(target: "h2::codec", "library debug");
    tracing::warn!(target: "pointsmanlike", "library warning");
}

fn messages(verbosity: Verbosity) -> Vec<String> {
    let message = |line: String| serde_json::from_str::<Value>(&line).unwrap()["msg"].as_str().unwrap().to_owned();
    lines(at(verbosity), |_| everything()).into_iter().map(message).collect()
}

#[test]
fn verbosity_chooses_levels() {
    assert_eq!(messages(Verbosity::Error), ["error"]);
    assert_eq!(messages(Verbosity::Warn), ["error", "warn", "library warning"]);
    assert_eq!(messages(Verbosity::Info), ["error", "warn", "info", "library warning"]);
    assert_eq!(messages(Verbosity::Verbose), ["error", "warn", "info", "verbose", "library warning"]);
    let debug = ["error", "warn", "info", "verbose", "debug", "library info", "library warning"];
    assert_eq!(messages(Verbosity::Debug), debug);
    assert_eq!(messages(Verbosity::Trace).len(), 9);
}

#[test]
fn verbosity_changes_at_run_time() {
    let all = lines(at(Verbosity::Warn), |handle| {
        for verbosity in [Verbosity::Warn, Verbosity::Debug, Verbosity::Warn] {
            handle.set_verbosity(verbosity);
            assert_eq!(handle.verbosity(), verbosity);
            tracing::debug!("seen when {verbosity:?}");
        }
    });
    assert_eq!(all.len(), 1);
    assert!(all[0].contains("seen when Debug"));
}

#[test]
fn flags_are_read() {
    for (text, expected) in [("debug", Verbosity::Debug), ("panic", Verbosity::Error), ("3", Verbosity::Verbose)] {
        assert_eq!(text.parse(), Ok(expected));
    }
    assert_eq!("9".parse(), Ok(Verbosity::Trace));
    assert!("loud".parse::<Verbosity>().unwrap_err().contains("\"loud\""));
    assert_eq!("console".parse(), Ok(Encoder::Console));
    assert!("xml".parse::<Encoder>().unwrap_err().contains("json or console"));
    assert_eq!(Verbosity::from_v(-3), Verbosity::Error);
}

#[test]
fn values_and_lines_are_bounded() {
    let long = "é".repeat(MAX_VALUE_BYTES);
    let all = lines(LogOptions::default(), |_| {
        let l = long.as_str();
        tracing::info!(a = l, b = l, c = l, d = l, e = l, f = l, g = l, "{l}");
    });
    assert!(all[0].len() < MAX_LINE_BYTES + 2 * MAX_VALUE_BYTES, "{}", all[0].len());
    let value: Value = serde_json::from_str(&all[0]).unwrap();
    assert_eq!(value["truncated"], true);
    let a = value["a"].as_str().unwrap();
    assert!(a.ends_with('…') && a.len() <= MAX_VALUE_BYTES + '…'.len_utf8());
}

#[test]
fn a_value_that_logs_while_it_is_formatted_is_harmless() {
    struct Chatty;
    impl std::fmt::Debug for Chatty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            tracing::info!("inner");
            f.write_str("chatty")
        }
    }
    // Whether the inner line appears is up to `tracing`; the outer one must be whole.
    let all = lines(LogOptions::default(), |_| tracing::info!(value = ?Chatty, "outer"));
    let outer: Value = serde_json::from_str(all.last().unwrap()).unwrap();
    assert_eq!((outer["msg"].as_str(), outer["value"].as_str()), (Some("outer"), Some("chatty")));
}

#[test]
fn a_stuck_writer_costs_lines_and_not_time() {
    /// Blocks until the test lets go.
    struct Stuck(Arc<Mutex<()>>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            drop(self.0.lock());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock();
    let (layer, handle, guard) =
        layer(LogOptions::default(), Arc::new(ManualClock::default()), Stuck(Arc::clone(&gate)));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        for _ in 0..QUEUE_LINES + 100 {
            tracing::info!("line");
        }
    });
    // The writer thread may hold one line or a few beside the queue.
    let dropped = handle.dropped_lines();
    assert!((1..=100).contains(&dropped), "{dropped}");
    drop(held);
    drop(guard);
}

proptest! {
    #[test]
    fn every_line_is_json_that_reads_back(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..64),
                                          int in any::<i64>(), float in any::<f64>()) {
        let lossy = String::from_utf8_lossy(&bytes).into_owned();
        let all = lines(LogOptions::default(), |_| {
            tracing::info!(text = text.as_str(), lossy = %lossy, debug = ?bytes, raw = bytes.as_slice(), int, float,
                           "{text}");
        });
        prop_assert_eq!(all.len(), 1, "one event is one line");
        let value: Value = serde_json::from_str(&all[0]).unwrap();
        prop_assert_eq!(value["msg"].as_str(), Some(text.as_str()));
        prop_assert_eq!(value["text"].as_str(), Some(text.as_str()));
        prop_assert_eq!(value["lossy"].as_str(), Some(lossy.as_str()));
        prop_assert_eq!(value["int"].as_i64(), Some(int));
        if float.is_finite() {
            // `serde_json` reads the last digit only nearly right.
            let read = value["float"].as_f64().unwrap();
            prop_assert!((read - float).abs() <= float.abs() * 1e-12, "{read} for {float}");
        } else {
            prop_assert!(value["float"].is_string());
        }
    }
}
