use proptest::prelude::*;
use smallvec::smallvec;

use super::*;

fn text(body: &[u8]) -> Prompt {
    Prompt { segments: smallvec![Segment::Body(0..body.len())] }
}

fn hash(body: &[u8], block_tokens: u32) -> Vec<u64> {
    chain(&text(body), body, seed("m", None, block_tokens), block_tokens, usize::MAX)
}

/// The definition, written down naively over the whole stream.
fn naive(stream: &[u8], start: u64, block_tokens: u32) -> Vec<u64> {
    let mut last = start;
    stream
        .chunks_exact(block_tokens as usize * 4)
        .map(|block| {
            last = link(last, xxh3_64(block));
            last
        })
        .collect()
}

#[test]
fn only_full_blocks_count() {
    assert_eq!(hash(&[7; 255], 64).len(), 0);
    assert_eq!(hash(&[7; 256], 64).len(), 1);
    assert_eq!(hash(&[7; 511], 64).len(), 1);
    assert_eq!(hash(&[], 64).len(), 0);
    assert_eq!(hash(&[7; 8], 0).len(), 2, "a block size of zero counts as one");
}

#[test]
fn equal_blocks_at_different_places_differ() {
    let chain = hash(&[7; 256 * 50], 64);
    let distinct: std::collections::HashSet<_> = chain.iter().collect();
    assert_eq!(distinct.len(), 50);
}

#[test]
fn seeds_keep_models_salts_and_block_sizes_apart() {
    let variants = [
        seed("m", None, 64),
        seed("m", Some(""), 64),
        seed("m", Some("a"), 64),
        seed("ma", None, 64),
        seed("", Some("ma"), 64),
        seed("m", None, 65),
        seed("", None, 64),
    ];
    let body = [9u8; 1024];
    let firsts: std::collections::HashSet<_> =
        variants.iter().flat_map(|s| chain(&text(&body), &body, *s, 64, usize::MAX)).collect();
    assert_eq!(firsts.len(), variants.len() * 4, "no hash of one variant occurs in another");
}

#[test]
fn the_cap_cuts_the_tail() {
    let body = [3u8; 4096];
    let all = hash(&body, 16);
    for cap in [0, 1, 5, all.len(), all.len() + 1] {
        let cut = chain(&text(&body), &body, seed("m", None, 16), 16, cap);
        assert_eq!(cut, all[..cap.min(all.len())]);
    }
}

#[test]
fn a_huge_media_claim_stops_at_the_cap() {
    let prompt = Prompt { segments: smallvec![Segment::Media { digest: 1, tokens: u32::MAX }; 3] };
    assert_eq!(chain(&prompt, &[], 0, 64, 100).len(), 100);
}

#[test]
fn ranges_outside_the_body_are_empty() {
    #[allow(clippy::reversed_empty_ranges, reason = "the point of the test")]
    let prompt = Prompt { segments: smallvec![Segment::Body(5..500), Segment::Body(9..3), Segment::Body(0..4)] };
    assert_eq!(chain(&prompt, b"abcdefgh", 0, 1, 10), naive(b"abcd", 0, 1));
}

/// Segments over one growing body, and the stream they stand for.
fn segments() -> impl Strategy<Value = (Vec<u8>, Prompt, Vec<u8>)> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(|b| (0u8, b, Vec::new(), 0)),
        Just((1u8, Vec::new(), Vec::new(), 0)),
        proptest::collection::vec(any::<u32>(), 0..150).prop_map(|t| (2u8, Vec::new(), t, 0)),
        (any::<u32>(), 0u32..150).prop_map(|(d, n)| (3u8, Vec::new(), vec![d], n)),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| {
        let (mut body, mut prompt, mut stream) = (Vec::new(), Prompt::default(), Vec::new());
        for (kind, bytes, ids, count) in pieces {
            prompt.segments.push(match kind {
                0 => {
                    let start = body.len();
                    body.extend_from_slice(&bytes);
                    stream.extend_from_slice(&bytes);
                    Segment::Body(start..body.len())
                }
                1 => {
                    stream.extend_from_slice(b"user");
                    Segment::Fixed(b"user")
                }
                2 => {
                    stream.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
                    Segment::Tokens(ids.into())
                }
                _ => {
                    stream.extend((0..count).flat_map(|_| ids[0].to_le_bytes()));
                    Segment::Media { digest: ids[0], tokens: count }
                }
            });
        }
        (body, prompt, stream)
    })
}

proptest! {
    #[test]
    fn segment_boundaries_do_not_matter((body, prompt, stream) in segments(), block in 1u32..40) {
        prop_assert_eq!(prompt.byte_len(), stream.len() as u64);
        prop_assert_eq!(chain(&prompt, &body, 42, block, usize::MAX), naive(&stream, 42, block));
    }

    #[test]
    fn a_grown_prompt_keeps_its_full_blocks(
        body in proptest::collection::vec(any::<u8>(), 0..800),
        more in proptest::collection::vec(any::<u8>(), 0..300),
        block in 1u32..20,
    ) {
        let short = hash(&body, block);
        let long = hash(&[body.clone(), more].concat(), block);
        prop_assert_eq!(&long[..short.len()], &short[..]);
    }

    #[test]
    fn a_changed_byte_changes_every_block_from_there(
        body in proptest::collection::vec(any::<u8>(), 64..600),
        at in any::<prop::sample::Index>(),
    ) {
        let mut other = body.clone();
        let at = at.index(body.len());
        other[at] ^= 1;
        let (a, b) = (hash(&body, 4), hash(&other, 4));
        for (i, (x, y)) in a.iter().zip(&b).enumerate() {
            prop_assert_eq!(x == y, i < at / 16, "block {}", i);
        }
    }
}
