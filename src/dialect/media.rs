//! Images, videos and sounds in a prompt: what identifies them and how long they are.
//!
//! The picker needs two things of a media part: equal parts must look equal, and its length must
//! have the right order of magnitude. Identity is the low half of xxhash64 over the url or the base64
//! text; length is pixels / 1024 for an image (640x360 unless a base64 image's own header says
//! otherwise), frames x pixels / 1024 for a video, and bytes / 4 for sound (llm-d-router 4.1).
//!
//! Only the header bytes of a base64 image are decoded, at most [`MAX_JPEG_MARKERS`] groups of four
//! characters in the worst case; nothing is fetched. Base64 with JSON escapes inside (`\/`) counts as
//! an image of unknown size, because its offsets are not those of the bytes.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use xxhash_rust::xxh64::xxh64;

use crate::domain::Headers;

/// Most tokens that one part can count as (a 5.8K x 5.8K image). A header is easily forged, and
/// every token of a prompt is hashed.
pub(super) const MAX_PART_TOKENS: u32 = 32_768;
/// Most segments of a JPEG file that are looked through for its size.
const MAX_JPEG_MARKERS: usize = 64;
/// Pixels of one token.
const PIXELS_PER_TOKEN: u64 = 1024;
/// Assumed size of images and videos.
const DEFAULT_SIZE: (u32, u32) = (640, 360);
/// Frames per second that engines sample from a video.
const SAMPLED_FPS: f64 = 2.0;
/// Assumed length of a video in seconds.
const DEFAULT_SECONDS: f64 = 10.0;
/// How far into a data url its `base64,` is looked for.
const DATA_URL_HEAD: usize = 128;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What identifies a part: low 32 bits of xxhash64 over its url or content as written.
pub(super) fn digest(content: &str) -> u32 {
    xxh64(content.as_bytes(), 0) as u32
}

/// Tokens of the image behind `url` (a data url is measured, any other has the default size).
pub(super) fn image_url_tokens(url: &str) -> u32 {
    data_url_content(url).map_or_else(|| pixels_to_tokens(DEFAULT_SIZE), image_base64_tokens)
}

/// Tokens of a base64 image.
pub(super) fn image_base64_tokens(content: &str) -> u32 {
    pixels_to_tokens(image_size(content.as_bytes()).filter(|(w, h)| *w > 0 && *h > 0).unwrap_or(DEFAULT_SIZE))
}

/// Tokens of the sound behind `url`; only a data url has a known length.
pub(super) fn audio_url_tokens(url: &str) -> u32 {
    audio_base64_tokens(data_url_content(url).unwrap_or(url))
}

/// Tokens of base64 sound: decoded bytes / 4.
pub(super) fn audio_base64_tokens(content: &str) -> u32 {
    clamp(content.len() as u64 / 4 * 3 / 4)
}

/// Length of the videos of a request. The headers speak for all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Video {
    /// Tokens of each.
    pub tokens: u32,
}

impl Video {
    /// Reads `x-llm-d-video-duration-seconds`, `-resolution` (`WIDTHxHEIGHT`) and `-fps` (llm-d-router
    /// 6.3). The last is the rate of the source: engines sample two frames per second from it, or all
    /// it has. Malformed and non-positive values count as absent.
    pub fn from_headers(headers: &Headers) -> Self {
        let positive = |name| {
            headers.get(name)?.trim().parse::<f64>().ok().filter(|value: &f64| value.is_finite() && *value > 0.0)
        };
        let seconds = positive("x-llm-d-video-duration-seconds").unwrap_or(DEFAULT_SECONDS);
        let fps = positive("x-llm-d-video-fps").map_or(SAMPLED_FPS, |source| source.min(SAMPLED_FPS));
        let size = headers
            .get("x-llm-d-video-resolution")
            .and_then(|text| {
                let (width, height) = text.trim().split_once(['x', 'X'])?;
                Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
            })
            .filter(|(w, h)| *w > 0 && *h > 0)
            .unwrap_or(DEFAULT_SIZE);
        // The cast saturates.
        let frames = ((seconds * fps).ceil() as u64).max(1);
        Self { tokens: clamp(frames.saturating_mul(u64::from(pixels_to_tokens(size)))) }
    }
}

fn pixels_to_tokens((width, height): (u32, u32)) -> u32 {
    clamp(u64::from(width) * u64::from(height) / PIXELS_PER_TOKEN)
}

fn clamp(tokens: u64) -> u32 {
    tokens.clamp(1, u64::from(MAX_PART_TOKENS)) as u32
}

fn data_url_content(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("data:")?;
    let head = &rest.as_bytes()[..rest.len().min(DATA_URL_HEAD)];
    let marker = memchr::memmem::find(head, b"base64,")?;
    rest.get(marker + b"base64,".len()..)
}

/// Width and height of a PNG, GIF, WebP or JPEG image.
fn image_size(base64: &[u8]) -> Option<(u32, u32)> {
    let image = Base64Bytes(base64);
    let escaped = |text: &[u8]| memchr::memchr(b'\\', text).is_some();
    if escaped(&base64[..base64.len().min(64)]) {
        return None;
    }
    let start: [u8; 12] = image.at(0)?;
    if start.starts_with(b"\x89PNG\r\n\x1a\n") {
        let [w0, w1, w2, w3, h0, h1, h2, h3] = image.at(16)?;
        Some((u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3])))
    } else if start.starts_with(b"GIF8") {
        let [w0, w1, h0, h1] = image.at(6)?;
        Some((u16::from_le_bytes([w0, w1]).into(), u16::from_le_bytes([h0, h1]).into()))
    } else if start.starts_with(b"RIFF") && start.ends_with(b"WEBP") {
        webp_size(&image)
    } else if start.starts_with(b"\xff\xd8") && !escaped(base64) {
        jpeg_size(&image)
    } else {
        None
    }
}

fn webp_size(image: &Base64Bytes<'_>) -> Option<(u32, u32)> {
    match &image.at::<4>(12)? {
        b"VP8 " => {
            let [w0, w1, h0, h1] = image.at(26)?;
            Some(((u16::from_le_bytes([w0, w1]) & 0x3fff).into(), (u16::from_le_bytes([h0, h1]) & 0x3fff).into()))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(image.at(21)?);
            Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
        }
        b"VP8X" => {
            let [w0, w1, w2, h0, h1, h2] = image.at(24)?;
            Some((u32::from_le_bytes([w0, w1, w2, 0]) + 1, u32::from_le_bytes([h0, h1, h2, 0]) + 1))
        }
        _ => None,
    }
}

fn jpeg_size(image: &Base64Bytes<'_>) -> Option<(u32, u32)> {
    let mut at = 2_usize;
    for _ in 0..MAX_JPEG_MARKERS {
        let [lead, marker, high, low] = image.at(at)?;
        match (lead, marker) {
            // Start of frame, in all its variants.
            (0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) => {
                let [h0, h1, w0, w1] = image.at(at + 5)?;
                return Some((u16::from_be_bytes([w0, w1]).into(), u16::from_be_bytes([h0, h1]).into()));
            }
            // Fill byte.
            (0xff, 0xff) => at += 1,
            // Scan data and the end come after the frame header.
            (0xff, 0xda | 0xd9) => return None,
            // Markers without a length.
            (0xff, 0x01 | 0xd0..=0xd7) => at += 2,
            (0xff, _) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
            _ => return None,
        }
    }
    None
}

/// Random access to the bytes behind base64 text.
struct Base64Bytes<'a>(&'a [u8]);

impl Base64Bytes<'_> {
    /// `N` (at most 12) bytes from `offset`; `None` behind the end and where the text is not base64.
    fn at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let first = offset / 3;
        let last = (offset + N).div_ceil(3);
        let text = self.0.get(first.checked_mul(4)?..last.checked_mul(4)?.min(self.0.len()))?;
        let mut bytes = [0; 18];
        let decoded = BASE64.decode_slice(text, &mut bytes).ok()?;
        let start = offset - first * 3;
        bytes[..decoded].get(start..start + N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests;
