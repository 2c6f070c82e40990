//! Server-sent events, cut out of chunks that end anywhere.
//!
//! Lines end with LF, CRLF or CR; `data` lines of one event are joined with LF; other fields and
//! comments are skipped; an event ends with an empty line or with the stream.

/// Longest line that is looked at, in bytes without its end; a longer one counts as absent.
pub(super) const MAX_LINE: usize = 1 << 20;
/// Longest data of one event; a longer event counts as absent.
pub(super) const MAX_EVENT: usize = 1 << 20;
/// Capacity that is kept between events.
const KEPT_CAPACITY: usize = 64 << 10;

/// What is left of the chunks so far.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The start of a line that has not ended.
    partial: Vec<u8>,
    /// The current line is longer than [`MAX_LINE`].
    line_too_long: bool,
    /// The last byte was CR: an LF now belongs to it.
    after_cr: bool,
    /// Data of the current event.
    data: Vec<u8>,
    has_data: bool,
    /// The current event is longer than [`MAX_EVENT`].
    event_too_long: bool,
    /// Something came before: a byte order mark is no longer skipped.
    started: bool,
}

impl Lines {
    /// Whether nothing of an unfinished event is held.
    pub fn at_event_start(&self) -> bool {
        self.partial.is_empty() && !self.line_too_long && !self.after_cr && !self.has_data && !self.event_too_long
    }

    /// Something came that needed no look.
    pub fn start(&mut self) {
        self.started = true;
    }

    /// Bytes held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.partial.capacity() + self.data.capacity()
    }

    /// Takes a chunk and gives the data of each event that ended in it to `event`.
    pub fn push(&mut self, mut chunk: &[u8], mut event: impl FnMut(&[u8])) {
        while !chunk.is_empty() {
            if std::mem::take(&mut self.after_cr) && chunk[0] == b'\n' {
                chunk = &chunk[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else {
                self.keep(chunk);
                return;
            };
            let (head, tail) = (&chunk[..end], &chunk[end + 1..]);
            self.after_cr = chunk[end] == b'\r';
            chunk = tail;
            if self.partial.is_empty() && !self.line_too_long {
                if head.len() <= MAX_LINE {
                    self.line(head, &mut event);
                }
            } else {
                self.keep(head);
                let line = std::mem::take(&mut self.partial);
                if !std::mem::take(&mut self.line_too_long) {
                    self.line(&line, &mut event);
                }
                self.partial = emptied(line);
            }
        }
    }

    /// The stream has ended: what is held is the last line and event.
    pub fn finish(mut self, mut event: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            let line = std::mem::take(&mut self.partial);
            self.line(&line, &mut event);
        }
        self.line(b"", &mut event);
    }

    fn keep(&mut self, part: &[u8]) {
        if self.line_too_long || self.partial.len() + part.len() > MAX_LINE {
            self.line_too_long = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(part);
        }
    }

    fn line(&mut self, line: &[u8], event: &mut impl FnMut(&[u8])) {
        let first = !std::mem::replace(&mut self.started, true);
        let line = if first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.is_empty() {
            if self.has_data && !self.event_too_long {
                event(&self.data);
            }
            self.data = emptied(std::mem::take(&mut self.data));
            self.has_data = false;
            self.event_too_long = false;
            return;
        }
        let data = match line.strip_prefix(b"data") {
            Some(b"") => &b""[..],
            Some([b':', b' ', data @ ..] | [b':', data @ ..]) => data,
            _ => return,
        };
        if self.event_too_long || self.data.len() + data.len() + 1 > MAX_EVENT {
            self.event_too_long = true;
            self.data = Vec::new();
            return;
        }
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(data);
    }
}

fn emptied(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT_CAPACITY {
        return Vec::new();
    }
    buffer.clear();
    buffer
}
