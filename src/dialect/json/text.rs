//! Where a JSON text ends: most bytes of a prompt are looked at here, and nowhere else.
//!
//! Texts are scanned in blocks of [`BLOCK`] bytes. Of each byte and the one before it a few comparisons
//! tell whether the two are *common*: a byte that means itself, or the second byte of `\n` or `\"`.
//! There is no branch and no state in that, so that the compiler makes vector instructions of it on
//! every target, and nothing depends on how dense the escapes are or where they stand. A block that is
//! common throughout is passed in one go. Any other block (one with the closing quote, a rarer escape, a
//! backslash behind a backslash, or a mistake) is read word by word, as are the first bytes of
//! every text, because most texts are keys and short values.
//!
//! A backslash before the block starts an escape, unless it ends one. Only `\\` ends in a backslash, and
//! that is never common: [`steps`] reads it and stops further behind it. So the byte before a
//! block is a backslash only if the first byte of the block is the second of an escape.
//!
//! Measured on 128 KB of text (x86-64 with SSE2; thousands of instructions): no escapes, one every 85, 28
//! and 6 bytes. This: 107, 107, 107, 107. Words of eight bytes, as in serde_json: 295, 369, 507, 2148.
//! `memchr2` for quotes and backslashes with one more pass for control characters: 60, 213, 457, 2942.
//! Blocks of flags that are turned into bits, which are visited: 115, 226, 320, 956. Rare escapes only,
//! one every 5 bytes: 1,460, in words 1,350.

use super::scan::Broken;

/// Bytes that are looked at together.
const BLOCK: usize = 64;
/// Width of the vectors that all targets have.
const LANES: usize = 16;
/// Length of the start of a text that is read in words.
const HEAD: usize = 16;
/// Bytes without a rare escape before blocks are tried again.
const CALM: usize = 16;

/// The end of the text whose opening quote should be at `quote`.
#[inline]
pub(super) fn end(text: &[u8], quote: usize) -> Result<usize, Broken> {
    if text.get(quote) != Some(&b'"') {
        return Err(Broken(quote));
    }
    let mut at = quote + 1;
    while at < quote + HEAD {
        let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) else { break };
        let special = specials(word);
        if special != 0 {
            let found = at + special.trailing_zeros() as usize / 8;
            if text.get(found) == Some(&b'"') {
                return Ok(found + 1);
            }
            break;
        }
        at += size_of_val(word);
    }
    long_end(text, at)
}

/// The end of the text that goes on at `at`, which is in no escape and not behind a backslash.
#[inline(never)]
fn long_end(text: &[u8], mut at: usize) -> Result<usize, Broken> {
    loop {
        let after = at + BLOCK * common_blocks(text, at);
        // Of an escape that the blocks ended in, the second byte has not been looked at.
        let from = after - usize::from(text.get(after - 1) == Some(&b'\\'));
        match steps(text, from, after + BLOCK)? {
            Step::End(end) => return Ok(end),
            Step::Inside(inside) => at = inside,
        }
    }
}

/// How many blocks from `at` on are common throughout.
#[inline]
fn common_blocks(text: &[u8], at: usize) -> usize {
    let (Some(bytes), Some(before)) = (text.get(at..), text.get(at - 1..)) else { return 0 };
    let blocks = bytes.as_chunks::<BLOCK>().0.iter().zip(before.as_chunks::<BLOCK>().0);
    blocks.take_while(|(block, before)| is_common(block, before)).count()
}

/// Whether each byte of the block, behind the one before it, means itself or ends `\n` or `\"`. Written
/// so that it is compiled to vectors: no early end, and the lowest bytes are compared once.
#[inline(always)]
fn is_common(block: &[u8; BLOCK], before: &[u8; BLOCK]) -> bool {
    // A quote is common behind a backslash and nowhere else; behind a backslash only a quote and n are.
    let rare = |i: usize| ((block[i] == b'"') ^ (before[i] == b'\\')) & (block[i] != b'n');
    let mut any = false;
    for i in 0..LANES {
        let (j, k, l) = (i + LANES, i + 2 * LANES, i + 3 * LANES);
        let lowest = block[i].min(block[j]).min(block[k].min(block[l]));
        any |= rare(i) | rare(j) | rare(k) | rare(l) | (lowest < b' ');
    }
    !any
}

enum Step {
    /// The closing quote was found; the offset behind it.
    End(usize),
    /// The text goes on at this offset, which is in no escape and not behind a backslash.
    Inside(usize),
}

/// Reads word by word from `at`, which is in no escape, to `until` or a little further.
#[inline]
fn steps(text: &[u8], mut at: usize, mut until: usize) -> Result<Step, Broken> {
    loop {
        if let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) {
            let special = specials(word);
            if special == 0 {
                at += size_of_val(word);
                if at >= until {
                    return Ok(Step::Inside(at));
                }
                continue;
            }
            at += special.trailing_zeros() as usize / 8;
        }
        match text.get(at) {
            Some(b'"') => return Ok(Step::End(at + 1)),
            Some(b'\\') => {
                // Escapes often come in a row.
                while text.get(at) == Some(&b'\\') {
                    let length = escape(text, at)?;
                    let is_common = matches!(text[at + 1], b'n' | b'"');
                    at += length;
                    if !is_common {
                        until = until.max(at + CALM);
                    }
                }
                if at >= until {
                    return Ok(Step::Inside(at));
                }
            }
            Some(..b' ') | None => return Err(Broken(at)),
            Some(_) => at += 1,
        }
    }
}

/// The highest bit of each byte that may not stand for itself: quotes, backslashes, control
/// characters. Exact up to the first one, which is all that is used.
#[inline]
fn specials(word: &[u8; 8]) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let word = u64::from_le_bytes(*word);
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
    let quote = is_zero(word ^ (ONES * u64::from(b'"')));
    let backslash = is_zero(word ^ (ONES * u64::from(b'\\')));
    (control | quote | backslash) & (ONES << 7)
}

/// The length of the escape at `at`.
#[inline]
fn escape(text: &[u8], at: usize) -> Result<usize, Broken> {
    match text.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
        Some(b'u') => match text.get(at + 2..at + 6) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(6),
            _ => Err(Broken(at + 2)),
        },
        _ => Err(Broken(at + 1)),
    }
}
