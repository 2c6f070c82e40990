//! `pointsman explain`: one decision as a table: who could have been picked, who was, why, and what would have
//! changed it.
//!
//! Reads what `/debug/decisions` of a running picker shows, or the same from a file. The `table` module writes it down.

mod table;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::Value;

use crate::sim::client;

/// How long the picker may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Name of the decision (x-pointsman-decision) or id of the request (x-request-id); else the last decision.
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// The last decision.
    #[arg(long, conflicts_with = "id")]
    pub last: bool,
    /// Where the picker's metrics port is.
    #[arg(long, default_value = "http://127.0.0.1:9090")]
    pub url: String,
    /// File with the bearer token that the metrics port asks for.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Read this file instead: what /debug/decisions answered, or one decision of it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "token_file"])]
    pub file: Option<PathBuf>,
    /// Candidates shown, best first; 0 shows all.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub rows: usize,
}

/// Prints the decision.
///
/// # Errors
/// If there is no answer, no such decision, or the answer is none of a picker.
pub fn run(args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let page = match &args.file {
        Some(path) => std::fs::read(path).with_context(|| format!("--file: cannot read {}", path.display()))?,
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("cannot start the runtime")?.block_on(fetch(args))?
        }
    };
    let page: Value = serde_json::from_slice(&page).context("the decisions are not JSON")?;
    let decision = choose(&page, args.id.as_deref())?;
    write!(out, "{}", text(decision, args.rows))?;
    Ok(())
}

/// What the command prints of `decision`, as `/debug/decisions` shows it, with at most `rows` candidates.
pub(super) fn text(decision: &Value, rows: usize) -> String {
    table::write(decision, rows)
}

/// The newest decision on the page that `id` means.
fn choose<'p>(page: &'p Value, id: Option<&str>) -> anyhow::Result<&'p Value> {
    if page.get("profiles").is_some() {
        return Ok(page);
    }
    let Some(all) = page["decisions"].as_array() else { bail!("this is not what /debug/decisions answers") };
    let wanted = |decision: &&Value| id.is_none_or(|id| decision["id"] == id || decision["requestId"] == id);
    match (all.iter().rev().find(wanted), id, page["capacity"].as_u64()) {
        (Some(decision), ..) => Ok(decision),
        (None, _, Some(0)) => bail!("this picker keeps no decisions: start it with --debug-decisions=N"),
        (None, Some(id), _) => bail!(
            "no decision is called `{id}`: only the last are kept (--debug-decisions), and of a busy picker a part \
             (--debug-decisions-rate); send `x-pointsman-explain: true` where --allow-explain-header is set"
        ),
        (None, None, _) => bail!("there is no decision yet"),
    }
}

async fn fetch(args: &ExplainArgs) -> anyhow::Result<Vec<u8>> {
    let exchange = ask(args);
    let answer = tokio::time::timeout(DEADLINE, exchange).await;
    answer.map_err(|_| anyhow::anyhow!("--url: no answer from {} in {}s", args.url, DEADLINE.as_secs()))?
}

async fn ask(args: &ExplainArgs) -> anyhow::Result<Vec<u8>> {
    let (authority, address) = resolve(&args.url).await?;
    let mut path = String::from("/debug/decisions?limit=1");
    if let Some(id) = &args.id {
        let _ = write!(path, "&id={}", encoded(id));
    }
    let mut request = Request::get(path).header(header::HOST, authority);
    if let Some(file) = &args.token_file {
        let token = read_token(file)?;
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).context("--token-file: not a token")?;
    let asked = async {
        let answer = client::send(address, request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>((status, body.to_bytes()))
    };
    let (status, body) = asked.await.with_context(|| format!("--url: {} does not answer", args.url))?;
    let said = || String::from_utf8_lossy(&body[..body.len().min(500)]).trim().to_owned();
    match status {
        StatusCode::OK => Ok(body.to_vec()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            bail!("{} answers {status}: {}; name a token with --token-file", args.url, said())
        }
        _ => bail!("{} answers {status}: {}", args.url, said()),
    }
}

/// Host and port as written, and where that is.
async fn resolve(url: &str) -> anyhow::Result<(String, SocketAddr)> {
    let uri: Uri = url.parse().with_context(|| format!("--url: `{url}` is no URL"))?;
    ensure!(
        uri.scheme_str() == Some("http"),
        "--url: only http:// is read; for a metrics port in TLS save its /debug/decisions with curl and use --file"
    );
    let host = uri.host().with_context(|| format!("--url: `{url}` names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let found = tokio::net::lookup_host((host, port)).await.with_context(|| format!("--url: who is `{host}`?"))?;
    let address = found.into_iter().next().with_context(|| format!("--url: `{host}` has no address"))?;
    Ok((uri.authority().map(ToString::to_string).unwrap_or_default(), address))
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--token-file: cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Text as a value of a query string.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}
