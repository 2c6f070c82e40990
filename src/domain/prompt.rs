//! A prompt as one stream of bytes in which four bytes stand for one token.
//!
//! The picker has no tokenizer on this path: text counts as one pseudo-token per four bytes, known
//! token ids are four little-endian bytes each, and a media part is a run of equal pseudo-tokens.
//! (llm-d-router's `token-producer` in `estimate` mode uses the same unit.) Text segments are ranges
//! of the request body, still JSON-escaped, so that nothing is copied: two prompts with equal
//! escaped text are equal, and clients do not change their escaping between turns.
//!
//! Order of the segments is the order in which chat templates place them: tools, then role and
//! content of each message.

use std::ops::Range;

use smallvec::SmallVec;

/// One piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the request body (the inside of a JSON string, or raw JSON).
    Body(Range<usize>),
    /// Fixed bytes between pieces (role markers).
    Fixed(&'static [u8]),
    /// Token ids as the client sent them.
    Tokens(Box<[u32]>),
    /// An image, video or audio part: `tokens` repetitions of the pseudo-token `digest`.
    Media {
        /// Low 32 bits of xxhash64 over the url or the content.
        digest: u32,
        /// Estimated tokens of the part.
        tokens: u32,
    },
}

/// One prompt of a request (a batch has several).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Pieces in template order.
    pub segments: SmallVec<[Segment; 4]>,
}

impl Prompt {
    /// Length in bytes of the stream: four per token.
    pub fn byte_len(&self) -> u64 {
        self.segments
            .iter()
            .map(|s| match s {
                Segment::Body(range) => range.len() as u64,
                Segment::Fixed(bytes) => bytes.len() as u64,
                Segment::Tokens(ids) => ids.len() as u64 * 4,
                Segment::Media { tokens, .. } => u64::from(*tokens) * 4,
            })
            .sum()
    }

    /// Estimated length in tokens, rounded up.
    pub fn estimated_tokens(&self) -> u64 {
        self.byte_len().div_ceil(4)
    }
}
