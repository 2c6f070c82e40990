//! Prompts made from block ids: four bytes a token, so that the picker counts exactly the tokens of the trace.
//!
//! Equal ids give equal bytes, different ids different ones, and what lies after a prefix does not change it: all
//! that a prefix index can tell apart. The bytes are no JSON and no words; nothing that runs in a replay reads
//! them but the hash of the index.

use bytes::Bytes;

/// Bytes that stand for one token.
pub const TOKEN_BYTES: usize = 4;

/// Spreads every bit of `x` over all bits; a bijection, so that ids stay apart.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The text of a prompt of `tokens` tokens that consists of `blocks`, each of `block_tokens` tokens, the last one
/// perhaps of fewer. Tokens past the last block are filled from `own`, which should be like no other id; blocks past
/// the last token are left out.
pub fn prompt(blocks: &[u64], block_tokens: u32, tokens: u32, own: u64) -> Bytes {
    let block_bytes = (block_tokens.max(1) as usize) * TOKEN_BYTES;
    let length = tokens as usize * TOKEN_BYTES;
    let mut text = Vec::with_capacity(length);
    for id in blocks {
        let left = length - text.len();
        if left == 0 {
            break;
        }
        fill(&mut text, *id, left.min(block_bytes));
    }
    let left = length - text.len();
    fill(&mut text, !own, left);
    Bytes::from(text)
}

/// Appends `length` bytes that repeat a word made from `id`.
fn fill(text: &mut Vec<u8>, id: u64, mut length: usize) {
    let word = mix(id).to_le_bytes();
    let mut pattern = [0u8; 128];
    for place in pattern.chunks_exact_mut(word.len()) {
        place.copy_from_slice(&word);
    }
    while length > 0 {
        let now = length.min(pattern.len());
        text.extend_from_slice(&pattern[..now]);
        length -= now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_ids_are_equal_bytes_and_nothing_else_is(
            shared in proptest::collection::vec(0u64..1000, 0..6),
            one in 1000u64..2000, other in 2000u64..3000, cut in 0u32..64,
        ) {
            let prompt_of = |last: u64| {
                let blocks: Vec<u64> = shared.iter().copied().chain([last]).collect();
                prompt(&blocks, 64, 64 * blocks.len() as u32 - cut, 9)
            };
            let (a, b) = (prompt_of(one), prompt_of(other));
            let common = shared.len() * 64 * TOKEN_BYTES;
            prop_assert_eq!(&a[..common], &b[..common]);
            prop_assert_ne!(&a[common..], &b[common..]);
            prop_assert_eq!(a.len(), common + (64 - cut as usize) * TOKEN_BYTES);
        }
    }

    #[test]
    fn a_prompt_has_the_length_of_its_tokens_whatever_the_blocks_say() {
        assert_eq!(prompt(&[1, 2, 3], 16, 20, 0).len(), 80);
        assert_eq!(prompt(&[], 16, 20, 0).len(), 80);
        assert_eq!(prompt(&[1], 16, 0, 0).len(), 0);
        assert_ne!(prompt(&[1], 16, 20, 5), prompt(&[1], 16, 20, 6), "what no block covers is the request's own");
    }
}
