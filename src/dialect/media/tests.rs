use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use proptest::prelude::*;

use super::*;

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut image = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    image.extend(width.to_be_bytes());
    image.extend(height.to_be_bytes());
    image.extend([8, 6, 0, 0, 0]);
    image
}

fn gif(width: u16, height: u16) -> Vec<u8> {
    [b"GIF89a".as_slice(), &width.to_le_bytes(), &height.to_le_bytes(), &[0; 3]].concat()
}

fn jpeg(width: u16, height: u16, exif: u16, frame: u8) -> Vec<u8> {
    let mut image = vec![0xff, 0xd8, 0xff, 0xe1];
    image.extend((exif + 2).to_be_bytes());
    image.extend(vec![0xff; usize::from(exif)]);
    image.extend([0xff, 0xff, 0xdb, 0, 4, 1, 2, 0xff, frame, 0, 17, 8]);
    image.extend(height.to_be_bytes());
    image.extend(width.to_be_bytes());
    image.extend([3; 10]);
    image
}

fn webp(kind: &[u8; 4], rest: &[u8]) -> Vec<u8> {
    [b"RIFF\x10\0\0\0WEBP".as_slice(), kind, &[10, 0, 0, 0], rest].concat()
}

fn size(image: &[u8]) -> Option<(u32, u32)> {
    image_size(BASE64_STANDARD.encode(image).as_bytes())
}

#[test]
fn sizes_come_from_the_header_bytes() {
    assert_eq!(size(&png(1024, 768)), Some((1024, 768)));
    assert_eq!(size(&gif(300, 200)), Some((300, 200)));
    assert_eq!(size(&webp(b"VP8 ", &[0, 0, 0, 0x9d, 1, 0x2a, 0x40, 0x41, 0xf0, 0])), Some((320, 240)));
    let bits: u32 = 639 | 479 << 14 | 1 << 28;
    assert_eq!(size(&webp(b"VP8L", &[&[0x2f], bits.to_le_bytes().as_slice()].concat())), Some((640, 480)));
    assert_eq!(size(&webp(b"VP8X", &[0, 0, 0, 0, 0xff, 0x0f, 0, 0xff, 0x07, 0])), Some((4096, 2048)));
    for exif in [0, 1, 2, 3, 30_000] {
        assert_eq!(size(&jpeg(1920, 1080, exif, 0xc2)), Some((1920, 1080)), "{exif}");
    }
    assert_eq!(size(&jpeg(1920, 1080, 5, 0xc4)), None, "a Huffman table is no frame");
    assert_eq!(size(b"%PDF-1.7 and so on"), None);
    assert_eq!(size(b"\xff\xd8\xff\xe0"), None);
    let unpadded = BASE64_STANDARD_NO_PAD.encode(&gif(7, 9)[..12]);
    assert_eq!(image_size(unpadded.as_bytes()), Some((7, 9)));
}

#[test]
fn tokens_follow_the_size_and_are_bounded() {
    let url = |image: &[u8]| format!("data:image/png;base64,{}", BASE64_STANDARD.encode(image));
    assert_eq!(image_url_tokens("https://example.com/cat.png"), 225);
    assert_eq!(image_url_tokens(&url(&png(1024, 1024))), 1024);
    assert_eq!(image_url_tokens(&url(&png(1, 1))), 1);
    assert_eq!(image_url_tokens(&url(&png(0, 5))), 225);
    assert_eq!(image_url_tokens(&url(&png(u32::MAX, u32::MAX))), MAX_PART_TOKENS);
    assert_eq!(image_url_tokens("data:image/png,rest"), 225);
    assert_eq!(image_url_tokens(&format!("data:{}\u{e9}", "a".repeat(DATA_URL_HEAD - 1))), 225);
    let escaped = format!("iVBO\\/{}", &BASE64_STANDARD.encode(png(4096, 4096))[4..]);
    assert_eq!(image_base64_tokens(&escaped), 225);
    assert_eq!(audio_base64_tokens(&"A".repeat(1600)), 300);
    assert_eq!(audio_url_tokens(&format!("data:audio/wav;base64,{}", "A".repeat(1600))), 300);
    assert_eq!(audio_url_tokens(""), 1);
}

#[test]
fn video_headers_override_the_defaults() {
    let tokens = |headers: Headers| Video::from_headers(&headers).tokens;
    assert_eq!(tokens(Headers::default()), 20 * 225);
    assert_eq!(tokens(Headers::from([("x-llm-d-video-duration-seconds", "2.5")])), 5 * 225);
    assert_eq!(tokens(Headers::from([("x-llm-d-video-resolution", "1280x720")])), 20 * 900);
    assert_eq!(tokens(Headers::from([("x-llm-d-video-fps", "1")])), 10 * 225);
    assert_eq!(tokens(Headers::from([("x-llm-d-video-fps", "60")])), 20 * 225);
    for wrong in ["", "0", "-1", "NaN", "inf", "x", "1e400"] {
        let headers = Headers::from([
            ("x-llm-d-video-duration-seconds", wrong),
            ("x-llm-d-video-fps", wrong),
            ("x-llm-d-video-resolution", wrong),
        ]);
        assert_eq!(tokens(headers), 20 * 225, "{wrong:?}");
    }
    assert_eq!(tokens(Headers::from([("x-llm-d-video-duration-seconds", "1e300")])), MAX_PART_TOKENS);
}

proptest! {
    #[test]
    fn any_header_gives_some_length(mut image in prop::collection::vec(any::<u8>(), 0..80), start in 0..6_usize, text in ".{0,60}") {
        let magic: &[u8] = [b"\x89PNG\r\n\x1a\n", b"GIF8".as_slice(), b"\xff\xd8\xff", b"RIFF....WEBPVP8 ", b"RIFF....WEBPVP8X", b""][start];
        image.splice(0..0, magic.iter().copied());
        for content in [BASE64_STANDARD.encode(&image), text] {
            let tokens = image_base64_tokens(&content);
            prop_assert!((1..=MAX_PART_TOKENS).contains(&tokens));
            let tokens = image_url_tokens(&format!("data:;base64,{content}"));
            prop_assert!((1..=MAX_PART_TOKENS).contains(&tokens));
        }
    }

    #[test]
    fn base64_is_addressed_by_byte(bytes in prop::collection::vec(any::<u8>(), 0..40), offset in 0..45_usize) {
        let text = BASE64_STANDARD.encode(&bytes);
        let expected = bytes.get(offset..offset + 6).map(|slice| <[u8; 6]>::try_from(slice).expect("six"));
        prop_assert_eq!(Base64Bytes(text.as_bytes()).at::<6>(offset), expected);
    }
}
