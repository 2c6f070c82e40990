//! From the prompt-like members of a body to [`Prompt`]s.
//!
//! The stream of a prompt is built so that a conversation that grew has the old conversation as its
//! prefix, whatever clients vary between turns:
//!
//! - a message is a marker with its role, its content, then its other members as written (tool calls,
//!   names); nothing closes it, so a later message only appends;
//! - a content of one text part equals the same content written as text, and `cache_control` (which
//!   clients move to the newest message) and nulls are left out;
//! - control characters separate the pieces. They cannot occur inside JSON texts, and raw members
//!   keep their quotes, so that different structures do not collide.
//!
//! Bounds: a prompt has at most [`MAX_SEGMENTS`] segments and a request at most [`MAX_PROMPTS`]
//! prompts; what comes after is one segment over the raw rest of the list, so lengths stay right. All
//! media parts of a prompt together count as at most [`MAX_MEDIA_TOKENS`] tokens; after that each is one.

use std::borrow::Cow;
use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use super::json::{Elements, End, Fault, Kind, Members, Raw, Value};
use super::media::{self, Video};
use crate::domain::{Prompt, Segment};

/// Most segments of one prompt; one more holds the rest.
pub(super) const MAX_SEGMENTS: usize = 16_384;
/// Most prompts of a request; one more holds the rest.
pub(super) const MAX_PROMPTS: usize = 4096;
/// Most tokens of all media parts of a prompt.
pub(super) const MAX_MEDIA_TOKENS: u32 = 1 << 20;

const TOOLS: &[u8] = b"\x04";
const NO_ROLE: &[u8] = b"\x01\x02";
const NEXT_PART: &[u8] = b"\x03";
pub(super) const USER: &[u8] = b"\x01user\x02";
pub(super) const SYSTEM: &[u8] = b"\x01system\x02";

fn role_marker(role: &str) -> Option<&'static [u8]> {
    Some(match role {
        "user" => USER,
        "assistant" => b"\x01assistant\x02",
        "system" => SYSTEM,
        "developer" => b"\x01developer\x02",
        "tool" => b"\x01tool\x02",
        _ => return None,
    })
}

/// The segments of one prompt, in the making.
pub(super) struct Sink<'de> {
    text: &'de str,
    segments: SmallVec<[Segment; 4]>,
    /// End of the last segment if it is a raw member that the next one may continue.
    raw_end: Option<usize>,
    /// Whether the last segment is the rest of a list that had too many.
    rest: bool,
    media_left: u32,
    video: Video,
}

impl<'de> Sink<'de> {
    /// An empty prompt over `text`.
    pub fn new(text: &'de str, video: Video) -> Self {
        Self { text, segments: SmallVec::new(), raw_end: None, rest: false, media_left: MAX_MEDIA_TOKENS, video }
    }

    /// Forgets everything: a duplicate member replaces the earlier one.
    pub fn clear(&mut self) {
        *self = Self::new(self.text, self.video);
    }

    /// The prompt, if there is anything in it.
    pub fn into_prompts(self) -> SmallVec<[Prompt; 1]> {
        if self.segments.is_empty() { SmallVec::new() } else { smallvec![Prompt { segments: self.segments }] }
    }

    /// Appends all of `later`.
    pub fn append(&mut self, later: Sink<'de>) {
        self.segments.extend(later.segments);
        self.raw_end = later.raw_end;
    }

    /// A marker.
    pub fn fixed(&mut self, bytes: &'static [u8]) {
        self.push(Segment::Fixed(bytes));
    }

    /// The definitions of the tools; an empty list defines none.
    pub fn tools(&mut self, tools: Option<Raw<'de>>) {
        if let Some(tools) = tools.filter(|tools| tools.kind() != Kind::Null && tools.text != "[]") {
            self.fixed(TOOLS);
            self.push(Segment::Body(tools.range()));
        }
    }

    /// The inside of a text.
    pub fn text(&mut self, text: &Raw<'de>) {
        if let Some(inner) = text.inner()
            && !inner.text.is_empty()
        {
            self.push(Segment::Body(inner.range()));
        }
    }

    /// JSON as written. Members that follow each other directly become one segment.
    fn raw(&mut self, range: Range<usize>) {
        if let Some(end) = self.raw_end
            && self.text[end..range.start].bytes().all(|byte| matches!(byte, b',' | b' ' | b'\n' | b'\r' | b'\t'))
            && let Some(Segment::Body(last)) = self.segments.last_mut()
        {
            last.end = range.end;
            self.raw_end = Some(range.end);
        } else if !self.is_full() {
            self.push(Segment::Body(range.clone()));
            self.raw_end = Some(range.end);
        }
    }

    /// Everything from the member's name to the end of its value.
    fn raw_member(&mut self, key: &Raw<'de>, end: End) {
        self.raw(key.at..end.offset());
    }

    fn media(&mut self, medium: Medium, content: &Raw<'de>) {
        let Some(content) = content.inner() else { return };
        let tokens = match medium {
            Medium::ImageUrl => media::image_url_tokens(content.text),
            Medium::Image => media::image_base64_tokens(content.text),
            Medium::VideoUrl => self.video.tokens,
            Medium::AudioUrl => media::audio_url_tokens(content.text),
            Medium::Audio => media::audio_base64_tokens(content.text),
        };
        let tokens = tokens.min(self.media_left).max(1);
        self.media_left = self.media_left.saturating_sub(tokens);
        self.push(Segment::Media { digest: media::digest(content.text), tokens });
    }

    fn push(&mut self, segment: Segment) {
        self.raw_end = None;
        if !self.is_full() {
            self.segments.push(segment);
        }
    }

    fn is_full(&self) -> bool {
        self.segments.len() >= MAX_SEGMENTS
    }

    /// The sink is full: one more segment goes from the first element left over to the last.
    fn rest(&mut self, range: Range<usize>) {
        self.raw_end = None;
        match self.segments.last_mut() {
            Some(Segment::Body(last)) if self.rest => last.end = range.end,
            _ => self.segments.push(Segment::Body(range)),
        }
        self.rest = true;
    }

    /// Drops the segments from `start` on.
    fn truncate(&mut self, start: usize) {
        self.raw_end = None;
        self.rest = false;
        self.segments.truncate(start);
    }

    /// Drops the segments of an earlier duplicate and returns where the new ones start.
    fn replace(&mut self, earlier: &Range<usize>) -> usize {
        self.raw_end = None;
        self.rest = false;
        self.segments.drain(earlier.clone());
        self.segments.len()
    }
}

#[derive(Clone, Copy)]
enum Medium {
    ImageUrl,
    Image,
    VideoUrl,
    AudioUrl,
    Audio,
}

/// Reads a list of messages (or of the Responses API's items) called `what`.
pub(super) fn messages<'de>(what: &'static str, value: Value<'de>, sink: &mut Sink<'de>) -> Result<End, Fault> {
    sink.clear();
    match value.kind() {
        Kind::Null => value.skip(),
        _ => value.list(what, &mut Messages { what, sink }),
    }
}

/// Reads the system prompt of an Anthropic body: text, or text blocks of which the billing header of
/// some clients is left out (it changes with every request, llm-d-router 4.1).
pub(super) fn system<'de>(value: Value<'de>, sink: &mut Sink<'de>) -> Result<End, Fault> {
    sink.clear();
    if value.kind() == Kind::Null {
        return value.skip();
    }
    sink.fixed(SYSTEM);
    content(value, sink, Some(BILLING_HEADER))
}

/// Start of a text block that is no prompt.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

struct Messages<'s, 'de> {
    what: &'static str,
    sink: &'s mut Sink<'de>,
}

impl<'de> Elements<'de> for Messages<'_, 'de> {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        if self.sink.is_full() {
            let raw = value.raw()?;
            self.sink.rest(raw.range());
            return Ok(raw.end());
        }
        if value.kind() != Kind::Object {
            return value.refuse(&format!("an element of {}", self.what), "an object");
        }
        let start = self.sink.segments.len();
        self.sink.fixed(NO_ROLE);
        value.object(self.what, &mut Message { start, content: 0..0, sink: self.sink })
    }
}

struct Message<'s, 'de> {
    /// Index of the role's segment.
    start: usize,
    /// Segments of the content so far.
    content: Range<usize>,
    sink: &'s mut Sink<'de>,
}

impl<'de> Members<'de> for Message<'_, 'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        match &*key.name() {
            "role" => {
                let role = value.raw()?;
                let marker = role.decode().as_deref().and_then(role_marker);
                if let Some(segment) = self.sink.segments.get_mut(self.start) {
                    *segment = marker.map_or_else(|| Segment::Body(role.range()), Segment::Fixed);
                }
                Ok(role.end())
            }
            "content" => {
                let start = self.sink.replace(&self.content);
                let end = content(value, self.sink, None)?;
                self.content = start..self.sink.segments.len();
                Ok(end)
            }
            "cache_control" => value.skip(),
            "type" => {
                let kind = value.raw()?;
                if kind.text != "\"message\"" {
                    self.sink.raw_member(key, kind.end());
                }
                Ok(kind.end())
            }
            _ if value.kind() == Kind::Null => value.skip(),
            _ => {
                let end = value.skip()?;
                self.sink.raw_member(key, end);
                Ok(end)
            }
        }
    }
}

/// Reads a message's content: text, or parts without those whose text starts with `without`.
fn content<'de>(value: Value<'de>, sink: &mut Sink<'de>, without: Option<&'static str>) -> Result<End, Fault> {
    match value.kind() {
        Kind::Text => {
            let text = value.raw()?;
            sink.text(&text);
            Ok(text.end())
        }
        Kind::List => {
            let first = sink.segments.len();
            value.list("content", &mut Parts { first, without, sink })
        }
        Kind::Null => value.skip(),
        _ => {
            let raw = value.raw()?;
            sink.raw(raw.range());
            Ok(raw.end())
        }
    }
}

struct Parts<'s, 'de> {
    /// Index of the first part's first segment.
    first: usize,
    without: Option<&'static str>,
    sink: &'s mut Sink<'de>,
}

impl<'de> Elements<'de> for Parts<'_, 'de> {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        if self.sink.is_full() {
            let raw = value.raw()?;
            self.sink.rest(raw.range());
            return Ok(raw.end());
        }
        let start = self.sink.segments.len();
        if start > self.first {
            self.sink.fixed(NEXT_PART);
        }
        if value.kind() != Kind::Object {
            // Not `content`: a list in a list counts as written, or depth would be the sender's choice.
            let raw = value.raw()?;
            match raw.kind() {
                Kind::Text => self.sink.text(&raw),
                _ => self.sink.raw(raw.range()),
            }
            return Ok(raw.end());
        }
        let mut part = Part { text: None, segments: 0..0, sink: self.sink };
        let end = value.object("a part of the content", &mut part)?;
        if let (Some(text), Some(prefix)) = (part.text, self.without)
            && text.inner().is_some_and(|inner| inner.text.starts_with(prefix))
        {
            self.sink.truncate(start);
        }
        Ok(end)
    }
}

struct Part<'s, 'de> {
    text: Option<Raw<'de>>,
    /// Segments of the text so far.
    segments: Range<usize>,
    sink: &'s mut Sink<'de>,
}

impl<'de> Members<'de> for Part<'_, 'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let name: Cow<'de, str> = key.name();
        match (&*name, value.kind()) {
            ("text", Kind::Text) => {
                let text = value.raw()?;
                let start = self.sink.replace(&self.segments);
                self.sink.text(&text);
                self.segments = start..self.sink.segments.len();
                self.text = Some(text);
                Ok(text.end())
            }
            ("image_url" | "image", Kind::Text | Kind::Object) => self.medium(key, value, Medium::ImageUrl),
            ("video_url" | "video", Kind::Text | Kind::Object) => self.medium(key, value, Medium::VideoUrl),
            ("audio_url" | "audio", Kind::Text | Kind::Object) => self.medium(key, value, Medium::AudioUrl),
            ("input_audio", Kind::Object) => self.medium(key, value, Medium::Audio),
            ("source", Kind::Object) => self.medium(key, value, Medium::Image),
            ("cache_control", _) | (_, Kind::Null) => value.skip(),
            ("type", _) => {
                let kind = value.raw()?;
                if !kind.inner().is_some_and(|inner| is_plain_type(inner.text)) {
                    self.sink.raw_member(key, kind.end());
                }
                Ok(kind.end())
            }
            _ => {
                let end = value.skip()?;
                self.sink.raw_member(key, end);
                Ok(end)
            }
        }
    }
}

/// Whether a part of this type is told by its text or media alone.
fn is_plain_type(kind: &str) -> bool {
    matches!(
        kind,
        "text"
            | "input_text"
            | "output_text"
            | "image"
            | "image_url"
            | "input_image"
            | "video"
            | "video_url"
            | "audio"
            | "audio_url"
            | "input_audio"
    )
}

impl<'de> Part<'_, 'de> {
    /// Reads a url, or an object that holds one or holds the content itself. An object without either
    /// (a file id, a text document) counts as written.
    fn medium(&mut self, key: &Raw<'de>, value: Value<'de>, medium: Medium) -> Result<End, Fault> {
        if value.kind() == Kind::Text {
            let url = value.raw()?;
            self.sink.media(medium, &url);
            return Ok(url.end());
        }
        let mut fields = MediaFields::default();
        let end = value.object("a part of the content", &mut fields)?;
        let is_image = fields.media_type.and_then(|t| t.inner()).is_none_or(|t| t.text.starts_with("image"));
        match (medium, fields.url, fields.data) {
            (Medium::Image, Some(url), None) => self.sink.media(Medium::ImageUrl, &url),
            (Medium::Image, _, Some(data)) if is_image => self.sink.media(medium, &data),
            (Medium::Audio, _, Some(data)) => self.sink.media(medium, &data),
            (Medium::ImageUrl | Medium::VideoUrl | Medium::AudioUrl, Some(url), _) => self.sink.media(medium, &url),
            _ => self.sink.raw_member(key, end),
        }
        Ok(end)
    }
}

#[derive(Default)]
struct MediaFields<'de> {
    url: Option<Raw<'de>>,
    data: Option<Raw<'de>>,
    media_type: Option<Raw<'de>>,
}

impl<'de> Members<'de> for MediaFields<'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let raw = value.raw()?;
        let field = match &*key.name() {
            "url" => &mut self.url,
            "data" => &mut self.data,
            "media_type" => &mut self.media_type,
            _ => return Ok(raw.end()),
        };
        *field = (raw.kind() == Kind::Text).then_some(raw);
        Ok(raw.end())
    }
}

/// Prompts that come one by one or as a batch: text, texts, token ids, lists of token ids.
#[derive(Default)]
pub(super) struct Batch {
    prompts: SmallVec<[Prompt; 1]>,
    /// Elements beyond [`MAX_PROMPTS`].
    rest: Option<Range<usize>>,
}

impl Batch {
    /// Reads the member called `what`, which replaces an earlier one.
    pub fn read<'de>(&mut self, what: &'static str, value: Value<'de>) -> Result<End, Fault> {
        *self = Self::default();
        match value.kind() {
            Kind::Text => self.one(value),
            Kind::Null => value.skip(),
            Kind::List if value.element_kind() == Kind::Number => self.ids(what, value),
            Kind::List => value.list(what, &mut BatchElements { what, batch: self }),
            _ => value.refuse(what, "text, a list of texts, a list of token ids or a list of such lists"),
        }
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// The prompts.
    pub fn into_prompts(mut self) -> SmallVec<[Prompt; 1]> {
        if let Some(rest) = self.rest {
            self.prompts.push(Prompt { segments: smallvec![Segment::Body(rest)] });
        }
        self.prompts
    }

    fn one<'de>(&mut self, value: Value<'de>) -> Result<End, Fault> {
        let text = value.raw()?;
        let range = text.inner().map_or(0..0, |inner| inner.range());
        self.prompts.push(Prompt { segments: smallvec![Segment::Body(range)] });
        Ok(text.end())
    }

    fn ids<'de>(&mut self, what: &str, value: Value<'de>) -> Result<End, Fault> {
        let (ids, end) = value.tokens(what)?;
        self.prompts.push(Prompt { segments: smallvec![Segment::Tokens(ids)] });
        Ok(end)
    }
}

struct BatchElements<'b> {
    what: &'static str,
    batch: &'b mut Batch,
}

impl<'de> Elements<'de> for BatchElements<'_> {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        if self.batch.prompts.len() >= MAX_PROMPTS {
            let raw = value.raw()?;
            let start = self.batch.rest.as_ref().map_or(raw.at, |rest| rest.start);
            self.batch.rest = Some(start..raw.end().offset());
            return Ok(raw.end());
        }
        match value.kind() {
            Kind::Text => self.batch.one(value),
            Kind::List => self.batch.ids(self.what, value),
            _ => value.refuse(&format!("an element of {}", self.what), "text or a list of token ids"),
        }
    }
}

#[cfg(test)]
mod tests;
