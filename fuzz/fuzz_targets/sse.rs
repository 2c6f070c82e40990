//! Answers: however the bytes are cut into chunks, the counts are the same. The first byte chooses
//! the format and whether it is an event stream, the second the length of the chunks.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pointsman::dialect::{AnswerFormat, UsageReader};

const FORMATS: [AnswerFormat; 3] = [AnswerFormat::OpenAi, AnswerFormat::Anthropic, AnswerFormat::Engine];

fuzz_target!(|data: &[u8]| {
    let [kind, length, body @ ..] = data else { return };
    let format = FORMATS[usize::from(kind / 2) % FORMATS.len()];
    let content_type = (kind % 2 == 0).then_some("text/event-stream");
    let read = |length: usize| {
        let mut reader = UsageReader::new(format, content_type, None);
        for chunk in body.chunks(length) {
            reader.push(&Bytes::copy_from_slice(chunk));
        }
        reader.finish()
    };
    let whole = read(body.len().max(1));
    assert_eq!(read(usize::from(*length) + 1), whole);
    assert_eq!(read(1), whole);
});
