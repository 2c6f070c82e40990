//! Chained block hashes of a prompt: one 64-bit number per full block that stands for the block and
//! everything before it.
//!
//! A block is `block_tokens` pseudo-tokens of four bytes (see [`Prompt`]). Its hash is
//! `link(hash of the block before, xxh3(bytes of the block))`; the chain starts from a [`seed`] of the
//! target model, the cache salt and the block size, so that chains of different models, tenants or
//! block sizes have nothing in common. `link` is a bijection in each argument: it adds no collisions
//! to those of xxh3.
//!
//! Only full blocks are hashed, because an engine reuses full blocks only. The picker we replace also
//! hashes the last partial block, which then counts as a miss in the next turn.
//!
//! Bytes of the body are hashed where they lie. Only a block that straddles two segments, and token
//! ids, pass through a buffer of one block.
//!
//! Rejected: xxh64 of block and previous hash (half the speed at 256 bytes) and xxh3 seeded with the
//! previous hash (it derives a secret per call between 241 and 512 bytes: 30 % slower there).
//!
//! Not a defence: xxh3 is not collision-resistant. Who crafts collisions can make an endpoint look
//! as if it held their prompt; the cost is a worse choice, never a wrong answer.

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::{Prompt, Segment};

/// Bytes per pseudo-token.
const TOKEN_BYTES: usize = 4;

/// One step of the chain: `previous`, then `value`.
#[inline]
fn link(previous: u64, value: u64) -> u64 {
    let mut x = previous.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) ^ value;
    x = (x ^ (x >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    x = (x ^ (x >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    x ^ (x >> 33)
}

/// The value that chains of `model`, `salt` and `block_tokens` start from.
pub fn seed(model: &str, salt: Option<&str>, block_tokens: u32) -> u64 {
    // Each part is hashed by itself, so that moving text from one to the other changes the seed.
    let salted = salt.map_or(0, |_| 1);
    let start = link(u64::from(block_tokens), xxh3_64(model.as_bytes()));
    link(link(start, salted), xxh3_64(salt.unwrap_or_default().as_bytes()))
}

/// The chain under construction: hashes so far and the bytes of an unfinished block.
struct Chain {
    hashes: Vec<u64>,
    last: u64,
    pending: Vec<u8>,
    block_bytes: usize,
    max_blocks: usize,
}

impl Chain {
    fn is_full(&self) -> bool {
        self.hashes.len() >= self.max_blocks
    }

    fn block(&mut self, digest: u64) {
        self.last = link(self.last, digest);
        self.hashes.push(self.last);
    }

    /// Appends `bytes` to the stream.
    fn push(&mut self, mut bytes: &[u8]) {
        if self.is_full() {
            return;
        }
        if !self.pending.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(self.block_bytes - self.pending.len()));
            self.pending.extend_from_slice(head);
            bytes = rest;
            if self.pending.len() < self.block_bytes {
                return;
            }
            let digest = xxh3_64(&self.pending);
            self.pending.clear();
            self.block(digest);
        }
        let mut blocks = bytes.chunks_exact(self.block_bytes);
        for block in blocks.by_ref() {
            if self.is_full() {
                return;
            }
            self.block(xxh3_64(block));
        }
        self.pending.extend_from_slice(blocks.remainder());
    }
}

/// Hashes the full blocks of `prompt`, root first, at most `max_blocks` of them.
///
/// `body` is the request body that the prompt's ranges point into; a range outside of it counts as
/// empty. `block_tokens` of 0 counts as 1.
pub fn chain(prompt: &Prompt, body: &[u8], seed: u64, block_tokens: u32, max_blocks: usize) -> Vec<u64> {
    let block_bytes = (block_tokens.max(1) as usize).saturating_mul(TOKEN_BYTES);
    let full = usize::try_from(prompt.byte_len()).unwrap_or(usize::MAX) / block_bytes;
    // Media segments are cheap to claim (one number stands for many tokens): reserve what the cap
    // allows, and no more than a usual prompt needs.
    let hashes = Vec::with_capacity(full.min(max_blocks).min(4096));
    let mut chain = Chain { hashes, last: seed, pending: Vec::new(), block_bytes, max_blocks };
    for segment in &prompt.segments {
        if chain.is_full() {
            break;
        }
        match segment {
            Segment::Body(range) => chain.push(body.get(range.clone()).unwrap_or_default()),
            Segment::Fixed(bytes) => chain.push(bytes),
            Segment::Tokens(ids) => {
                for ids in ids.chunks(64) {
                    let mut bytes = [0u8; 64 * TOKEN_BYTES];
                    for (place, id) in bytes.chunks_exact_mut(TOKEN_BYTES).zip(ids) {
                        place.copy_from_slice(&id.to_le_bytes());
                    }
                    chain.push(&bytes[..ids.len() * TOKEN_BYTES]);
                }
            }
            Segment::Media { digest, tokens } => {
                let mut bytes = [0u8; 64 * TOKEN_BYTES];
                for place in bytes.chunks_exact_mut(TOKEN_BYTES) {
                    place.copy_from_slice(&digest.to_le_bytes());
                }
                let mut left = *tokens as usize;
                while left > 0 && !chain.is_full() {
                    let now = left.min(64);
                    chain.push(&bytes[..now * TOKEN_BYTES]);
                    left -= now;
                }
            }
        }
    }
    chain.hashes
}

#[cfg(test)]
mod tests;
