//! The dialect of everything else: nothing is read, nothing is changed.

use bytes::Bytes;

use super::{AnswerFormat, Dialect, Parsed, Wants};
use crate::domain::{Headers, Rejection};
use crate::scheduling::plugin::{About, Stability};

pub(super) static ABOUT: About = About {
    kind: "passthrough-parser",
    aliases: &[],
    stability: Stability::Beta,
    summary: "Routes bodies of any form on any path without reading them.",
    params: &[],
    sample: "- type: passthrough-parser\n",
};

/// See the module.
pub(super) struct Passthrough;

impl Dialect for Passthrough {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[]
    }

    fn answer(&self, _path: &str) -> AnswerFormat {
        AnswerFormat::Opaque
    }

    fn parse(&self, _path: &str, _headers: &Headers, _body: &Bytes, _wants: Wants) -> Result<Parsed, Rejection> {
        Ok(Parsed::default())
    }
}
