//! Request bodies as they come and go: collected without copies where that is possible, cut into the
//! pieces that a data plane accepts.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Most bytes of one streamed body reply (protocol 3.7, R-18): some data planes limit a message to 64 KiB.
pub const MAX_PIECE: usize = 62_000;

/// Chunks kept apart before copying starts. A body in more pieces than this is made of tiny chunks, and
/// keeping each one (with the message that it is a slice of) would cost more than the bytes do.
const MAX_CHUNKS: usize = 256;

/// A body that arrives in chunks, bounded by the caller through [`Collected::len`].
///
/// One chunk is handed on as it came. Several are joined once, at the end; after [`MAX_CHUNKS`] they
/// are joined as they come, so memory is at most about twice the bytes received.
#[derive(Debug, Default)]
pub struct Collected {
    chunks: SmallVec<[Bytes; 2]>,
    joined: BytesMut,
    len: usize,
}

impl Collected {
    /// Bytes received so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds a chunk; empty ones (end markers) leave no trace.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.len += chunk.len();
        if self.joined.is_empty() && self.chunks.len() < MAX_CHUNKS {
            self.chunks.push(chunk);
            return;
        }
        if self.joined.is_empty() {
            self.joined.reserve(self.len);
            for earlier in self.chunks.drain(..) {
                self.joined.extend_from_slice(&earlier);
            }
        }
        self.joined.extend_from_slice(&chunk);
    }

    /// The whole body.
    pub fn finish(self) -> Bytes {
        if self.joined.is_empty() { join(&self.chunks) } else { self.joined.freeze() }
    }
}

/// One `Bytes` of several; no copy for none or one.
pub fn join(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [only] => only.clone(),
        many => {
            let mut joined = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            for piece in many {
                joined.extend_from_slice(piece);
            }
            joined.freeze()
        }
    }
}

/// Cuts a body into pieces of at most [`MAX_PIECE`] bytes. Long parts are sliced without a copy; short parts
/// in front of others (a rewritten head) are joined, because a message costs more than a copy of one.
/// An empty body gives no pieces.
pub fn pieces(parts: &[Bytes], mut emit: impl FnMut(Bytes)) {
    let mut short = BytesMut::new();
    let last = parts.iter().rposition(|part| !part.is_empty());
    for (index, part) in parts.iter().enumerate() {
        let mut rest = part.clone();
        while !rest.is_empty() {
            if short.is_empty() && (rest.len() >= MAX_PIECE || Some(index) == last) {
                emit(rest.split_to(rest.len().min(MAX_PIECE)));
                continue;
            }
            short.extend_from_slice(&rest.split_to(rest.len().min(MAX_PIECE - short.len())));
            if short.len() == MAX_PIECE {
                emit(std::mem::take(&mut short).freeze());
            }
        }
    }
    if !short.is_empty() {
        emit(short.freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(parts: &[Bytes]) -> Vec<Bytes> {
        let mut out = Vec::new();
        pieces(parts, |piece| out.push(piece));
        out
    }

    #[test]
    fn sizes_of_the_specification() {
        for (total, expected) in [(0, vec![]), (1, vec![1]), (62_000, vec![62_000]), (62_001, vec![62_000, 1])] {
            let sizes: Vec<_> = cut(&[Bytes::from(vec![7; total])]).iter().map(Bytes::len).collect();
            assert_eq!(sizes, expected);
        }
        let sizes: Vec<_> = cut(&[Bytes::from(vec![7; 125_000])]).iter().map(Bytes::len).collect();
        assert_eq!(sizes, [62_000, 62_000, 1000]);
    }

    #[test]
    fn one_chunk_is_not_copied() {
        let chunk = Bytes::from(vec![1; 100_000]);
        let mut collected = Collected::default();
        collected.push(chunk.clone());
        collected.push(Bytes::new());
        let body = collected.finish();
        assert_eq!(body.as_ptr(), chunk.as_ptr());
        let out = cut(std::slice::from_ref(&body));
        assert_eq!(out[0].as_ptr(), chunk.as_ptr());
        assert_eq!(out[1].as_ptr(), chunk[MAX_PIECE..].as_ptr());
    }

    #[test]
    fn tiny_chunks_are_joined_as_they_come() {
        let mut collected = Collected::default();
        for byte in 0..2000_u32 {
            collected.push(Bytes::from(vec![byte as u8]));
            assert!(collected.chunks.len() <= MAX_CHUNKS);
        }
        assert_eq!(collected.len(), 2000);
        assert_eq!(collected.finish().len(), 2000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn nothing_is_lost_and_no_piece_is_too_large(lens in prop::collection::vec(0_usize..150_000, 0..5)) {
            let parts: Vec<Bytes> = lens
                .iter()
                .enumerate()
                .map(|(seed, len)| (0..*len).map(|i| (i * 31 + seed) as u8).collect::<Vec<_>>().into())
                .collect();
            let out = cut(&parts);
            prop_assert!(out.iter().all(|piece| !piece.is_empty() && piece.len() <= MAX_PIECE));
            prop_assert_eq!(out.concat(), parts.concat());
            let mut collected = Collected::default();
            parts.iter().for_each(|part| collected.push(part.clone()));
            prop_assert_eq!(collected.len(), parts.concat().len());
            prop_assert_eq!(collected.finish(), parts.concat());
        }
    }
}
