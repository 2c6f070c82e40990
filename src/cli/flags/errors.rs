//! Errors of clap in our words: the flag, the value, the rule and the fix.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::domain::node::{Position, Problem};

/// The `--name` that an error of clap is about.
pub(super) fn flag_of(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(arg) => arg
            .split([' ', '=', '['])
            .find(|word| word.starts_with("--"))
            .or_else(|| arg.split([' ', '=', '[']).next().filter(|word| !word.is_empty()))
            .map(str::to_owned),
        _ => None,
    }
}

/// An error of clap in our words.
pub(super) fn problem(error: &clap::Error) -> Problem {
    let path = flag_of(error).unwrap_or_else(|| "--help".into());
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let value = text(ContextKind::InvalidValue);
    let rule = std::error::Error::source(error).map(ToString::to_string);
    let (message, fix) = match (error.kind(), value, rule, text(ContextKind::ValidValue)) {
        (ErrorKind::ValueValidation, Some(value), Some(rule), _) => {
            (format!("`{value}` is not allowed: {rule}"), "`pointsman --help` says what the flag takes".to_owned())
        }
        (ErrorKind::InvalidValue, Some(value), _, Some(known)) if !value.is_empty() => {
            (format!("`{value}` is not one of {known}"), format!("write one of {known}"))
        }
        (ErrorKind::InvalidValue | ErrorKind::TooFewValues, _, _, _) => {
            ("the flag needs a value".into(), format!("write `{path}=value`"))
        }
        _ => (error.to_string().trim().to_owned(), "see --help".into()),
    };
    Problem { at: Position::default(), path, message, fix }
}
