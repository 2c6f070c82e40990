//! Answers of many shapes, cut in many ways.

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 20;

/// What came of an answer: the outcome, the body, whether the connection can stay.
type Outcome = (Result<bool, PollError>, Vec<u8>, bool);

/// Feeds `pieces`, then ends the connection.
fn take<'p>(pieces: impl IntoIterator<Item = &'p [u8]>, limit: usize) -> Outcome {
    let (mut response, mut body) = (Response::default(), Vec::new());
    let mut outcome = Ok(false);
    for piece in pieces {
        outcome = response.feed(piece, limit, |data| body.extend_from_slice(data));
        if outcome.is_err() {
            break;
        }
    }
    let stays = response.is_reusable();
    if outcome == Ok(false) {
        outcome = response.close().map(|()| true);
    }
    (outcome, body, stays)
}

fn whole(text: &str) -> Outcome {
    take([text.as_bytes()], LIMIT)
}

#[test]
fn the_framings_of_an_answer() {
    let good = |head: &str, body: &str, stays: bool| {
        let text = format!("{head}\r\n\r\n{body}");
        assert_eq!(whole(&text), (Ok(true), b"page\n".to_vec(), stays), "{text}");
    };
    good("HTTP/1.1 200 OK\r\nContent-Length: 5", "page\n", true);
    good("HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5", "page\n", true);
    good("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nConnection: Close", "page\n", false);
    good("HTTP/1.0 200 OK\r\ncontent-length: 5", "page\n", false);
    good("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: x, Keep-Alive", "page\n", true);
    good("HTTP/1.1 200\r\ncontent-encoding: identity", "page\n", false);
    good(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\na: b\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5",
        "page\n",
        true,
    );
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked";
    good(chunked, "5\r\npage\n\r\n0\r\n\r\n", true);
    good(chunked, "002;a=\"b\"\r\npa\r\n3 \r\nge\n\r\n0\r\nchecksum: 1\r\nb: 2\r\n\r\n", true);
    good(chunked, "5\npage\n\n0\n\n", true);
    // Both say something; the server may mean either, so the connection is not trusted.
    good("HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked", "5\r\npage\n\r\n0\r\n\r\n", false);
    // Bytes that nobody asked for.
    good("HTTP/1.1 200 OK\r\ncontent-length: 5", "page\nHTTP/1.1 408", false);
    assert_eq!(whole("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), (Ok(true), Vec::new(), true));
}

#[test]
fn what_is_no_page() {
    let bad = |text: &str, cause: PollError| assert_eq!(whole(text).0, Err(cause), "{text}");
    for status in ["404 Not Found", "204 No Content", "301 Moved", "101 Switching", "500"] {
        bad(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"), PollError::Status);
    }
    for head in [
        "SSH-2.0-OpenSSH_9.2",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6",
        "HTTP/1.1 200 OK\r\ncontent-length: -1",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 5",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip",
        "HTTP/1.1 200 OK\r\nno colon",
    ] {
        bad(&format!("{head}\r\n\r\n"), PollError::Parse);
    }
    for chunks in ["\r\n", "x\r\n", ";\r\n", "5\r\npage\nx", "1000000000000000\r\n", "5\r\npage\n\r\n-0\r\n"] {
        bad(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"), PollError::Parse);
    }
    for cut in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npage\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\npage\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\npage\n\r\n0\r\n",
    ] {
        bad(cut, PollError::Connect);
    }
    let headers = "a: b\r\n".repeat(MAX_HEADERS + 1);
    bad(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n"), PollError::Parse);
}

#[test]
fn heads_and_bodies_have_a_bound() {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(length));
    let long = head(HEAD_LIMIT - head(0).len());
    assert_eq!(whole(&long).0, Ok(true));
    for size in [1000, long.len()] {
        assert_eq!(take(long.as_bytes().chunks(size), LIMIT).0, Ok(true));
        let longer = head(HEAD_LIMIT - head(0).len() + 1);
        assert_eq!(take(longer.as_bytes().chunks(size), LIMIT).0, Err(PollError::Parse));
    }
    let endless = std::iter::once(&b"HTTP/1.1 200 OK\r\n\r\n"[..]).chain(std::iter::repeat(&[b'x'; 1000][..]));
    assert_eq!(take(endless, 10_000).0, Err(PollError::TooLarge));
    let chunks = std::iter::once(&b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;"[..]);
    assert_eq!(take(chunks.chain(std::iter::repeat(&[b'x'; 1000][..])), 10_000).0, Err(PollError::TooLarge));
    assert_eq!(take([&b"HTTP/1.1 200 OK\r\ncontent-length: 10001\r\n\r\n"[..]], 10_000).0, Err(PollError::TooLarge));
    assert_eq!(whole("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n").0, Err(PollError::Parse));
}

#[test]
fn an_answer_leaves_nothing_to_the_next() {
    let mut response = Response::default();
    assert_eq!(response.feed(b"HTTP/1.1 408 Request", LIMIT, |_| {}), Ok(false));
    assert_eq!(response.feed(b" Timeout\r\n\r\n", LIMIT, |_| {}), Err(PollError::Status));
    assert!(response.has_begun() && response.status() == 408);
    response.reset();
    assert!(!response.has_begun() && response.status() == 0 && !response.is_reusable());
    let mut body = Vec::new();
    let page = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab";
    assert_eq!(response.feed(page, LIMIT, |data| body.extend_from_slice(data)), Ok(true));
    assert!(response.is_reusable() && response.status() == 200 && body == b"ab");
}

/// Cuts `bytes` at these places.
fn cut<'b>(bytes: &'b [u8], at: &[prop::sample::Index]) -> Vec<&'b [u8]> {
    let mut places: Vec<usize> = at.iter().map(|i| i.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for place in places {
        pieces.push(&bytes[from..place]);
        from = place;
    }
    pieces.push(&bytes[from..]);
    pieces
}

/// Words of answers, so that random ones get past the first line.
fn word() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 100 x\r\n",
        "transfer-encoding: chunked\r\n",
        "content-length: 3\r\n",
        "connection: close\r\n",
        "\r\n",
        "\n",
        "0\r\n",
        "3\r\n",
        "a;x\r\n",
        "abc",
        ";",
        "\r",
    ];
    prop_oneof![
        8 => prop::sample::select(words.to_vec()).prop_map(|w| w.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

proptest! {
    #[test]
    fn how_an_answer_is_cut_does_not_matter(
        words in prop::collection::vec(word(), 0..12),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = words.concat();
        let (outcome, body, stays) = take([&bytes[..]], LIMIT);
        let (cut_outcome, cut_body, cut_stays) = take(cut(&bytes, &at), LIMIT);
        prop_assert_eq!(outcome, cut_outcome);
        prop_assert_eq!(body, cut_body);
        prop_assert_eq!(stays, cut_stays);
    }

    #[test]
    fn chunks_carry_what_was_put_in(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..10),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for chunk in &chunks {
            bytes.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        prop_assert_eq!(take(cut(&bytes, &at), LIMIT), (Ok(true), chunks.concat(), true));
    }
}
