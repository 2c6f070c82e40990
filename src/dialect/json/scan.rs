//! Where a JSON value ends: the grammar of RFC 8259, strictly, over text that is known to be UTF-8.
//!
//! Nothing is decoded. Containers are read over in a loop, so that depth costs one byte per level and
//! no stack. What is accepted is what serde_json accepts when it reads over a value: escapes must be
//! well formed, but a lone surrogate is the business of whoever decodes it, as is the size of a number.
//! The tests compare the two.

use smallvec::SmallVec;

use super::text;

/// The text is not JSON; the offset of the byte at which that showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub usize);

/// The byte at `at`; NUL, which is no part of JSON outside texts, behind the end.
#[inline]
pub(super) fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

/// The first offset from `at` on that is not white space.
#[inline]
pub(super) fn space(text: &[u8], at: usize) -> usize {
    if byte(text, at) > b' ' { at } else { long_space(text, at) }
}

fn long_space(text: &[u8], mut at: usize) -> usize {
    while matches!(byte(text, at), b' ' | b'\n' | b'\r' | b'\t') {
        at += 1;
        // Indentation, eight spaces at a time.
        while let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) {
            let others = u64::from_le_bytes(*word) ^ u64::from_le_bytes([b' '; 8]);
            at += others.trailing_zeros() as usize / 8;
            if others != 0 {
                break;
            }
        }
    }
    at
}

/// The end of the value at `at`.
pub(super) fn value(text: &[u8], at: usize) -> Result<usize, Broken> {
    match byte(text, at) {
        b'{' => container(text, at, b'}'),
        b'[' => container(text, at, b']'),
        _ => scalar(text, at),
    }
}

/// The end of the container at `open`, which is closed by `close`.
fn container(text: &[u8], open: usize, mut close: u8) -> Result<usize, Broken> {
    // What closes the containers around the innermost one, which `close` closes.
    let mut outer: SmallVec<[u8; 64]> = SmallVec::new();
    let mut at = space(text, open + 1);
    let mut just_opened = true;
    loop {
        let is_empty = just_opened && byte(text, at) == close;
        if !is_empty {
            // A member or an element.
            if close == b'}' {
                let colon = space(text, text::end(text, at)?);
                if byte(text, colon) != b':' {
                    return Err(Broken(colon));
                }
                at = space(text, colon + 1);
            }
            let inner = match byte(text, at) {
                b'{' => Some(b'}'),
                b'[' => Some(b']'),
                _ => None,
            };
            if let Some(inner) = inner {
                outer.push(std::mem::replace(&mut close, inner));
                at = space(text, at + 1);
                just_opened = true;
                continue;
            }
            at = space(text, scalar(text, at)?);
        }
        just_opened = false;
        while byte(text, at) == close {
            match outer.pop() {
                Some(around) => close = around,
                None => return Ok(at + 1),
            }
            at = space(text, at + 1);
        }
        if byte(text, at) != b',' {
            return Err(Broken(at));
        }
        at = space(text, at + 1);
    }
}

/// The end of the text, number or literal at `at`.
fn scalar(text: &[u8], at: usize) -> Result<usize, Broken> {
    match byte(text, at) {
        b'"' => text::end(text, at),
        b'-' | b'0'..=b'9' => number(text, at),
        b't' => literal(text, at, b"true"),
        b'f' => literal(text, at, b"false"),
        b'n' => literal(text, at, b"null"),
        _ => Err(Broken(at)),
    }
}

fn literal(text: &[u8], at: usize, word: &[u8]) -> Result<usize, Broken> {
    match text.get(at..) {
        Some(rest) if rest.starts_with(word) => Ok(at + word.len()),
        _ => Err(Broken(at)),
    }
}

fn number(text: &[u8], at: usize) -> Result<usize, Broken> {
    let whole = at + usize::from(byte(text, at) == b'-');
    let mut at = digits(text, whole)?;
    if at - whole > 1 && byte(text, whole) == b'0' {
        return Err(Broken(whole + 1));
    }
    if byte(text, at) == b'.' {
        at = digits(text, at + 1)?;
    }
    if matches!(byte(text, at), b'e' | b'E') {
        let sign = usize::from(matches!(byte(text, at + 1), b'+' | b'-'));
        at = digits(text, at + 1 + sign)?;
    }
    Ok(at)
}

/// The end of one or more digits.
fn digits(text: &[u8], start: usize) -> Result<usize, Broken> {
    let mut at = start;
    while byte(text, at).is_ascii_digit() {
        at += 1;
    }
    if at == start { Err(Broken(at)) } else { Ok(at) }
}
