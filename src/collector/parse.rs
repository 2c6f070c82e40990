//! One pass over a Prometheus text page that looks only at the series somebody asked for.
//!
//! A model server's page holds hundreds of histogram lines and the picker wants five gauges of it,
//! twenty times a second and endpoint. So a line is cut out with `memchr`, rejected by one table
//! look-up where possible, and only a wanted line has its labels and value parsed, in place. The page
//! arrives in chunks and is never put together: only a line that crosses two chunks is copied.
//!
//! Invariants: how the page is cut into chunks does not change what is found; no input panics; memory
//! is bounded by [`MAX_LINE`] plus the size of one chunk. Once all wanted names were seen and
//! the last one's family has ended, the rest is not looked at (series of one family are contiguous in this
//! format). A last line without its newline counts as a page that was cut off, as in Prometheus' own
//! parser, because half a number reads as a wrong number.
//!
//! Rejected: a full parser into families (what the picker we replace does, at several cores per hundred
//! pods), and a regular expression per metric (one pass per metric, and escapes in labels break it).

use memchr::{memchr, memchr2};

/// Longest line that is kept across chunks, in bytes; a longer wanted line counts as malformed. vLLM's
/// longest is about 1.5 KiB, and a thousand LoRA adapters with long names stay below this.
pub const MAX_LINE: usize = 256 * 1024;

/// One wanted sample name.
#[derive(Clone, Debug)]
struct Name {
    text: Box<[u8]>,
    /// Bytes of `text` that all samples of its family share: without `_sum`, `_count` and the like.
    base: usize,
    /// Whether the scan may not end before this name was seen.
    awaited: bool,
}

/// The names to look for, compiled once for each engine.
#[derive(Clone, Debug)]
pub struct Names {
    names: Vec<Name>,
    /// Index of the byte that `allowed` judges; every name is longer.
    probe: usize,
    allowed: Box<[bool; 256]>,
    longest: usize,
    awaited: usize,
}

impl Names {
    /// Compiles distinct, non-empty names. Each comes with whether the scan must go on until it was
    /// seen; older spellings of a name that may be absent for ever are not awaited.
    pub fn new<'a>(wanted: impl IntoIterator<Item = (&'a str, bool)>) -> Self {
        let names: Vec<Name> = wanted
            .into_iter()
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, awaited)| Name { text: text.as_bytes().into(), base: family(text), awaited })
            .collect();
        let shortest = names.iter().map(|n| n.text.len()).min().unwrap_or(1);
        let probe = match names.split_first() {
            None => 0,
            Some((first, others)) => (0..shortest - 1)
                .find(|&i| others.iter().any(|n| n.text[i] != first.text[i]))
                .unwrap_or(shortest.saturating_sub(1)),
        };
        let mut allowed = Box::new([false; 256]);
        for name in &names {
            allowed[usize::from(name.text[probe])] = true;
        }
        let longest = names.iter().map(|n| n.text.len()).max().unwrap_or(0);
        let awaited = names.iter().filter(|n| n.awaited).count();
        Self { names, probe, allowed, longest, awaited }
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The wanted name that `line` is a sample of, and what follows the name.
    fn find<'l>(&self, line: &'l [u8]) -> Option<(usize, &'l [u8])> {
        if !self.allowed[usize::from(*line.get(self.probe)?)] {
            return None;
        }
        self.names.iter().enumerate().find_map(|(i, name)| {
            let rest = line.strip_prefix(&name.text[..])?;
            matches!(rest.first(), Some(b'{' | b' ' | b'\t')).then_some((i, rest))
        })
    }
}

/// Length of the part of a sample name that its whole family shares.
fn family(name: &str) -> usize {
    const SUFFIXES: [&str; 5] = ["_bucket", "_sum", "_count", "_total", "_created"];
    SUFFIXES.iter().find_map(|s| name.strip_suffix(s)).filter(|base| !base.is_empty()).map_or(name.len(), str::len)
}

/// Receives what the scan finds.
pub trait Visit {
    /// A series of the name with this index. The value may be NaN or infinite.
    fn series(&mut self, name: usize, labels: Labels<'_>, value: f64);
    /// A line of the name with this index that cannot be read.
    fn malformed(&mut self, name: usize);
}

/// The state of a scan between two chunks; reusable, so that a steady endpoint allocates nothing.
#[derive(Debug, Default)]
pub struct Scanner {
    carry: Vec<u8>,
    /// The rest of the current line is of no interest; `true` inside if it was a sample line.
    skipping: Option<bool>,
    /// Wanted names seen so far, by index.
    seen: Vec<bool>,
    missing: usize,
    current: usize,
    done: bool,
    first: Option<u8>,
}

impl Scanner {
    /// Prepares for a new page; keeps the buffers.
    pub fn reset(&mut self, names: &Names) {
        self.carry.clear();
        self.skipping = None;
        self.seen.clear();
        self.seen.resize(names.len(), false);
        self.missing = names.awaited;
        self.current = 0;
        self.done = names.is_empty();
        self.first = None;
    }

    /// Whether everything wanted was found and the rest of the page does not matter.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether name `index` was seen on this page.
    pub fn saw(&self, index: usize) -> bool {
        self.seen.get(index).copied().unwrap_or(false)
    }

    /// First byte of the page that is not white space: `<` and `{` betray a page of another format.
    pub fn first_byte(&self) -> Option<u8> {
        self.first
    }

    /// Looks through the next chunk of the page.
    pub fn feed(&mut self, names: &Names, chunk: &[u8], visit: &mut impl Visit) {
        let mut rest = chunk;
        if self.first.is_none() {
            self.first = chunk.iter().copied().find(|b| !b.is_ascii_whitespace());
        }
        if self.done || rest.is_empty() {
            return;
        }
        if self.skipping.is_some() {
            let Some(end) = memchr(b'\n', rest) else { return };
            self.skipping = None;
            rest = &rest[end + 1..];
        } else if !self.carry.is_empty() {
            let end = memchr(b'\n', rest);
            let part = &rest[..end.unwrap_or(rest.len())];
            if self.carry.len() + part.len() > MAX_LINE {
                self.give_up(names, visit);
            } else {
                self.carry.extend_from_slice(part);
            }
            let Some(end) = end else {
                self.settle(names);
                return;
            };
            let mut line = std::mem::take(&mut self.carry);
            if self.skipping.take().is_none() {
                self.line(names, &line, visit);
            }
            line.clear();
            self.carry = line;
            rest = &rest[end + 1..];
        }
        while !self.done {
            match memchr(b'\n', rest) {
                Some(end) => {
                    self.line(names, &rest[..end], visit);
                    rest = &rest[end + 1..];
                }
                None => {
                    if rest.len() > MAX_LINE {
                        self.carry.extend_from_slice(&rest[..names.longest.saturating_add(1).min(rest.len())]);
                        self.give_up(names, visit);
                    } else {
                        self.carry.extend_from_slice(rest);
                        self.settle(names);
                    }
                    return;
                }
            }
        }
    }

    /// Ends the page. Returns whether it stopped inside a sample line although more was wanted.
    pub fn finish(&mut self) -> bool {
        if self.done {
            return false;
        }
        let sample = |line: &[u8]| trim(line).first().is_some_and(|b| *b != b'#' && *b != b'\r');
        self.skipping.unwrap_or(false) || sample(&self.carry)
    }

    /// Decides early whether the begun line in `carry` can be dropped, so that it need not be copied.
    fn settle(&mut self, names: &Names) {
        if self.skipping.is_some() {
            return;
        }
        let line = trim(&self.carry);
        let Some(&first) = line.first() else { return };
        if first == b'#' {
            self.skipping = Some(false);
        } else if line.len() > names.longest && names.find(line).is_none() {
            if self.left_family(names, line) {
                self.done = true;
            }
            self.skipping = Some(true);
        }
        if self.skipping.is_some() {
            self.carry.clear();
        }
    }

    /// Drops a line that is longer than [`MAX_LINE`].
    fn give_up(&mut self, names: &Names, visit: &mut impl Visit) {
        if let Some((name, _)) = names.find(trim(&self.carry)) {
            self.mark(names, name);
            visit.malformed(name);
        }
        self.carry.clear();
        self.skipping = Some(true);
    }

    fn mark(&mut self, names: &Names, name: usize) {
        self.current = name;
        if !std::mem::replace(&mut self.seen[name], true) && names.names[name].awaited {
            self.missing -= 1;
        }
    }

    /// Whether nothing more is awaited and `line` belongs to another family than the last wanted one.
    fn left_family(&self, names: &Names, line: &[u8]) -> bool {
        self.missing == 0 && {
            let current = &names.names[self.current];
            !line.starts_with(&current.text[..current.base])
        }
    }

    fn line(&mut self, names: &Names, line: &[u8], visit: &mut impl Visit) {
        let line = trim(line);
        match line.first() {
            None | Some(b'#' | b'\r') => return,
            Some(_) => {}
        }
        if self.left_family(names, line) {
            self.done = true;
            return;
        }
        let Some((name, rest)) = names.find(line) else { return };
        self.mark(names, name);
        match sample(rest).filter(|_| line.len() <= MAX_LINE) {
            Some((labels, value)) => visit.series(name, labels, value),
            None => visit.malformed(name),
        }
    }
}

fn trim(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|b| !matches!(b, b' ' | b'\t')).unwrap_or(line.len());
    &line[start..]
}

/// Reads what follows the name: `{labels} value [timestamp] [# exemplar]`.
fn sample(rest: &[u8]) -> Option<(Labels<'_>, f64)> {
    let rest = trim(rest);
    let (raw, rest) = match rest.first()? {
        b'{' => {
            let end = labels_end(&rest[1..])?;
            (&rest[1..1 + end], &rest[end + 2..])
        }
        _ => (&rest[..0], rest),
    };
    let value = trim(rest);
    let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
    let value = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
    Some((Labels { rest: raw }, value))
}

/// Offset of the `}` that closes the labels; braces inside quoted values do not count.
fn labels_end(raw: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'}', raw.get(at..)?)?;
        if raw[at] == b'}' {
            return Some(at);
        }
        at += 1 + quoted_end(&raw[at + 1..])? + 1;
    }
}

/// Offset of the quote that ends a label value.
fn quoted_end(raw: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', raw.get(at..)?)?;
        if raw[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// The labels of one series, read on demand. A malformed label ends the iteration.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    rest: &'a [u8],
}

impl<'a> Labels<'a> {
    /// The value of label `name`.
    pub fn get(self, name: &str) -> Option<LabelValue<'a>> {
        let mut labels = self;
        labels.find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = (&'a [u8], LabelValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|b| !matches!(b, b' ' | b'\t' | b','))?;
        let rest = std::mem::take(&mut self.rest);
        let rest = &rest[start..];
        let equals = memchr(b'=', rest)?;
        let key = rest[..equals].trim_ascii_end();
        let value = trim(&rest[equals + 1..]).strip_prefix(b"\"")?;
        let end = quoted_end(value)?;
        self.rest = &value[end + 1..];
        Some((key, LabelValue { raw: &value[..end] }))
    }
}

/// A label value as written, with its escapes (`\\`, `\"`, `\n`).
#[derive(Clone, Copy, Debug)]
pub struct LabelValue<'a> {
    raw: &'a [u8],
}

impl LabelValue<'_> {
    fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        let mut raw = self.raw.iter().copied();
        std::iter::from_fn(move || match raw.next()? {
            b'\\' => Some(match raw.next() {
                Some(b'n') => b'\n',
                Some(other) => other,
                None => b'\\',
            }),
            plain => Some(plain),
        })
    }

    /// Whether the value is `text`; allocates nothing.
    pub fn is(&self, text: &str) -> bool {
        self.bytes().eq(text.bytes())
    }

    /// Replaces what `out` holds by the value. `false`, with `out` empty, if it is not UTF-8.
    pub fn copy_to(&self, out: &mut String) -> bool {
        out.clear();
        let mut bytes = std::mem::take(out).into_bytes();
        bytes.extend(self.bytes());
        match String::from_utf8(bytes) {
            Ok(text) => {
                *out = text;
                true
            }
            Err(_) => false,
        }
    }

    /// The value as a number, if it is one without escapes.
    pub fn parse<T: std::str::FromStr>(&self) -> Option<T> {
        std::str::from_utf8(self.raw).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests;
