//! One event as one line.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::{self, Debug, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::Encoder;

/// Longer values are cut and marked with an ellipsis.
pub const MAX_VALUE_BYTES: usize = 4096;
/// Beyond this size a line takes no further fields and says so with `"truncated":true`.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// What is written where a line takes no further fields.
pub const TRUNCATED: &str = r#","truncated":true"#;
/// Name of a field whose value is fields already, as they will stand in the line: `,"key":value` each, escaped.
const READY_MADE: &str = "ready-made fields";

#[derive(Default)]
struct Buffers {
    line: String,
    message: String,
    fields: String,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Formats `event` and hands the line, with its newline, to `write`.
pub fn format(encoder: Encoder, at: SystemTime, event: &Event<'_>, write: impl FnOnce(&[u8])) {
    BUFFERS.with(|buffers| match buffers.try_borrow_mut() {
        Ok(mut buffers) => write(fill(&mut buffers, encoder, at, event)),
        // A value's `Debug` logged while we formatted it.
        Err(_) => write(fill(&mut Buffers::default(), encoder, at, event)),
    });
}

fn fill<'a>(buffers: &'a mut Buffers, encoder: Encoder, at: SystemTime, event: &Event<'_>) -> &'a [u8] {
    let Buffers { line, message, fields } = buffers;
    line.clear();
    message.clear();
    fields.clear();
    event.record(&mut Fields { message, fields, full: false });

    let metadata = event.metadata();
    // A clock set before 1970 must not stop the log.
    let at = humantime::format_rfc3339_millis(at.max(SystemTime::UNIX_EPOCH));
    // Writing to a string fails only where we or `humantime` say so.
    let _ = match encoder {
        Encoder::Json => write!(line, r#"{{"level":"{}","ts":"{at}""#, level(metadata.level())),
        Encoder::Console => write!(line, "{at}\t{}", metadata.level()),
    };
    line.push_str(if encoder == Encoder::Json { r#","caller":""# } else { "\t" });
    if let Some(file) = metadata.file() {
        escape(line, short(file), MAX_VALUE_BYTES);
        let _ = write!(line, ":{}", metadata.line().unwrap_or(0));
    }
    match encoder {
        Encoder::Json => {
            line.push_str(r#"","msg":""#);
            line.push_str(message);
            line.push('"');
            line.push_str(fields);
            line.push('}');
        }
        Encoder::Console => {
            line.push('\t');
            line.push_str(message);
            if let Some(fields) = fields.strip_prefix(',') {
                line.push_str("\t{");
                line.push_str(fields);
                line.push('}');
            }
        }
    }
    line.push('\n');
    line.as_bytes()
}

fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The last two parts of a path.
fn short(file: &str) -> &str {
    let mut slashes = file.rmatch_indices('/');
    slashes.next();
    slashes.next().map_or(file, |(at, _)| &file[at + 1..])
}

/// Collects the message, escaped, and the fields as `,"key":value` each.
struct Fields<'a> {
    message: &'a mut String,
    fields: &'a mut String,
    full: bool,
}

impl Fields<'_> {
    /// Starts a field; `false` if the line takes no more.
    fn key(&mut self, field: &Field) -> bool {
        if self.full {
            return false;
        }
        if self.fields.len() + self.message.len() > MAX_LINE_BYTES {
            self.fields.push_str(TRUNCATED);
            self.full = true;
            return false;
        }
        self.fields.push_str(",\"");
        escape(self.fields, field.name(), MAX_VALUE_BYTES);
        self.fields.push_str("\":");
        true
    }

    /// A value that is a JSON number or boolean as it prints.
    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        if self.key(field) {
            let _ = write!(self.fields, "{value}");
        }
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            let _ = Escaped { out: self.message, left: MAX_VALUE_BYTES }.write_fmt(value);
        } else if self.key(field) {
            self.fields.push('"');
            let _ = Escaped { out: self.fields, left: MAX_VALUE_BYTES }.write_fmt(value);
            self.fields.push('"');
        }
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field, value);
        } else {
            // JSON has no word for these.
            self.text(field, format_args!("{value}"));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.plain(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == READY_MADE {
            return self.fields.push_str(value);
        }
        self.text(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.text(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

/// Appends `text` as the inside of a JSON string, up to `limit` bytes of it.
pub fn escape(out: &mut String, text: &str, limit: usize) {
    let _ = Escaped { out, left: limit }.write_str(text);
}

/// Writes text as the inside of a JSON string, up to `left` bytes of it.
struct Escaped<'a> {
    out: &'a mut String,
    left: usize,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let cut = text.len() > self.left;
        let text = if cut { &text[..text.floor_char_boundary(self.left)] } else { text };
        self.left -= text.len();
        // Nearly all text: looked through without a branch per byte, many bytes at a time.
        let special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0x7f);
        if !cut && !text.bytes().fold(false, |found, byte| found | special(byte)) {
            self.out.push_str(text);
            return Ok(());
        }
        let mut clean = 0;
        for (at, byte) in text.bytes().enumerate() {
            let short = match byte {
                b'"' => "\\\"",
                b'\\' => "\\\\",
                b'\n' => "\\n",
                b'\r' => "\\r",
                b'\t' => "\\t",
                0..=0x1f | 0x7f => "",
                _ => continue,
            };
            // An escaped byte is ASCII, so both ends are character boundaries.
            self.out.push_str(&text[clean..at]);
            if short.is_empty() {
                let _ = write!(self.out, "\\u{byte:04x}");
            } else {
                self.out.push_str(short);
            }
            clean = at + 1;
        }
        self.out.push_str(&text[clean..]);
        if cut {
            self.left = 0;
            self.out.push('…');
            // Stops the formatting of what will not be shown.
            return Err(fmt::Error);
        }
        Ok(())
    }
}
