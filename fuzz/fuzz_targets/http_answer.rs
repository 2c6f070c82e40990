//! Any bytes as the answer to a scrape:
//!
//! * how the bytes are cut changes neither the outcome nor the body;
//! * the body has at most as many bytes as came, and never more than the limit;
//! * what an earlier answer left behind does not matter.
//!
//! The first byte chooses the length of the chunks, the second the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::collector::http1::Response;

/// Whether and how the answer ended, its status, whether the connection may be used again, and its body.
type Outcome = (Result<bool, String>, u16, bool, Vec<u8>);

fn read(response: &mut Response, bytes: &[u8], chunk: usize, limit: usize) -> Outcome {
    response.reset();
    let mut body = Vec::new();
    let mut ended = Ok(false);
    for part in bytes.chunks(chunk) {
        ended = response.feed(part, limit, |piece| body.extend_from_slice(piece)).map_err(|e| format!("{e:?}"));
        if ended.is_err() {
            break;
        }
    }
    if ended == Ok(false) {
        ended = response.close().map(|()| true).map_err(|e| format!("{e:?}"));
    }
    (ended, response.status(), response.is_reusable(), body)
}

fuzz_target!(|data: &[u8]| {
    let [size, limit, bytes @ ..] = data else { return };
    let limit = usize::from(*limit) * 16 + 1;
    let mut response = Response::default();
    let whole = read(&mut response, bytes, bytes.len().max(1), limit);
    assert!(whole.3.len() <= bytes.len() && whole.3.len() <= limit);
    for chunk in [usize::from(*size).max(1), 1] {
        let cut = read(&mut response, bytes, chunk, limit);
        // Of an answer that is both too large and malformed, the cut decides which is found first; after an error nobody
        // looks at the body.
        assert_eq!(cut.0.is_ok(), whole.0.is_ok());
        if whole.0.is_ok() {
            assert_eq!(cut, whole);
        }
    }
});
