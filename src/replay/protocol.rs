//! A picker for a simulator in another process: one JSON object a line, on standard input and output.
//!
//! ```text
//! {"ev":"hello","pods":8,"kv_tokens":999936,"block":512}
//! {"ev":"metrics","t":12.35,"pod":3,"waiting":2,"running":17,"kv":0.4312}
//! {"ev":"req","t":12.361,"id":42,"tokens":6758,"blocks":[0,1,2]}
//! {"ev":"first","t":12.9,"id":42}
//! {"ev":"done","t":19.4,"id":42,"cached_tokens":512}
//! {"ev":"tick","t":12.5}
//! ```
//!
//! `hello` comes first; it and `metrics` want no answer. Every other line is answered by
//! `{"go":[[id,pod],…],"wake":12.5}`: the requests that are sent now, whether they just came or were held, and, if
//! any are held, when to send a `tick`. A wake-up is asked for once: until it came, later answers ask again only
//! for an earlier one, so a simulator may simply keep a queue of them.
//!
//! A `hello` that comes later begins anew. Times are seconds and do not go back. A request that the picker refuses
//! appears in no answer; the driver is told through the error stream.
//!
//! Lines are read by a scanner that knows numbers and lists of them and allocates nothing; what it does not know
//! (escapes, nested values) goes through the JSON library, so both read the same language.

use std::io::{self, BufRead, Read as _, Write};

use serde::Deserialize;

use super::picker::{Fleet, MAX_PODS, Picker, Sent};

/// Longest line in bytes.
pub const MAX_LINE: u64 = 64 << 20;

/// A line that cannot be used, or a stream that broke.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// What is wrong with which line.
    #[error("standard input, line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// The problem and what would be right.
        what: String,
    },
    /// The stream broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a line holds. Numbers are kept as written until the event says what they are.
#[derive(Debug, Default, PartialEq)]
struct Fields {
    ev: Event,
    t: Option<f64>,
    id: Option<u64>,
    pod: Option<u64>,
    pods: Option<u64>,
    kv_tokens: Option<u64>,
    block: Option<u64>,
    tokens: Option<u64>,
    cached_tokens: Option<u64>,
    waiting: Option<f64>,
    running: Option<f64>,
    kv: Option<f64>,
    blocks: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    #[default]
    Hello,
    Metrics,
    Req,
    First,
    Done,
    Tick,
}

impl Event {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"hello" => Event::Hello,
            b"metrics" => Event::Metrics,
            b"req" => Event::Req,
            b"first" => Event::First,
            b"done" => Event::Done,
            b"tick" => Event::Tick,
            _ => return None,
        })
    }
}

/// The same for the JSON library. Unknown fields are ignored, as by the scanner.
#[derive(Deserialize)]
struct Line {
    ev: Event,
    t: Option<f64>,
    id: Option<u64>,
    pod: Option<u64>,
    pods: Option<u64>,
    kv_tokens: Option<u64>,
    block: Option<u64>,
    tokens: Option<u64>,
    cached_tokens: Option<u64>,
    waiting: Option<f64>,
    running: Option<f64>,
    kv: Option<f64>,
    #[serde(default)]
    blocks: Vec<u64>,
}

impl Fields {
    fn read(&mut self, line: &[u8]) -> Result<(), String> {
        if self.scan(line).is_some() {
            return Ok(());
        }
        let Line { ev, t, id, pod, pods, kv_tokens, block, tokens, cached_tokens, waiting, running, kv, blocks } =
            serde_json::from_slice(line).map_err(|error| error.to_string())?;
        *self = Self { ev, t, id, pod, pods, kv_tokens, block, tokens, cached_tokens, waiting, running, kv, blocks };
        Ok(())
    }

    /// Reads the usual form; `None` for anything else, valid or not.
    fn scan(&mut self, line: &[u8]) -> Option<()> {
        let blocks = std::mem::take(&mut self.blocks);
        *self = Self { blocks, ..Self::default() };
        self.blocks.clear();
        let mut rest = Scanner(line);
        let mut named = false;
        rest.expect(b'{')?;
        loop {
            let key = rest.word()?;
            rest.expect(b':')?;
            match key {
                b"ev" => {
                    self.ev = Event::of(rest.word()?)?;
                    named = true;
                }
                b"t" => self.t = Some(rest.float()?),
                b"id" => self.id = Some(rest.integer()?),
                b"pod" => self.pod = Some(rest.integer()?),
                b"pods" => self.pods = Some(rest.integer()?),
                b"kv_tokens" => self.kv_tokens = Some(rest.integer()?),
                b"block" => self.block = Some(rest.integer()?),
                b"tokens" => self.tokens = Some(rest.integer()?),
                b"cached_tokens" => self.cached_tokens = Some(rest.integer()?),
                b"waiting" => self.waiting = Some(rest.float()?),
                b"running" => self.running = Some(rest.float()?),
                b"kv" => self.kv = Some(rest.float()?),
                b"blocks" => rest.integers(&mut self.blocks)?,
                _ => return None,
            }
            match rest.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        rest.space();
        (named && rest.0.is_empty()).then_some(())
    }
}

/// What is left of a line.
struct Scanner<'a>(&'a [u8]);

impl<'a> Scanner<'a> {
    fn space(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    fn next(&mut self) -> Option<u8> {
        self.space();
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A string of plain letters.
    fn word(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let end = self.0.iter().position(|b| !(b.is_ascii_lowercase() || *b == b'_'))?;
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        self.expect(b'"')?;
        Some(word)
    }

    /// Digits without sign, point, exponent or leading zeros.
    fn integer(&mut self) -> Option<u64> {
        self.space();
        let mut value = 0u64;
        let mut digits = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            digits += 1;
            self.0 = rest;
            if value == 0 && matches!(rest.first(), Some(b'0'..=b'9')) {
                return None;
            }
        }
        (digits > 0 && !matches!(self.0.first(), Some(b'.' | b'e' | b'E'))).then_some(value)
    }

    fn float(&mut self) -> Option<f64> {
        self.space();
        let end = self.0.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.'))?;
        let (number, rest) = self.0.split_at(end);
        // What JSON does not allow, such as `.5`, `5.` or `007`, is left to the library to refuse.
        let (whole, fraction) = match number.iter().position(|b| *b == b'.') {
            Some(point) => (&number[..point], &number[point + 1..]),
            None => (number, b"0".as_slice()),
        };
        let fits = !whole.is_empty() && !fraction.is_empty() && (whole.len() == 1 || whole[0] != b'0');
        if !fits || fraction.contains(&b'.') || matches!(rest.first(), Some(b'e' | b'E')) {
            return None;
        }
        self.0 = rest;
        std::str::from_utf8(number).ok()?.parse().ok()
    }

    fn integers(&mut self, into: &mut Vec<u64>) -> Option<()> {
        self.expect(b'[')?;
        self.space();
        if let [b']', rest @ ..] = self.0 {
            self.0 = rest;
            return Some(());
        }
        loop {
            into.push(self.integer()?);
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }
}

/// A conversation with a simulator.
struct Session {
    picker: Picker,
    fields: Fields,
    sent: Vec<Sent>,
    /// The wake-up that the simulator was asked for and that has not come.
    asked: Option<f64>,
    now: f64,
}

/// Serves `input` until it ends; `make` makes the picker when the pods are known. `err` is told of what was refused.
///
/// # Errors
/// A line that cannot be used (what came before it was answered), and a stream that breaks.
pub fn serve(
    make: impl Fn(Fleet) -> Result<Picker, String>,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), ProtocolError> {
    let mut line = Vec::new();
    let mut answer = Vec::new();
    let mut number = 0;
    let mut session: Option<Session> = None;
    let mut fields = Fields::default();
    loop {
        line.clear();
        number += 1;
        if (&mut *input).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let wrong = |what: String| ProtocolError::Line { line: number, what };
        if line.last() != Some(&b'\n') && line.len() as u64 >= MAX_LINE {
            return Err(wrong(format!("longer than {MAX_LINE} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let current = session.as_mut().map_or(&mut fields, |s| &mut s.fields);
        current.read(&line).map_err(wrong)?;
        if current.ev == Event::Hello {
            let fleet = current.fleet().map_err(wrong)?;
            session = Some(Session::new(make(fleet).map_err(wrong)?));
            continue;
        }
        let Some(session) = &mut session else {
            return Err(wrong("the first line must be a `hello`".into()));
        };
        if session.take(&mut answer).map_err(wrong)? {
            output.write_all(&answer)?;
            output.flush()?;
        }
        for (id, rejection) in session.picker.take_refused() {
            writeln!(err, "request {id} is refused: {rejection}")?;
        }
    }
}

impl Fields {
    fn fleet(&self) -> Result<Fleet, String> {
        let pods = need(self.pods, "pods")?;
        let kv_tokens = need(self.kv_tokens, "kv_tokens")?;
        let block_tokens = u32::try_from(need(self.block, "block")?).ok().filter(|n| (1..=1 << 20).contains(n));
        let block_tokens = block_tokens.ok_or("`block` must be between 1 and 1048576 tokens")?;
        match usize::try_from(pods).ok().filter(|n| (1..=MAX_PODS).contains(n)) {
            Some(pods) => Ok(Fleet { pods, kv_tokens, block_tokens }),
            None => Err(format!("`pods` is {pods}; it must be between 1 and {MAX_PODS}")),
        }
    }
}

fn need<T>(value: Option<T>, name: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("`{name}` is missing"))
}

impl Session {
    fn new(picker: Picker) -> Self {
        Self { picker, fields: Fields::default(), sent: Vec::new(), asked: None, now: 0.0 }
    }

    /// Takes the event that was read; whether it wants the answer that is then in `answer`.
    fn take(&mut self, answer: &mut Vec<u8>) -> Result<bool, String> {
        let fields = &self.fields;
        let t = need(fields.t, "t")?;
        if !(self.now..1e12).contains(&t) {
            return Err(format!("`t` is {t}, and it was {} before: time does not go back", self.now));
        }
        self.now = t;
        let misuse = |misuse: super::picker::Misuse| misuse.to_string();
        let id = || need(fields.id, "id");
        match fields.ev {
            Event::Hello => return Ok(false),
            Event::Metrics => {
                let read = |value: Option<f64>, name| need(value, name).map(|v| v as f32);
                let (waiting, running) = (read(fields.waiting, "waiting")?, read(fields.running, "running")?);
                let kv = read(fields.kv, "kv")?;
                self.picker.metrics(t, need(fields.pod, "pod")?, waiting, running, kv).map_err(misuse)?;
                return Ok(false);
            }
            Event::Req => {
                self.picker.request(t, id()?, need(fields.tokens, "tokens")?, &fields.blocks).map_err(misuse)?;
            }
            Event::First => self.picker.first_token(t, id()?).map_err(misuse)?,
            Event::Done => self.picker.done(t, id()?, fields.cached_tokens).map_err(misuse)?,
            Event::Tick => self.picker.tick(t),
        }
        // A microsecond of slack: the simulator rounds what it prints.
        if self.asked.is_some_and(|asked| t + 1e-6 >= asked) {
            self.asked = None;
        }
        self.answer(answer);
        Ok(true)
    }

    fn answer(&mut self, answer: &mut Vec<u8>) {
        answer.clear();
        answer.extend_from_slice(b"{\"go\":[");
        self.picker.take_sent(&mut self.sent);
        for (i, sent) in self.sent.drain(..).enumerate() {
            let mut number = itoa::Buffer::new();
            answer.extend_from_slice(if i > 0 { b",[" } else { b"[" });
            answer.extend_from_slice(number.format(sent.id).as_bytes());
            answer.push(b',');
            answer.extend_from_slice(number.format(sent.pod).as_bytes());
            answer.push(b']');
        }
        answer.push(b']');
        if let Some(wake) = self.picker.wake().filter(|wake| self.asked.is_none_or(|asked| *wake < asked)) {
            self.asked = Some(wake);
            // Writing to memory cannot fail.
            let _ = write!(answer, ",\"wake\":{wake:.6}");
        }
        answer.extend_from_slice(b"}\n");
    }
}

#[cfg(test)]
mod tests;
