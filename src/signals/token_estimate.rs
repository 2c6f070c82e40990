//! `token-producer`: the estimated length of a request's prompts in tokens.
//!
//! The estimate is four bytes of text per token, exact for token ids that the client sent, and a
//! per-part number for images, video and audio (llm-d-router 4.1). The dialect has already turned the
//! body into such a stream (see [`Prompt`](crate::domain::Prompt)), so this only adds it up.
//!
//! # When it misleads
//! Text in scripts with several bytes per character, code, and long numbers have fewer or more tokens
//! than bytes / 4; expect errors up to a factor of two. Chat templates add tokens that are not counted.
//!
//! # Differences from the picker we replace
//! Only `estimate` exists: there is no render server (`vllm`) and no tokenizer over a Unix socket, and
//! asking for one is an error rather than a silent estimate. The sizes assumed for images and video are
//! the defaults; other values are read strictly, so that files load, and warned about.

use std::sync::Arc;

use crate::domain::node::{Node, Problems};
use crate::domain::{InferenceRequest, Signals, Snapshot};
use crate::params;
use crate::scheduling::params::{Param, Params, wrong_choice};
use crate::scheduling::plugin::{About, Build, Built, Need, Producer, Row, SignalKind, Stability};

params! {
    /// Parameters of `token-producer`.
    pub struct TokenParams {
        /// Estimate from bytes; the default and the only way there is.
        estimate: Option<Estimate> = None, "estimate";
        /// Not supported: a render server.
        vllm: Option<Node> = None, "vllm";
        /// Not supported: a tokenizer over a Unix socket.
        uds: Option<Node> = None, "udsTokenizerConfig";
        /// Not needed for estimates.
        model: Option<Node> = None, "modelName";
    }
}

params! {
    /// How parts that are not text count.
    pub struct Estimate {
        /// Images.
        image: Image = Image::default(), "image";
        /// Video.
        video: Video = Video::default(), "video";
    }
}

params! {
    /// How an image counts.
    pub struct Image {
        /// `dynamic` (by size) or `static`.
        mode: ImageMode = ImageMode::Dynamic, "mode";
        /// Size of an image that cannot be measured.
        default_resolution: Resolution = Resolution { width: 640, height: 360 }, "defaultResolution";
        /// With `static`: the same for every image.
        fixed: StaticImage = StaticImage::default(), "static";
        /// With `dynamic`: by size.
        dynamic: DynamicImage = DynamicImage::default(), "dynamic";
    }
}

params! {
    /// A fixed number per image.
    pub struct StaticImage {
        /// Tokens per image.
        tokens: Option<u32> = None, "staticToken";
    }
}

params! {
    /// A number by size.
    pub struct DynamicImage {
        /// Pixels per token.
        factor: u32 = 1024, "factor", 1..;
    }
}

params! {
    /// How a video counts.
    pub struct Video {
        /// Size of a video that cannot be measured.
        default_resolution: Option<Resolution> = None, "defaultResolution";
        /// Length of a video that cannot be measured.
        default_duration: Option<Node> = None, "defaultDuration";
        /// Tokens per frame.
        tokens_per_frame: Option<u32> = None, "tokensPerFrame";
        /// Which frames count.
        frames: Frames = Frames::default(), "frames";
        /// Most tokens per video.
        max_tokens: Option<u32> = None, "maxVideoTokens";
    }
}

params! {
    /// Which frames of a video count.
    pub struct Frames {
        /// `sampled` or `strided`.
        mode: FrameMode = FrameMode::Sampled, "mode";
        /// Fewest frames.
        min: Option<u32> = None, "minFrames";
        /// Most frames.
        max: Option<u32> = None, "maxFrames";
        /// With `sampled`.
        sampled: Sampled = Sampled::default(), "sampled";
        /// With `strided`.
        strided: Strided = Strided::default(), "strided";
    }
}

params! {
    /// Frames at a rate.
    pub struct Sampled {
        /// Frames per second.
        fps: Option<f64> = None, "sampleFPS";
        /// Frames that become one.
        patch: Option<u32> = None, "temporalPatchSize";
    }
}

params! {
    /// Every n-th frame.
    pub struct Strided {
        /// Frames per second of a source that does not say.
        fps: Option<f64> = None, "defaultSourceFPS";
        /// The n.
        stride: Option<u32> = None, "frameStride";
    }
}

crate::choice! {
    /// How images count.
    pub enum ImageMode {
        /// By size.
        Dynamic = "dynamic",
        /// All the same.
        Static = "static",
    }
}

crate::choice! {
    /// How frames are chosen.
    pub enum FrameMode {
        /// At a rate.
        Sampled = "sampled",
        /// Every n-th.
        Strided = "strided",
    }
}

/// Width and height in pixels, as `640x360` or `{width: 640, height: 360}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    width: u32,
    height: u32,
}

params! {
    /// A resolution as a mapping.
    struct Sides {
        /// Pixels.
        width: u32 = 640, "width", 1..;
        /// Pixels.
        height: u32 = 360, "height", 1..;
    }
}

impl Param for Resolution {
    const TYPE: &'static str = "resolution (such as 640x360)";
    fn decode(node: &Node, path: &str, problems: &mut Problems) -> Option<Self> {
        if let Some(text) = node.as_str() {
            let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
            return match sides {
                Some((width, height)) if width > 0 && height > 0 => Some(Self { width, height }),
                _ => {
                    wrong_choice(node, path, &["640x360"], problems);
                    None
                }
            };
        }
        let Sides { width, height } = Sides::decode(node, path, problems)?;
        Some(Self { width, height })
    }
}

impl Estimate {
    /// Whether something differs from what the dialect applied.
    fn is_tuned(&self) -> bool {
        let (default, image, video) = (Image::default(), &self.image, &self.video);
        let frames = &video.frames;
        image.mode != default.mode
            || image.default_resolution != default.default_resolution
            || image.fixed.tokens.is_some()
            || image.dynamic.factor != default.dynamic.factor
            || video.default_resolution.is_some()
            || video.default_duration.is_some()
            || video.tokens_per_frame.is_some()
            || video.max_tokens.is_some()
            || frames.mode != FrameMode::Sampled
            || frames.min.is_some()
            || frames.max.is_some()
            || frames.sampled.fps.is_some()
            || frames.sampled.patch.is_some()
            || frames.strided.fps.is_some()
            || frames.strided.stride.is_some()
    }
}

/// This producer's entry in the plugin table.
pub const ROW: Row = Row {
    about: About {
        kind: "token-producer",
        aliases: &["tokenizer"],
        stability: Stability::Beta,
        summary: "Estimates the length of the prompt in tokens.",
        params: TokenParams::SPEC,
        sample: "- type: token-producer\n  parameters:\n    estimate: {}\n",
    },
    build,
};

fn build(build: &mut Build<'_>) -> Option<Built> {
    let params: TokenParams = build.params();
    let foreign = [("vllm", &params.vllm), ("udsTokenizerConfig", &params.uds), ("modelName", &params.model)];
    let mut refused = false;
    for (key, given) in foreign {
        if given.is_some() {
            let message = format!("`{key}` is not supported yet: prompts are measured in the process, by estimate");
            build.error(key, message, "remove it and write `estimate: {}`");
            refused = true;
        }
    }
    if params.estimate.is_some_and(|e| e.is_tuned()) {
        let message = "other sizes of images and video than the defaults are not applied yet";
        build.warn("estimate", message, "remove them; 640x360 / 1024 tokens per unknown image are used");
    }
    if refused {
        return None;
    }
    build.need(Need::Prompts);
    build.produces(SignalKind::PromptTokens);
    Some(Built { producer: Some(Arc::new(TokenEstimate)), ..Built::default() })
}

/// The plugin; see the module documentation.
struct TokenEstimate;

impl Producer for TokenEstimate {
    fn produce(&self, request: &InferenceRequest, _: &Snapshot, signals: &mut Signals) {
        signals.prompt_tokens = Some(request.estimated_prompt_tokens());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use smallvec::smallvec;

    use super::*;
    use crate::domain::node::{Position, Value};
    use crate::domain::{Prompt, Segment};
    use crate::scheduling::plugin::Registry;

    fn node(value: Value) -> Node {
        Node { value, ..Node::default() }
    }

    fn map<const N: usize>(entries: [(&str, Node); N]) -> Node {
        node(Value::Mapping(entries.into_iter().map(|(k, v)| (k.to_owned(), Position::default(), v)).collect()))
    }

    fn text(s: &str) -> Node {
        node(Value::String(s.into()))
    }

    fn make(parameters: Option<&Node>) -> (Option<Built>, Problems, BTreeMap<Need, Vec<String>>) {
        let (mut registry, mut problems) = (Registry::default(), Problems::default());
        let (path, at) = ("plugins[0].parameters".to_owned(), Position::default());
        let built = build(&mut Build {
            name: "tokens",
            path,
            at,
            parameters,
            registry: &mut registry,
            problems: &mut problems,
        });
        (built, problems, registry.needs)
    }

    #[test]
    fn adds_up_all_prompts() {
        let (built, problems, needs) = make(None);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty());
        assert!(needs.contains_key(&Need::Prompts));
        let request = InferenceRequest {
            prompts: smallvec![
                Prompt { segments: smallvec![Segment::Body(0..9), Segment::Fixed(b"user")] },
                Prompt { segments: smallvec![Segment::Media { digest: 1, tokens: 225 }] },
            ],
            ..InferenceRequest::default()
        };
        let mut signals = Signals::default();
        built.unwrap().producer.unwrap().produce(&request, &Snapshot::default(), &mut signals);
        assert_eq!(signals.prompt_tokens, Some(4 + 225));
    }

    #[test]
    fn defaults_written_out_are_silent_and_others_are_warned_about() {
        let image = |resolution| map([("image", map([("mode", text("dynamic")), ("defaultResolution", resolution)]))]);
        let sides = map([("width", node(Value::Integer(640))), ("height", node(Value::Integer(360)))]);
        for (resolution, warnings) in [(text("640x360"), 0), (sides, 0), (text("800x600"), 1)] {
            let (built, problems, _) = make(Some(&map([("estimate", image(resolution))])));
            assert!(built.is_some());
            assert_eq!((problems.errors.len(), problems.warnings.len()), (0, warnings));
        }
        let frames = map([("maxFrames", node(Value::Integer(9)))]);
        let (_, problems, _) = make(Some(&map([("estimate", map([("video", map([("frames", frames)]))]))])));
        assert_eq!((problems.errors.len(), problems.warnings.len()), (0, 1));
    }

    #[test]
    fn unknown_fields_and_wrong_values_are_errors() {
        for wrong in [
            map([("picture", map([]))]),
            map([("image", map([("mode", text("auto"))]))]),
            map([("image", map([("defaultResolution", text("640"))]))]),
            map([("image", map([("defaultResolution", text("0x9"))]))]),
            map([("video", map([("frames", map([("sampled", map([("fps", text("2"))]))]))]))]),
        ] {
            let (_, problems, _) = make(Some(&map([("estimate", wrong)])));
            assert_eq!(problems.errors.len(), 1, "{:?}", problems.errors);
        }
    }

    #[test]
    fn other_back_ends_are_refused_with_the_way_out() {
        for key in ["vllm", "udsTokenizerConfig", "modelName"] {
            let (built, problems, _) = make(Some(&map([(key, map([("url", text("http://a:1"))]))])));
            assert!(built.is_none());
            assert_eq!(problems.errors[0].path, format!("plugins[0].parameters.{key}"));
            assert!(problems.errors[0].message.contains("not supported yet"));
            assert!(problems.errors[0].fix.contains("estimate"));
        }
    }
}
