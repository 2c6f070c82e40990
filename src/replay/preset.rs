//! Configurations by name: what a replay compares with, without a file.

use std::path::PathBuf;

use crate::config::Source;

/// llm-d-router's default, with its own index size and block size.
const LLM_D_DEFAULT: &str = include_str!("llm-d-default.yaml");

/// Names that `--config` takes besides paths.
pub const NAMES: [&str; 2] = ["default", "llm-d-default"];

/// The document that `--config` means by `name`: a preset, else a file (write `./default` for a file of that name).
pub fn source(name: &str) -> Source {
    match name {
        "default" => Source::Default,
        "llm-d-default" => Source::Text(LLM_D_DEFAULT.to_owned()),
        path => Source::File(PathBuf::from(path)),
    }
}
