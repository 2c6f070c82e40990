//! The decision log: one JSON line for each completed request, from which `pointsman replay` can run the same
//! traffic again.
//!
//! ```json
//! {"at":12.25,"model":"m","promptTokens":812,"outputTokens":88,"blockTokens":64,"blocks":[71,9],"endpoint":"pod-1","ttft":0.31}
//! ```
//!
//! `at` counts in seconds from the arrival of the first request of the log to that of this one; lines come in the order in
//! which requests ended. `blocks` are the hashes of the prompts' full blocks, root first, one prompt after the other:
//! equal hashes are equal beginnings, and no text can be had back from them. There is no prompt in the log.
//!
//! Requests never wait for the disk: lines go over a channel of [`QUEUE`] to a thread of their own, and those that find
//! it full are dropped and counted. A file that reaches its size becomes `FILE.1`, and the `FILE.1` of before goes.
//!
//! Rejected: the access log (it is for people and has no hashes), and block hashes of a window only (a replay
//! needs to know every reuse).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Serialize, Serializer};
use smallvec::SmallVec;

use crate::domain::{InferenceRequest, Signals, Timestamp, Usage};

/// Most lines that wait for the disk.
pub const QUEUE: usize = 1024;

/// What is known of a request when it is decided.
#[derive(Debug)]
pub struct Line {
    at: Duration,
    model: Box<str>,
    prompt_tokens: Option<u64>,
    block_tokens: u32,
    chains: SmallVec<[Arc<[u64]>; 1]>,
    endpoint: Box<str>,
}

/// A line as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    at: f64,
    model: Box<str>,
    prompt_tokens: u64,
    /// `null` where the server did not count them.
    output_tokens: Option<u64>,
    block_tokens: u32,
    #[serde(serialize_with = "joined")]
    blocks: SmallVec<[Arc<[u64]>; 1]>,
    endpoint: Box<str>,
    ttft: f64,
}

fn joined<S: Serializer>(chains: &SmallVec<[Arc<[u64]>; 1]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(chains.iter().flat_map(|chain| chain.iter()))
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// The log. Dropping it waits until what was sent is written.
pub struct ReplayLog {
    sender: Option<SyncSender<Entry>>,
    writer: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
    /// Arrival of the first request.
    first: OnceLock<Timestamp>,
}

impl ReplayLog {
    /// Writes to `path`, at most `limit` bytes and as many in `FILE.1`; what is in `path` already goes there.
    ///
    /// # Errors
    /// If the file or the thread cannot be made.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let mut file = LogFile { path: path.to_owned(), limit, open: None };
        if fs::metadata(path).is_ok_and(|known| known.len() > 0) {
            file.rotate()?;
        }
        file.ready()?;
        let (sender, receiver) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let run = move || write(&receiver, file, &shared);
        let writer = std::thread::Builder::new().name("decision-log".into()).spawn(run)?;
        Ok(Self { sender: Some(sender), writer: Some(writer), counts, first: OnceLock::new() })
    }

    /// What is known of `request` when it was sent to `endpoint`.
    pub fn line(&self, request: &InferenceRequest, signals: &Signals, endpoint: &str) -> Box<Line> {
        let found = signals.prefix.first();
        let first = *self.first.get_or_init(|| request.received_at);
        Box::new(Line {
            at: request.received_at.since(first),
            model: request.target_model.clone(),
            prompt_tokens: found.and_then(|m| m.prompt_tokens).or(signals.prompt_tokens),
            block_tokens: found.map_or(0, |m| m.block_tokens),
            chains: found.map(|m| m.chains.iter().cloned().collect()).unwrap_or_default(),
            endpoint: endpoint.into(),
        })
    }

    /// Sends the line of a request that has completed.
    pub fn write(&self, line: Line, ttft: Duration, usage: &Usage) {
        let Line { at, model, prompt_tokens, block_tokens, chains, endpoint } = line;
        let in_blocks = || chains.iter().map(|c| c.len() as u64).sum::<u64>() * u64::from(block_tokens);
        let entry = Entry {
            at: at.as_secs_f64(),
            model,
            prompt_tokens: usage.prompt_tokens.or(prompt_tokens).unwrap_or_else(in_blocks),
            output_tokens: usage.completion_tokens,
            block_tokens,
            blocks: chains,
            endpoint,
            ttft: ttft.as_secs_f64(),
        };
        if self.sender.as_ref().is_none_or(|sender| sender.try_send(entry).is_err()) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were written, and those that were dropped.
    pub fn counts(&self) -> [u64; 2] {
        [&self.counts.written, &self.counts.dropped].map(|n| n.load(Ordering::Relaxed))
    }
}

impl Drop for ReplayLog {
    fn drop(&mut self) {
        // Without a sender the thread ends when it has written what was sent.
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(receiver: &Receiver<Entry>, mut file: LogFile, counts: &Counts) {
    let mut line = Vec::new();
    let mut broken = false;
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        let mut written = 0;
        let mut result = Ok(());
        while let Some(entry) = next {
            line.clear();
            if serde_json::to_writer(&mut line, &entry).is_ok() {
                line.push(b'\n');
                match file.append(&line) {
                    Ok(()) => written += 1,
                    Err(error) => {
                        counts.dropped.fetch_add(1, Ordering::Relaxed);
                        result = Err(error);
                    }
                }
            }
            next = receiver.try_recv().ok();
        }
        // Nothing waits: what is in the buffer may as well be seen.
        let result = result.and(file.flush());
        counts.written.fetch_add(written, Ordering::Relaxed);
        if let (Err(error), false) = (&result, broken) {
            tracing::error!(%error, path = %file.path.display(), "the decision log cannot be written; lines are lost until it can");
        }
        broken = result.is_err();
    }
}

struct LogFile {
    path: PathBuf,
    limit: u64,
    open: Option<(BufWriter<File>, u64)>,
}

impl LogFile {
    /// The open file; it is opened if it is not.
    fn ready(&mut self) -> io::Result<&mut (BufWriter<File>, u64)> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let file = File::options().create(true).append(true).open(&self.path)?;
                let size = file.metadata()?.len();
                (BufWriter::new(file), size)
            }
        };
        Ok(self.open.insert(open))
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let limit = self.limit;
        let (_, size) = self.ready()?;
        if *size > 0 && *size + line.len() as u64 > limit {
            self.flush()?;
            self.rotate()?;
        }
        let (file, size) = self.ready()?;
        *size += line.len() as u64;
        let result = file.write_all(line);
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some((file, _)) = &mut self.open else { return Ok(()) };
        let result = file.flush();
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, PathBuf::from(old))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PrefixMatch;

    fn request(micros: u64) -> InferenceRequest {
        InferenceRequest {
            received_at: Timestamp(micros),
            model: "alias".into(),
            target_model: "m".into(),
            ..InferenceRequest::default()
        }
    }

    fn signals() -> Signals {
        let chains = vec![vec![u64::MAX, 2].into(), vec![3].into()];
        let found = PrefixMatch { block_tokens: 64, total_blocks: 3, chains, ..PrefixMatch::default() };
        Signals { prefix: vec![found], ..Signals::default() }
    }

    const TTFT: Duration = Duration::from_millis(310);

    #[test]
    fn a_line_has_all_that_a_replay_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.jsonl");
        let log = ReplayLog::open(&path, 1 << 20).unwrap();
        let one = log.line(&request(5_000_000), &signals(), "pod-1");
        let two = log.line(&request(5_250_000), &Signals::default(), "pod-2");
        let usage = Usage { prompt_tokens: Some(200), cached_tokens: None, completion_tokens: Some(8) };
        log.write(*two, TTFT, &usage);
        log.write(*one, TTFT, &Usage::default());
        drop(log);
        let expected = "{\"at\":0.25,\"model\":\"m\",\"promptTokens\":200,\"outputTokens\":8,\"blockTokens\":0,\
                        \"blocks\":[],\"endpoint\":\"pod-2\",\"ttft\":0.31}\n\
                        {\"at\":0.0,\"model\":\"m\",\"promptTokens\":192,\"outputTokens\":null,\"blockTokens\":64,\
                        \"blocks\":[18446744073709551615,2,3],\"endpoint\":\"pod-1\",\"ttft\":0.31}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn the_size_is_bound_and_the_last_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "of an earlier run\n").unwrap();
        let log = ReplayLog::open(&path, 400).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("log.1")).unwrap(), "of an earlier run\n");
        let mut sent = 0;
        // In steps, so that the channel takes them all.
        for _ in 0..20 {
            for _ in 0..QUEUE / 4 {
                log.write(*log.line(&request(sent), &signals(), "pod-1"), TTFT, &Usage::default());
                sent += 1;
            }
            while log.counts().iter().sum::<u64>() < sent {
                std::thread::yield_now();
            }
        }
        assert_eq!(log.counts(), [sent, 0]);
        drop(log);
        let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("log") <= 400 && size("log.1") <= 400 && size("log.1") > 200, "{} {}", size("log"), size("log.1"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_one_that_goes_loses_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ReplayLog::open(&folder.path().join("none/log"), 400).is_err());
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let log = ReplayLog::open(&inner.join("log"), 1).unwrap();
        fs::remove_dir_all(&inner).unwrap();
        for _ in 0..3 {
            log.write(*log.line(&request(0), &signals(), "pod-1"), TTFT, &Usage::default());
            while log.counts().iter().sum::<u64>() == 0 {
                std::thread::yield_now();
            }
        }
        while log.counts().iter().sum::<u64>() < 3 {
            std::thread::yield_now();
        }
        assert!(log.counts()[1] >= 2, "{:?}", log.counts());
    }
}
