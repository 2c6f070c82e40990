//! Traces from files: one JSON object a line.
//!
//! Two forms, told apart by their fields and not to be mixed in one file:
//!
//! - Mooncake: `{"timestamp":27482,"input_length":6758,"output_length":500,"hash_ids":[0,1,2]}`, milliseconds, blocks
//!   of 512 tokens;
//! - the picker's own decision log: `{"at":27.482,"model":"m","promptTokens":6758,"outputTokens":500,"blockTokens":64,
//!   "blocks":[17446744073709551615],"endpoint":"pod-1"}`, seconds, hashes of full blocks. The endpoint is not read: a
//!   replay decides anew. Where the number of output tokens is missing, the mean of the others stands for it.
//!
//! Other fields are ignored. Empty lines are skipped; anything else that is wrong is an error with file and line,
//! because a trace that is read in part would give figures that look right.

use std::io::{BufRead, Read as _};
use std::path::Path;

use serde::Deserialize;

use super::{Dense, MAX_BLOCKS, MAX_REQUESTS, MAX_TOKENS, Request, Trace};
use crate::replay::text::mix;

/// Tokens per block of the Mooncake form.
const MOONCAKE_BLOCK: u32 = 512;

/// Output tokens of a request if no line of a log says any.
const USUAL_OUTPUT: u32 = 200;

/// Longest line in bytes.
const MAX_LINE: u64 = 64 << 20;

/// A gap after a batch that is longer than this is a pause of the traffic, in seconds.
const LONGEST_GAP: f64 = 3.1;

/// A gap that is shorter than this is not one between batches, in seconds.
const SHORTEST_GAP: f64 = 0.5;

/// A trace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        error: std::io::Error,
    },
    /// A line is wrong.
    #[error("{file}:{line}: {what}")]
    Line {
        /// The file.
        file: String,
        /// Counted from 1.
        line: u64,
        /// The problem and what would be right.
        what: String,
    },
    /// The whole is wrong.
    #[error("{file}: {what}")]
    Whole {
        /// The file.
        file: String,
        /// The problem.
        what: String,
    },
}

#[derive(Deserialize)]
struct Mooncake {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Logged {
    at: f64,
    prompt_tokens: u64,
    output_tokens: Option<u64>,
    block_tokens: u32,
    #[serde(default)]
    model: String,
    blocks: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Mooncake(Mooncake),
    Logged(Logged),
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Mooncake,
    Logged,
}

/// Reads the trace in the file at `path`.
///
/// # Errors
/// See [`read`].
pub fn load(path: &Path) -> Result<Trace, TraceError> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| TraceError::Io { file: name.clone(), error })?;
    read(&name, &mut std::io::BufReader::with_capacity(1 << 18, file))
}

/// Reads a trace called `name`.
///
/// # Errors
/// The first line that is wrong; a file that cannot be read, or without requests.
pub fn read(name: &str, input: &mut dyn BufRead) -> Result<Trace, TraceError> {
    let mut trace = Trace::default();
    let mut dense = Dense::default();
    let mut form = None;
    let mut unknown_outputs = Vec::new();
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        number += 1;
        let io = |error| TraceError::Io { file: name.to_owned(), error };
        if (&mut *input).take(MAX_LINE).read_until(b'\n', &mut line).map_err(io)? == 0 {
            break;
        }
        let wrong = |what: String| TraceError::Line { file: name.to_owned(), line: number, what };
        if line.last() != Some(&b'\n') && line.len() as u64 >= MAX_LINE {
            return Err(wrong(format!("longer than {MAX_LINE} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row = parse(&line).map_err(wrong)?;
        add(&mut trace, &mut dense, &mut form, &mut unknown_outputs, row).map_err(wrong)?;
    }
    trace.distinct = dense.len();
    if trace.block_tokens == 0 {
        // Nothing in it has a block, so that any size will do.
        trace.block_tokens = MOONCAKE_BLOCK;
    }
    if trace.requests.is_empty() {
        let what = "there is no request in it".to_owned();
        return Err(TraceError::Whole { file: name.to_owned(), what });
    }
    if !unknown_outputs.is_empty() {
        let known = trace.requests.len() - unknown_outputs.len();
        let sum: u64 = trace.requests.iter().map(|r| u64::from(r.output)).sum();
        let usual = if known == 0 { USUAL_OUTPUT } else { (sum / known as u64).max(1) as u32 };
        for i in unknown_outputs {
            trace.requests[i].output = usual;
        }
    }
    Ok(trace.finish())
}

fn parse(line: &[u8]) -> Result<Row, String> {
    serde_json::from_slice(line).map_err(|_| {
        // The message of an untagged enum names no field: ask for the form that the line seems to have.
        let seems = |key: &[u8]| line.windows(key.len()).any(|w| w == key);
        let error = if seems(b"\"promptTokens\"") || seems(b"\"blocks\"") {
            serde_json::from_slice::<Logged>(line).err()
        } else {
            serde_json::from_slice::<Mooncake>(line).err()
        };
        let cause = error.map_or_else(|| "unknown form".to_owned(), |e| e.to_string());
        format!(
            "no request: {cause} (a line is {{\"timestamp\":ms,\"input_length\":n,\"output_length\":n,\"hash_ids\":[…]}} \
             or one of a decision log)"
        )
    })
}

fn add(
    trace: &mut Trace,
    dense: &mut Dense,
    form: &mut Option<Form>,
    unknown_outputs: &mut Vec<usize>,
    row: Row,
) -> Result<(), String> {
    let of = if matches!(row, Row::Mooncake(_)) { Form::Mooncake } else { Form::Logged };
    if *form.get_or_insert(of) != of {
        return Err("this line has another form than those before it; replay them one at a time".into());
    }
    let (at, input, output, block_tokens, model, ids) = match row {
        Row::Mooncake(m) => {
            (m.timestamp / 1e3, m.input_length, Some(m.output_length), MOONCAKE_BLOCK, String::new(), m.hash_ids)
        }
        Row::Logged(l) => (l.at, l.prompt_tokens, l.output_tokens, l.block_tokens, l.model, l.blocks),
    };
    if !(at.is_finite() && at.abs() < 1e12) {
        return Err(format!("the time {at} is out of range"));
    }
    // The log of a picker without a prefix index knows of no blocks.
    let unhashed = block_tokens == 0 && ids.is_empty();
    if !unhashed && !(1..=1 << 20).contains(&block_tokens) {
        return Err(format!("`blockTokens` is {block_tokens}; it must be between 1 and 1048576"));
    }
    if trace.block_tokens == 0 {
        trace.block_tokens = block_tokens;
    } else if !unhashed && trace.block_tokens != block_tokens {
        return Err(format!(
            "blocks of {block_tokens} tokens after blocks of {} tokens; split the log where that changed",
            trace.block_tokens
        ));
    }
    if input == 0 {
        trace.empty += 1;
        return Ok(());
    }
    let tokens = |n: u64, what: &str| match u32::try_from(n).ok().filter(|n| *n <= MAX_TOKENS) {
        Some(n) => Ok(n.max(1)),
        None => Err(format!("{n} {what} tokens are more than the limit of {MAX_TOKENS}")),
    };
    let input = tokens(input, "prompt")?;
    if output.is_none() {
        unknown_outputs.push(trace.requests.len());
    }
    let needed = input.div_ceil(block_tokens.max(1)) as usize;
    let ids = &ids[..ids.len().min(needed)];
    if trace.requests.len() >= MAX_REQUESTS || trace.ids.len() + ids.len() > MAX_BLOCKS {
        return Err(format!("a trace has at most {MAX_REQUESTS} requests and {MAX_BLOCKS} blocks; split it"));
    }
    // Caches of different models have nothing in common.
    let salt = model.bytes().fold(0u64, |salt, b| mix(salt ^ u64::from(b)));
    let offset = trace.ids.len();
    trace.ids.extend(ids.iter().map(|id| dense.id(id ^ salt)));
    trace.requests.push(Request {
        at,
        input,
        output: output.map_or(Ok(0), |n| tokens(n, "output"))?,
        offset,
        blocks: ids.len() as u32,
        generated: (0, 0),
    });
    Ok(())
}

/// Spreads requests that share a time over the gap until the next time, as the collector of the trace batched them:
/// a batch that arrives at once would measure how a picker copes with bursts that never were. Gaps under half a
/// second are left alone.
pub fn spread(mut trace: Trace, seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let times: Vec<f64> = trace.requests.iter().map(|r| r.at).collect();
    let mut next = 0;
    for (request, at) in trace.requests.iter_mut().zip(&times) {
        while next < times.len() && times[next] <= *at {
            next += 1;
        }
        let gap = times.get(next).map_or(3.0, |next| next - at).min(LONGEST_GAP);
        if gap > SHORTEST_GAP {
            request.at = at + rng.f64() * gap;
        }
    }
    for request in &mut trace.requests {
        request.generated = (0, 0);
    }
    trace.finish()
}
