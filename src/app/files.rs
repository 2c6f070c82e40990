//! Tasks that follow files: the endpoints file and the certificate folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config;
use crate::discovery::file::{self, MAX_FILE};
use crate::domain::EndpointSpec;
use crate::domain::node::Problems;
use crate::lifecycle::watch_file::{Contents, FileWatcher, WatchOptions};
use crate::pool::Pool;

use super::Unusable;

/// Most problems of an endpoints file that are told; how many more there were is said.
const MAX_PROBLEMS: usize = 50;

/// Reads an endpoints file.
///
/// # Errors
/// The problems of the file, one per line, as `file:line:column: path: message`.
pub fn endpoints(path: &Path, bytes: &[u8]) -> Result<Vec<EndpointSpec>, Unusable> {
    let mut problems = Problems::default();
    let specs =
        config::yaml::read(bytes, &mut problems).map(|node| file::decode(&node, &mut problems)).unwrap_or_default();
    if problems.errors.is_empty() {
        return Ok(specs);
    }
    let name = path.display().to_string();
    let told = problems.errors.iter().take(MAX_PROBLEMS);
    let mut lines: Vec<String> = told.map(|p| config::error::line(&name, p)).collect();
    let more = problems.errors.len().saturating_sub(MAX_PROBLEMS);
    if more > 0 {
        lines.push(format!("{name}: {more} more problems are not shown"));
    }
    Err(Unusable(lines))
}

/// Follows the endpoints file; a broken one changes nothing and is logged.
pub async fn follow_endpoints(path: PathBuf, first: Contents, pool: Arc<Pool>) -> anyhow::Result<()> {
    let options = WatchOptions { max_bytes: MAX_FILE, ..WatchOptions::default() };
    let mut watcher = FileWatcher::starting_from(vec![path.clone()], options, first);
    loop {
        let read = watcher.changed().await.map_err(anyhow::Error::from);
        match read.and_then(|contents| Ok(endpoints(&path, &contents[0])?)) {
            Ok(specs) => {
                tracing::info!(file = %path.display(), endpoints = specs.len(), "endpoints file read");
                // Forgetting what was learnt of removed endpoints can take milliseconds.
                let pool = Arc::clone(&pool);
                tokio::task::spawn_blocking(move || pool.replace(specs)).await?;
            }
            Err(error) => {
                tracing::error!(file = %path.display(), error = %error, "endpoints file not usable: keeping the last good one");
            }
        }
    }
}

/// Follows the files of a certificate; a broken set changes nothing and is logged.
pub async fn follow_certificate(
    paths: Vec<PathBuf>,
    reload: impl Fn() -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    let file = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
    let mut watcher = FileWatcher::new(paths, WatchOptions::default());
    // The first contents are those of the start, or came right after it.
    let mut first = true;
    loop {
        let result = match watcher.changed().await {
            Ok(_) => reload(),
            Err(error) => Err(error.into()),
        };
        let at_start = std::mem::replace(&mut first, false);
        match result {
            Ok(()) if at_start => {}
            Ok(()) => tracing::info!(file, "certificate reloaded"),
            Err(error) => {
                tracing::error!(
                    file,
                    error = format!("{error:#}"),
                    "certificate not usable: keeping the last good one"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_nothing_but_errors_is_told_in_short() {
        let told = endpoints(Path::new("e.yaml"), ("endpoints:".to_owned() + &"\n- {}".repeat(9000)).as_bytes());
        let told = told.unwrap_err().to_string();
        assert_eq!(told.lines().count(), MAX_PROBLEMS + 1);
        assert!(told.ends_with("e.yaml: 26950 more problems are not shown"), "{told}");
    }

    #[test]
    fn a_file_that_is_no_mapping_says_so() {
        let told = endpoints(Path::new("e.yaml"), b"hello").unwrap_err().to_string();
        assert!(told.starts_with("e.yaml:1:1: (document): expected a mapping, found text `hello`"), "{told}");
    }
}
