//! Lists of token ids: the one kind of prompt whose every byte is decoded.

use super::scan::{byte, space};

/// Ids that room is made for at once: commas alone are no ids, and a long list of them must not reserve much.
const FIRST_RESERVATION: usize = 1 << 17;

/// Reads the list of ids that `text` starts with (at its bracket): the ids and the length of the list,
/// or the offset of the first element that is no id. If the list is not even JSON, the offset is that
/// of some element.
///
/// Decodes in one pass; before it, a search for the end and a count of the commas find the size of the
/// one allocation.
pub(super) fn read(text: &[u8]) -> Result<(Box<[u32]>, usize), usize> {
    let Some(close) = memchr::memchr(b']', text) else { return Err(0) };
    let list = &text[..close];
    let mut at = space(list, 1);
    if at == close {
        return Ok((Box::default(), close + 1));
    }
    let mut ids = Vec::with_capacity((memchr::memchr_iter(b',', list).count() + 1).min(FIRST_RESERVATION));
    loop {
        let (id, end) = number(list, at).ok_or(at)?;
        ids.push(id);
        let next = space(list, end);
        match byte(list, next) {
            b',' => at = space(list, next + 1),
            _ if next == close => return Ok((ids.into_boxed_slice(), close + 1)),
            // A fraction, an exponent, or no JSON.
            _ => return Err(at),
        }
    }
}

/// The whole number at `at`, if it is one that fits, and where it ends.
#[inline]
fn number(list: &[u8], at: usize) -> Option<(u32, usize)> {
    let first = byte(list, at);
    let (id, length) = match list.get(at..).and_then(<[u8]>::first_chunk).and_then(short_number) {
        Some(read) => read,
        None => long_number(list, at)?,
    };
    let is_number = length == 1 || (length > 1 && first != b'0');
    is_number.then_some((id, at + length))
}

/// The value and number of the digits that `word` starts with, if there are less than eight.
#[inline]
fn short_number(word: &[u8; 8]) -> Option<(u32, usize)> {
    const ONES: u64 = u64::MAX / 255;
    let word = u64::from_le_bytes(*word);
    // The highest bit of each byte that is below '0' or above '9', exact up to the first of them.
    let others = (word.wrapping_sub(ONES * 0x30) | word.wrapping_add(ONES * 0x46) | word) & (ONES << 7);
    if others == 0 {
        return None;
    }
    let length = others.trailing_zeros() as usize / 8;
    if length == 0 {
        return Some((0, 0));
    }
    // With zeros in front of the digits the eight are added up in pairs, fours and all.
    let digits = (word << (64 - 8 * length)) & (ONES * 0x0f);
    let pairs = (digits.wrapping_mul(10 << 8 | 1) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100 << 16 | 1) >> 16) & 0x0000_ffff_0000_ffff;
    let all = fours.wrapping_mul(10_000 << 32 | 1) >> 32;
    Some((all as u32, length))
}

/// The same byte by byte.
fn long_number(list: &[u8], at: usize) -> Option<(u32, usize)> {
    let mut id = 0_u32;
    let mut length = 0;
    while let digit @ b'0'..=b'9' = byte(list, at + length) {
        id = id.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?;
        length += 1;
    }
    Some((id, length))
}
