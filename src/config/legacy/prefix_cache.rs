//! The prefix scorer before it was split: GAIE v0.5 to v1.5 and llm-d v0.2 to v0.8 gave
//! `prefix-cache-scorer` the parameters of the index. They move to an `approx-prefix-cache-producer`
//! of its own, which the scorer then names.
//!
//! `hashBlockSize` and `blockSize` count characters, four to a token. A file with `hashBlockSize` is
//! older than `autoTune`, so what it fixes stays fixed. A limit in blocks becomes a limit in tokens of
//! the block size in the same file: the producer may use larger blocks than were written.

use super::{add_plugin, get_mut, mapping, name_of, plugins, put, take, text, type_of};
use crate::domain::node::{Node, Position, Problems, Value};

const SCORER: &str = "prefix-cache-scorer";
const PRODUCER: &str = "approx-prefix-cache-producer";
const MOVED: [&str; 7] = [
    "hashBlockSize",
    "blockSize",
    "blockSizeTokens",
    "autoTune",
    "maxPrefixBlocksToMatch",
    "maxPrefixTokensToMatch",
    "lruCapacityPerServer",
];
/// Block size of the generations that counted characters, in tokens.
const OLD_BLOCK_TOKENS: i64 = 16;

pub(super) fn translate(document: &mut Node, problems: &mut Problems) {
    let mut names: Vec<String> = plugins(document).iter().map(|p| name_of(p).to_owned()).collect();
    let mut added = Vec::new();
    for (i, plugin) in plugins(document).iter_mut().enumerate() {
        let path = format!("plugins[{i}].parameters");
        match type_of(plugin) {
            PRODUCER => characters_to_tokens(plugin, &path, problems),
            SCORER => {
                let scorer = name_of(plugin).to_owned();
                let Some(parameters) = get_mut(plugin, "parameters") else { continue };
                mode(parameters, &path, problems);
                let moved: Vec<_> =
                    MOVED.iter().filter_map(|key| take(parameters, key).map(|(at, v)| (*key, at, v))).collect();
                let Some((_, at, _)) = moved.first() else { continue };
                let at = *at;
                if let Some(named) = parameters.get("prefixMatchInfoProducerName") {
                    problems.error(
                        at,
                        &path,
                        "parameters of the index stand beside `prefixMatchInfoProducerName`",
                        format!("move them to the parameters of `{}`", named.as_str().unwrap_or(PRODUCER)),
                    );
                    continue;
                }
                let mut name = PRODUCER.to_owned();
                if names.contains(&name) {
                    name = format!("{scorer}-producer");
                }
                let keys = moved.iter().map(|(key, _, _)| *key).collect::<Vec<_>>().join(", ");
                problems.warn(
                    at,
                    &path,
                    format!("{keys}: the index of `{scorer}` is a plugin of its own now, read as `{name}`"),
                    format!(
                        "declare `{{name: {name}, type: {PRODUCER}}}` with `blockSizeTokens` (characters / 4) and \
                         `maxPrefixTokensToMatch`, and give the scorer `prefixMatchInfoProducerName: {name}`"
                    ),
                );
                put(parameters, "prefixMatchInfoProducerName", at, text(at, name.clone()));
                let parameters = producer_parameters(at, moved, &path, problems);
                names.push(name.clone());
                added.push((
                    at,
                    mapping(
                        at,
                        vec![("name", text(at, name)), ("type", text(at, PRODUCER)), ("parameters", parameters)],
                    ),
                ));
            }
            _ => {}
        }
    }
    for (at, entry) in added {
        add_plugin(document, at, entry);
    }
}

/// `mode` chose between the estimate and the exact index, which are two types now.
fn mode(parameters: &mut Node, path: &str, problems: &mut Problems) {
    let Some((at, value)) = take(parameters, "mode") else { return };
    let path = format!("{path}.mode");
    match value.as_str() {
        Some("estimate") => problems.warn(at, path, "`mode: estimate` is what this scorer does", "remove it"),
        Some("cache_tracking") => problems.error(
            at,
            path,
            "`mode: cache_tracking` is the precise-prefix-cache-producer, which is known to llm-d-router but not \
             supported by this version",
            "use the approximate index: remove `mode` and the parameters of the exact one",
        ),
        _ => problems.error(
            at,
            path,
            format!("{} is not one of estimate, cache_tracking", value.describe()),
            "remove it: the approximate index is the default",
        ),
    }
}

fn integer(at: Position, value: i64) -> Node {
    Node { at, value: Value::Integer(value) }
}

/// A number of characters as tokens; what is no number is left for the strict decoder to refuse.
fn tokens(characters: &Node) -> Node {
    match characters.value {
        Value::Integer(n) if n > 0 => integer(characters.at, (n / 4).max(1)),
        _ => characters.clone(),
    }
}

fn producer_parameters(
    at: Position,
    moved: Vec<(&'static str, Position, Node)>,
    path: &str,
    problems: &mut Problems,
) -> Node {
    let find = |key: &str| moved.iter().find(|(k, _, _)| *k == key).map(|(_, _, v)| v);
    let block = find("blockSizeTokens").cloned().or_else(|| find("blockSize").or(find("hashBlockSize")).map(tokens));
    let mut fields = Vec::new();
    let fixed = find("hashBlockSize").is_some() && find("autoTune").is_none();
    if fixed {
        fields.push(("autoTune", Node { at, value: Value::Bool(false) }));
    }
    if let Some(auto) = find("autoTune") {
        fields.push(("autoTune", auto.clone()));
    }
    let block_tokens = match block.as_ref().map(|n| &n.value) {
        Some(Value::Integer(n)) => *n,
        _ => OLD_BLOCK_TOKENS,
    };
    if let Some(block) = block {
        fields.push(("blockSizeTokens", block));
    }
    match (find("maxPrefixTokensToMatch"), find("maxPrefixBlocksToMatch")) {
        (Some(limit), _) => fields.push(("maxPrefixTokensToMatch", limit.clone())),
        (None, Some(Node { at, value: Value::Integer(0) })) => {
            fields.push(("maxPrefixTokensToMatch", integer(*at, 0)));
            fields.push(("maxPrefixBlocksToMatch", integer(*at, 0)));
        }
        (None, Some(Node { at, value: Value::Integer(blocks) })) if *blocks > 0 => {
            fields.push(("maxPrefixTokensToMatch", integer(*at, blocks.saturating_mul(block_tokens.max(1)))));
        }
        (None, Some(wrong)) => problems.error(
            wrong.at,
            format!("{path}.maxPrefixBlocksToMatch"),
            format!("expected an integer from 0, found {}", wrong.describe()),
            "write the number of blocks, or 0 for no limit",
        ),
        (None, None) => {}
    }
    if let Some(capacity) = find("lruCapacityPerServer") {
        fields.push(("lruCapacityPerServer", capacity.clone()));
    }
    mapping(at, fields)
}

/// `blockSize` of the producer itself, in characters.
fn characters_to_tokens(plugin: &mut Node, path: &str, problems: &mut Problems) {
    let Some(parameters) = get_mut(plugin, "parameters") else { return };
    let Some((at, value)) = take(parameters, "blockSize") else { return };
    problems.warn(
        at,
        format!("{path}.blockSize"),
        "`blockSize` counts characters and is read as a quarter as many tokens",
        "write `blockSizeTokens` (characters / 4)",
    );
    if parameters.get("blockSizeTokens").is_none() {
        put(parameters, "blockSizeTokens", at, tokens(&value));
    }
}
