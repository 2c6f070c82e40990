//! Checks the text of a label selector, so that a slip ends the start and not every list.
//!
//! ```text
//! selector    = requirement { "," requirement }
//! requirement = key | "!" key | key ("=" | "==" | "!=") value
//!             | key ("in" | "notin") "(" value { "," value } ")" | key (">" | "<") integer
//! ```
//!
//! The selector itself goes to the API server as it was written; only the server matches labels.

/// Checks a label selector, in the text form that the API takes.
///
/// # Errors
/// What is wrong, in words.
pub fn check(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the selector is empty, which would take every pod of the namespace".into());
    }
    let mut rest = text;
    loop {
        rest = requirement(rest.trim_start())?.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Ok(()),
            None => return Err(format!("a comma is expected before `{rest}`")),
        }
    }
}

/// The requirement that label `name` has value `given`, as text.
///
/// # Errors
/// `name` is no label key or `given` no label value. The definitions of pools do not rule that out, and a comma in
/// either would change the meaning of a whole selector.
pub fn equal(name: &str, given: &str) -> Result<String, String> {
    key(name)?;
    value(given)?;
    Ok(format!("{name}={given}"))
}

/// Reads one requirement; the result is what follows it.
fn requirement(text: &str) -> Result<&str, String> {
    if let Some(after) = text.strip_prefix('!') {
        let (name, rest) = word(after.trim_start());
        return key(name).map(|()| rest);
    }
    let (name, after) = word(text);
    key(name)?;
    let after = after.trim_start();
    if after.is_empty() || after.starts_with(',') {
        return Ok(after);
    }
    for operator in ["==", "!=", "="] {
        if let Some(after) = after.strip_prefix(operator) {
            let (given, rest) = word(after.trim_start());
            return value(given).map(|()| rest);
        }
    }
    for operator in ['>', '<'] {
        if let Some(after) = after.strip_prefix(operator) {
            let (given, rest) = word(after.trim_start());
            return match given.parse::<i64>() {
                Ok(_) => Ok(rest),
                Err(_) => Err(format!("`{given}` after `{operator}` is not an integer")),
            };
        }
    }
    let (operator, after) = word(after);
    if operator != "in" && operator != "notin" {
        return Err(format!("`{operator}` is no operator: =, ==, !=, in, notin, > and < are"));
    }
    let list = after.trim_start().strip_prefix('(').ok_or_else(|| format!("`{operator}` needs a list: (a,b)"))?;
    let (list, rest) = list.split_once(')').ok_or_else(|| format!("the list after `{operator}` has no end"))?;
    for given in list.split(',') {
        value(given.trim())?;
    }
    Ok(rest)
}

/// A key, value or operator, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_whitespace() || ",=!()<>".contains(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// A name, with a DNS name and a slash before it or without.
fn key(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let label = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    let prefix_is_good = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(label));
    if name.is_empty() || !is_name(name) || !prefix_is_good {
        return Err(format!("`{text}` is no label key"));
    }
    Ok(())
}

fn value(text: &str) -> Result<(), String> {
    if is_name(text) { Ok(()) } else { Err(format!("`{text}` is no label value")) }
}

/// At most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends; or nothing.
fn is_name(text: &str) -> bool {
    let end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && end(text.chars().next())
        && end(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_the_api_are_taken() {
        for good in [
            "app=vllm",
            "app==vllm,tier!=test",
            " app = vllm , tier in (gold, silver) ",
            "llm-d.ai/role notin (prefill)",
            "gpu,!spot",
            "! spot",
            "size>3,size<9",
            "app=",
            "app,tier in (,a)",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_the_server_would_refuse_is_refused() {
        for bad in [
            "",
            " ",
            ",",
            "app=vllm,",
            "=vllm",
            "app=-a",
            "app~x",
            "app in a",
            "app in (a",
            "app inside (a)",
            "app=a b",
            "a/b/c=d",
            "UP.er/x=y",
            "size>many",
            "app=\u{e9}",
            "!",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check(&format!("app={}", "x".repeat(64))).is_err());
    }

    #[test]
    fn a_label_that_is_none_makes_no_requirement() {
        assert_eq!(equal("llm-d.ai/role", "decode"), Ok("llm-d.ai/role=decode".to_owned()));
        assert_eq!(equal("app", ""), Ok("app=".to_owned()));
        for (name, given) in [("app", "m?"), ("app", "a,b"), ("app,b", "a"), ("", "a"), ("a=b", "c")] {
            assert!(equal(name, given).is_err(), "{name} {given}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            let _ = check(&text);
        }

        #[test]
        fn any_text_of_the_alphabet_is_answered(text in "[a-c/=!(),<> .in-]{0,30}") {
            let _ = check(&text);
        }
    }
}
