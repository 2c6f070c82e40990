//! Notices changed files by polling.
//!
//! The group of files given is read as one: a certificate and its key are yielded together. Kubernetes
//! swaps a symlink when a ConfigMap or Secret changes; polling metadata through the link sees that, a
//! bind mount and an editor's rename alike. A change is read only after it has been still for the
//! debounce time, so half a swap is not taken for the new state.
//!
//! Bounds: a file over the size limit is an error and is not read further. Each distinct error is
//! yielded once; when the files can be read again they are yielded again, even if unchanged.
//!
//! Rejected: inotify (misses network and some bind mounts, needs the swap dance reimplemented, and
//! still needs a poll as a safety net).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, MissedTickBehavior};

/// How to watch.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// Time between looks; at least 10 ms.
    pub every: Duration,
    /// How long a change must be still before it is read.
    pub debounce: Duration,
    /// Largest size of one file in bytes.
    pub max_bytes: u64,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { every: Duration::from_millis(500), debounce: Duration::from_millis(250), max_bytes: 4 << 20 }
    }
}

/// Why files could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The file is missing, not readable, or a folder.
    #[error("cannot read {}: {message}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Kind of the error.
        kind: io::ErrorKind,
        /// What the operating system said.
        message: String,
    },
    /// The file is over the limit.
    #[error("{} is larger than the limit of {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
}

/// Contents in the order of the paths.
pub type Contents = Vec<Bytes>;

/// What identifies a state of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Prints = Vec<Result<Print, io::ErrorKind>>;

/// Watches a group of files.
#[derive(Debug)]
pub struct FileWatcher {
    paths: Vec<PathBuf>,
    options: WatchOptions,
    ticks: tokio::time::Interval,
    /// Last look, and since when it has been the same.
    seen: Option<(Prints, Instant)>,
    /// The look at which the files were last read.
    read_at: Option<Prints>,
    /// Two writes within one tick of the file system's clock can leave equal metadata, so every read
    /// is repeated once at the next look.
    confirm: bool,
    last: Option<Result<Contents, ReadError>>,
}

impl FileWatcher {
    /// A watcher that yields the present contents first. Must be made inside a runtime.
    pub fn new(paths: Vec<PathBuf>, options: WatchOptions) -> Self {
        let mut ticks = tokio::time::interval(options.every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { paths, options, ticks, seen: None, read_at: None, confirm: false, last: None }
    }

    /// A watcher that knows `contents` already and yields only what differs.
    pub fn starting_from(paths: Vec<PathBuf>, options: WatchOptions, contents: Contents) -> Self {
        Self { last: Some(Ok(contents)), ..Self::new(paths, options) }
    }

    /// Waits for the next change: new contents, or an error that was not yielded before. Safe to
    /// cancel; nothing is lost.
    ///
    /// # Errors
    /// See [`ReadError`]; the watch goes on after an error.
    pub async fn changed(&mut self) -> Result<Contents, ReadError> {
        loop {
            self.ticks.tick().await;
            let prints = self.look().await;
            let now = Instant::now();
            let first = self.last.is_none();
            let since = match &self.seen {
                Some((seen, since)) if *seen == prints => *since,
                _ => now,
            };
            self.seen = Some((prints.clone(), since));
            let same = self.read_at.as_ref() == Some(&prints);
            if same && !self.confirm {
                continue;
            }
            if !same && !first && now.duration_since(since) < self.options.debounce {
                continue;
            }
            let contents = read_all(&self.paths, self.options.max_bytes).await;
            self.confirm = !same;
            self.read_at = Some(prints);
            if self.last.as_ref() != Some(&contents) {
                self.last = Some(contents.clone());
                return contents;
            }
        }
    }

    async fn look(&self) -> Prints {
        let mut prints = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            prints.push(tokio::fs::metadata(path).await.map_err(|e| e.kind()).map(|m| Print {
                device: m.dev(),
                inode: m.ino(),
                size: m.size(),
                modified: (m.mtime(), m.mtime_nsec()),
                changed: (m.ctime(), m.ctime_nsec()),
            }));
        }
        prints
    }
}

/// Reads files completely, each up to `max_bytes`.
///
/// # Errors
/// The first file that cannot be read or is too large.
pub async fn read_all(paths: &[PathBuf], max_bytes: u64) -> Result<Contents, ReadError> {
    let mut contents = Vec::with_capacity(paths.len());
    for path in paths {
        contents.push(read(path, max_bytes).await?);
    }
    Ok(contents)
}

async fn read(path: &Path, max_bytes: u64) -> Result<Bytes, ReadError> {
    let io = |e: io::Error| ReadError::Io { path: path.to_owned(), kind: e.kind(), message: e.to_string() };
    let metadata = tokio::fs::metadata(path).await.map_err(io)?;
    // Opening a named pipe or a device could block for ever.
    if !metadata.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let file = tokio::fs::File::open(path).await.map_err(io)?;
    let mut content = Vec::new();
    // One byte more than allowed, since the size may change while reading.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut content).await.map_err(io)?;
    if content.len() as u64 > max_bytes {
        return Err(ReadError::TooLarge { path: path.to_owned(), limit: max_bytes });
    }
    Ok(Bytes::from(content))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const OPTIONS: WatchOptions =
        WatchOptions { every: Duration::from_millis(100), debounce: Duration::from_millis(250), max_bytes: 64 };

    async fn quiet(watcher: &mut FileWatcher) {
        let more = tokio::time::timeout(Duration::from_secs(5), watcher.changed()).await;
        assert!(more.is_err(), "nothing changed, yet {more:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn yields_first_contents_then_changes_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints.yaml");
        fs::write(&path, "one").unwrap();
        let mut watcher = FileWatcher::new(vec![path.clone()], OPTIONS);
        assert_eq!(watcher.changed().await.unwrap(), vec![Bytes::from("one")]);
        quiet(&mut watcher).await;
        fs::write(&path, "three").unwrap();
        let begun = Instant::now();
        assert_eq!(watcher.changed().await.unwrap(), vec![Bytes::from("three")]);
        assert!(begun.elapsed() >= OPTIONS.debounce, "a change is read when it has been still");
        quiet(&mut watcher).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_rewrite_with_the_same_content_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "same").unwrap();
        let mut watcher = FileWatcher::starting_from(vec![path.clone()], OPTIONS, vec![Bytes::from("same")]);
        quiet(&mut watcher).await;
        fs::write(&path, "same").unwrap();
        quiet(&mut watcher).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_symlink_swap_yields_both_files_together() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (generation, text) in [("v1", "old"), ("v2", "new")] {
            fs::create_dir(at(generation)).unwrap();
            fs::write(at(generation).join("tls.crt"), format!("{text} crt")).unwrap();
            fs::write(at(generation).join("tls.key"), format!("{text} key")).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        symlink("..data/tls.key", at("tls.key")).unwrap();
        let mut watcher = FileWatcher::new(vec![at("tls.crt"), at("tls.key")], OPTIONS);
        assert_eq!(watcher.changed().await.unwrap(), vec![Bytes::from("old crt"), Bytes::from("old key")]);
        symlink("v2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert_eq!(watcher.changed().await.unwrap(), vec![Bytes::from("new crt"), Bytes::from("new key")]);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_yielded_once_and_recovery_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut watcher = FileWatcher::new(vec![path.clone()], OPTIONS);
        let missing = watcher.changed().await.unwrap_err();
        assert!(matches!(missing, ReadError::Io { kind: io::ErrorKind::NotFound, .. }));
        quiet(&mut watcher).await;
        fs::write(&path, "x".repeat(65)).unwrap();
        let large = watcher.changed().await.unwrap_err();
        assert_eq!(large, ReadError::TooLarge { path: path.clone(), limit: 64 });
        fs::write(&path, "x".repeat(64)).unwrap();
        assert_eq!(watcher.changed().await.unwrap()[0].len(), 64);
        fs::remove_file(&path).unwrap();
        watcher.changed().await.unwrap_err();
        fs::write(&path, "x".repeat(64)).unwrap();
        assert_eq!(watcher.changed().await.unwrap()[0].len(), 64, "back with the same content");
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_is_an_error_not_a_hang() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = FileWatcher::new(vec![dir.path().to_owned()], OPTIONS);
        assert!(watcher.changed().await.unwrap_err().to_string().contains("not a regular file"));
    }
}
