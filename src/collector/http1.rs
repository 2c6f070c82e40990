//! Takes an HTTP/1 answer apart as it arrives: pushed bytes in, pieces of the body out, nothing copied.
//!
//! A scrape has one prepared request and wants five numbers, so all that a client library keeps per exchange
//! (a request and a header map to build, a channel to the connection, a buffer for each piece of the body)
//! cost more than the answer itself. Heads are parsed by `httparse`, the parser inside hyper; what is here is which
//! framing the head announces and where it ends.
//!
//! Invariants: how the bytes are cut does not change the outcome; a head that does not arrive in one
//! piece is kept up to [`HEAD_LIMIT`], a body never; what follows the answer makes the connection unusable.
//! Framing as in RFC 9112, section 6.3: chunked wins over a length, two lengths that differ are an error, and
//! without either the answer ends with the connection.

use httparse::Status;

use super::PollError;

/// Longest head in bytes.
pub const HEAD_LIMIT: usize = 64 * 1024;
/// Most header lines.
const MAX_HEADERS: usize = 100;
/// Most digits of a chunk's size.
const SIZE_DIGITS: u8 = 15;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Head,
    /// A body with this many bytes to come.
    Length(u64),
    /// A body that the end of the connection ends.
    UntilClose,
    /// The line with a chunk's size: what it says so far, in how many digits, and whether they are over.
    ChunkSize(u64, u8, bool),
    /// A chunk with this many bytes to come.
    ChunkData(u64),
    /// The end of line after a chunk.
    ChunkEnd,
    /// After the last chunk; whether the present line has anything in it.
    Trailers(bool),
    Done,
}

/// One answer after the other on one connection; reusable.
#[derive(Debug, Default)]
pub struct Response {
    state: State,
    /// The head as far as it has come, if not at once.
    head: Vec<u8>,
    /// Bytes after the head.
    size: usize,
    status: u16,
    begun: bool,
    reusable: bool,
}

impl Response {
    /// Prepares for the answer to another request.
    pub fn reset(&mut self) {
        self.head.clear();
        *self = Self { head: std::mem::take(&mut self.head), ..Self::default() };
    }

    /// Whether any byte has come.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Status of the answer; 0 before its head is complete.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether another request may follow on the connection.
    pub fn is_reusable(&self) -> bool {
        self.reusable && self.state == State::Done
    }

    /// Takes the next bytes; those of the body go to `body`. Whether the answer is complete.
    ///
    /// # Errors
    /// An answer other than 200 or in an encoding; more than `limit` bytes; not HTTP.
    pub fn feed(&mut self, bytes: &[u8], limit: usize, mut body: impl FnMut(&[u8])) -> Result<bool, PollError> {
        self.begun |= !bytes.is_empty();
        let mut rest = bytes;
        while self.state == State::Head {
            if rest.is_empty() {
                return Ok(false);
            }
            match self.head(rest, limit)? {
                Some(used) => rest = &rest[used..],
                None => return Ok(false),
            }
        }
        self.size = self.size.saturating_add(rest.len());
        if self.size > limit {
            return Err(PollError::TooLarge);
        }
        while !rest.is_empty() && self.state != State::Done {
            rest = self.step(rest, &mut body)?;
        }
        // Nobody asked for what comes after the end.
        self.reusable &= rest.is_empty();
        Ok(self.state == State::Done)
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// Before the answer did.
    pub fn close(&mut self) -> Result<(), PollError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                self.reusable = false;
                Ok(())
            }
            _ => Err(PollError::Connect),
        }
    }

    /// How much of `rest` belongs to the head, if it ends in there.
    fn head(&mut self, rest: &[u8], limit: usize) -> Result<Option<usize>, PollError> {
        let before = self.head.len();
        let head = match before {
            0 => &rest[..rest.len().min(HEAD_LIMIT)],
            _ => {
                self.head.extend_from_slice(&rest[..rest.len().min(HEAD_LIMIT - before)]);
                &self.head[..]
            }
        };
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(head) {
            Ok(Status::Complete(end)) => {
                self.status = parsed.code.unwrap_or(0);
                (self.state, self.reusable) = framing(&parsed, limit)?;
                self.head.clear();
                Ok(Some(end - before))
            }
            Ok(Status::Partial) if head.len() < HEAD_LIMIT => {
                if before == 0 {
                    self.head.extend_from_slice(rest);
                }
                Ok(None)
            }
            Ok(Status::Partial) | Err(_) => Err(PollError::Parse),
        }
    }

    /// Takes the next part of the body off the front of `rest`, which is not empty.
    fn step<'r>(&mut self, rest: &'r [u8], body: &mut impl FnMut(&[u8])) -> Result<&'r [u8], PollError> {
        let [first, tail @ ..] = rest else { return Ok(rest) };
        self.state = match self.state {
            State::Length(left) | State::ChunkData(left) => {
                let (data, after) = rest.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(rest.len()));
                body(data);
                let left = left - data.len() as u64;
                self.state = match (self.state, left) {
                    (State::Length(_), 0) => State::Done,
                    (State::Length(_), _) => State::Length(left),
                    (_, 0) => State::ChunkEnd,
                    (_, _) => State::ChunkData(left),
                };
                return Ok(after);
            }
            State::UntilClose => {
                body(rest);
                return Ok(&[]);
            }
            State::ChunkSize(size, digits, over) => match (first, char::from(*first).to_digit(16)) {
                (b'\n', _) if digits == 0 => return Err(PollError::Parse),
                (b'\n', _) if size == 0 => State::Trailers(false),
                (b'\n', _) => State::ChunkData(size),
                (_, _) if over => State::ChunkSize(size, digits, over),
                (_, Some(digit)) if digits < SIZE_DIGITS => {
                    State::ChunkSize(size << 4 | u64::from(digit), digits + 1, false)
                }
                (b'\r' | b';' | b' ' | b'\t', _) if digits > 0 => State::ChunkSize(size, digits, true),
                _ => return Err(PollError::Parse),
            },
            State::ChunkEnd => match first {
                b'\r' => State::ChunkEnd,
                b'\n' => State::ChunkSize(0, 0, false),
                _ => return Err(PollError::Parse),
            },
            State::Trailers(text) => match first {
                b'\n' if !text => State::Done,
                b'\n' => State::Trailers(false),
                b'\r' => State::Trailers(text),
                _ => State::Trailers(true),
            },
            same @ (State::Head | State::Done) => same,
        };
        Ok(tail)
    }
}

/// How the body comes, and whether the connection can stay.
fn framing(parsed: &httparse::Response<'_, '_>, limit: usize) -> Result<(State, bool), PollError> {
    match parsed.code {
        // Interim answers: the real one follows.
        Some(100 | 102..=199) => return Ok((State::Head, false)),
        Some(200) => {}
        _ => return Err(PollError::Status),
    }
    let (mut length, mut chunked) = (None, false);
    let (mut close, mut keep) = (false, false);
    for header in parsed.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let has = |word: &str| {
            let mut words = header.value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            words.any(|w| w.eq_ignore_ascii_case(word.as_bytes()))
        };
        if is("content-length") {
            let said = std::str::from_utf8(header.value).ok().and_then(|v| v.trim().parse::<u64>().ok());
            let said = said.ok_or(PollError::Parse)?;
            if length.replace(said).is_some_and(|before| before != said) {
                return Err(PollError::Parse);
            }
        } else if is("transfer-encoding") {
            // Any other coding is one that was not asked for.
            if chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(PollError::Parse);
            }
            chunked = true;
        } else if is("content-encoding") {
            if !header.value.trim_ascii().eq_ignore_ascii_case(b"identity") {
                return Err(PollError::Parse);
            }
        } else if is("connection") {
            close |= has("close");
            keep |= has("keep-alive");
        }
    }
    let stays = !close && (keep || parsed.version == Some(1));
    match (chunked, length) {
        (true, both) => Ok((State::ChunkSize(0, 0, false), stays && both.is_none())),
        (false, Some(0)) => Ok((State::Done, stays)),
        (false, Some(length)) if length > limit as u64 => Err(PollError::TooLarge),
        (false, Some(length)) => Ok((State::Length(length), stays)),
        (false, None) => Ok((State::UntilClose, false)),
    }
}

#[cfg(test)]
mod tests;
