//! A decision of `/debug/decisions` as plain text.
//!
//! What the page lacks is left out, so that pages of other versions can be read, too.

use std::fmt::Write as _;

use serde_json::Value;

/// Longest name that is printed whole.
const NAME: usize = 120;

/// The text, with at most `rows` candidates per profile (0 is all).
pub(super) fn write(decision: &Value, rows: usize) -> String {
    let mut out = String::new();
    head(&mut out, decision);
    for profile in list(&decision["profiles"]) {
        out.push('\n');
        one_profile(&mut out, profile, rows);
    }
    outcome(&mut out, &decision["outcome"]);
    out
}

fn head(out: &mut String, decision: &Value) {
    let _ = write!(out, "decision {} on request {}", word(&decision["id"]), word(&decision["requestId"]));
    if let Some(at) = decision["at"].as_str() {
        let _ = write!(out, " at {}", plain(at));
    }
    let (model, target) = (word(&decision["model"]), word(&decision["targetModel"]));
    let _ = write!(out, "\n{}, model {model}", word(&decision["path"]));
    if target != model {
        let _ = write!(out, " sent as {target}");
    }
    if let Some(tokens) = decision["promptTokens"].as_u64() {
        let _ = write!(out, ", prompt about {tokens} tokens");
    }
    let _ = write!(out, ", priority {}", decision["priority"].as_i64().unwrap_or(0));
    let _ = write!(out, ", fairness id {}", word(&decision["fairnessId"]));
    match decision["heldMs"].as_f64() {
        Some(held) if held > 0.0 => {
            let _ = writeln!(out, ", held {held} ms");
        }
        _ => out.push('\n'),
    }
}

fn one_profile(out: &mut String, profile: &Value, rows: usize) {
    let why = &profile["explanation"];
    let picked: Vec<String> = list(&profile["picked"])
        .iter()
        .map(|p| format!("{} ({})", word(&p["endpoint"]), word(&p["address"])))
        .collect();
    let _ =
        writeln!(out, "profile {}: {} by {}", word(&profile["profile"]), picked.join(", then "), word(&why["picker"]));
    if why.is_null() {
        out.push_str("  not explained\n");
        return;
    }
    candidates(out, why, &list(&profile["picked"]).iter().map(|p| word(&p["endpoint"])).collect::<Vec<_>>(), rows);
    removed(out, why);
    verdict(out, &profile["verdict"], why);
}

fn candidates(out: &mut String, why: &Value, picked: &[String], rows: usize) {
    let scorers = list(&why["scorers"]);
    let costs = why.get("costs").filter(|c| !c.is_null());
    let unit = costs.map_or("", |c| c["unit"].as_str().unwrap_or(""));
    let all = list(&why["candidates"]);

    let mut header: Vec<String> = vec![String::new(), "endpoint".into()];
    let blocks = all.iter().any(|c| !list(&c["prefixBlocks"]).is_empty());
    if blocks {
        header.push("cached blocks".into());
    }
    header.extend(scorers.iter().map(|s| format!("{} x{}", word(&s["name"]), number(&s["weight"], 2))));
    if !scorers.is_empty() {
        header.push("total".into());
    }
    if let Some(costs) = costs {
        header.extend(list(&costs["terms"]).iter().map(|term| format!("{} {unit}", word(term))));
        header.push(format!("cost {unit}"));
    }

    // Best first, as the picker saw it; the picked ones before their equals.
    let rank = |c: &Value| match costs {
        Some(_) => c["cost"].as_f64().unwrap_or(f64::INFINITY),
        None => -c["total"].as_f64().unwrap_or(f64::NEG_INFINITY),
    };
    let place = |c: &Value| picked.iter().position(|p| *p == word(&c["endpoint"])).unwrap_or(usize::MAX);
    let mut order: Vec<&Value> = all.iter().collect();
    order.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then_with(|| place(a).cmp(&place(b))));
    let shown = if rows == 0 { order.len() } else { rows.min(order.len()) };
    let (head, tail) = order.split_at(shown);
    let kept = head.iter().chain(tail.iter().filter(|c| place(c) != usize::MAX));

    let mut table = vec![header];
    for candidate in kept {
        let mark = if place(candidate) == 0 { "*" } else { "" };
        let mut row = vec![mark.to_owned(), word(&candidate["endpoint"])];
        if blocks {
            let blocks: Vec<String> = list(&candidate["prefixBlocks"]).iter().map(|b| number(b, 0)).collect();
            row.push(blocks.join("/"));
        }
        let values = list(&candidate["values"]);
        row.extend((0..scorers.len()).map(|i| number(values.get(i).unwrap_or(&Value::Null), 3)));
        if !scorers.is_empty() {
            row.push(number(&candidate["total"], 3));
        }
        if let Some(costs) = costs {
            let values = list(&candidate["costs"]);
            row.extend((0..list(&costs["terms"]).len()).map(|i| number(values.get(i).unwrap_or(&Value::Null), 4)));
            row.push(number(&candidate["cost"], 4));
        }
        table.push(row);
    }
    let left = order.len() + 1 - table.len();
    columns(out, &table);
    if left > 0 {
        let _ = writeln!(out, "  {left} more (--rows=0 shows all)");
    }
}

fn removed(out: &mut String, why: &Value) {
    let all = list(&why["removed"]);
    let mut filters: Vec<String> = all.iter().map(|r| word(&r["filter"])).collect();
    filters.dedup();
    for filter in filters {
        let names: Vec<String> =
            all.iter().filter(|r| word(&r["filter"]) == filter).map(|r| word(&r["endpoint"])).collect();
        let more = if names.len() > 10 { format!(" and {} more", names.len() - 10) } else { String::new() };
        let _ = writeln!(out, "  removed by {filter}: {}{more}", names[..names.len().min(10)].join(", "));
    }
}

fn verdict(out: &mut String, verdict: &Value, why: &Value) {
    if verdict.is_null() {
        return;
    }
    let unit = match verdict["unit"].as_str() {
        Some(unit) => format!(" {}", plain(unit)),
        None => String::new(),
    };
    let (other, margin) = (word(&verdict["runnerUp"]), number(&verdict["margin"], 4));
    let _ = match verdict["decidedBy"].as_str() {
        Some("only-candidate") => writeln!(out, "  it was the only candidate"),
        Some("tie-rule") => {
            let tolerance = &why["costs"]["tolerance"];
            let within = match tolerance.as_f64() {
                Some(_) => format!("within {}{unit} of each other count as equal", number(tolerance, 4)),
                None => "equal totals".to_owned(),
            };
            let rule = verdict["tieRule"].as_str().unwrap_or("the picker's own rule");
            writeln!(out, "  margin {margin}{unit} to {other}: {within}, and are decided by {}", plain(rule))
        }
        Some("picker") => {
            writeln!(out, "  margin {margin}{unit} to {other}: {} does not go by the best alone", word(&why["picker"]))
        }
        _ => writeln!(out, "  margin {margin}{unit} to {other}"),
    };
    let flips = list(&verdict["flips"]);
    if !flips.is_empty() {
        out.push_str("  any one of these would have closed it:\n");
    }
    for flip in flips {
        let (from, to) = (&flip["from"], &flip["to"]);
        let (column, endpoint) = (word(&flip["column"]), word(&flip["endpoint"]));
        let by = (to.as_f64().unwrap_or(0.0) - from.as_f64().unwrap_or(0.0)) as f32;
        let direction = if by < 0.0 { "lower" } else { "higher" };
        let _ = writeln!(
            out,
            "    {column} of {endpoint} {direction} by {}{unit}: {} instead of {}",
            number(&by.abs().into(), 4),
            number(to, 4),
            number(from, 4)
        );
    }
}

fn outcome(out: &mut String, outcome: &Value) {
    out.push('\n');
    if outcome.is_null() {
        out.push_str("outcome: not ended yet\n");
        return;
    }
    let _ = write!(out, "outcome: {}", word(&outcome["outcome"]));
    if let Some(status) = outcome["status"].as_u64().filter(|s| *s > 0) {
        let _ = write!(out, ", status {status}");
    }
    if let Some(ttft) = outcome["ttftMs"].as_f64() {
        let _ = write!(out, ", first token after {ttft} ms");
    }
    if let Some(total) = outcome["totalMs"].as_f64() {
        let _ = write!(out, ", over after {total} ms");
    }
    match (outcome["cachedTokens"].as_u64(), outcome["promptTokens"].as_u64()) {
        (Some(cached), Some(prompt)) => {
            let _ = write!(out, ", {cached} of {prompt} prompt tokens from its cache");
        }
        (None, Some(prompt)) => {
            let _ = write!(out, ", {prompt} prompt tokens");
        }
        _ => {}
    }
    if let Some(tokens) = outcome["outputTokens"].as_u64() {
        let _ = write!(out, ", {tokens} tokens of output");
    }
    if let Some(served) = outcome["servedBy"].as_str() {
        let _ = write!(out, ", answered by {}", plain(served));
    }
    out.push('\n');
}

/// Columns as wide as their widest cell: text to the left, numbers to the right.
fn columns(out: &mut String, table: &[Vec<String>]) {
    let count = table.first().map_or(0, Vec::len);
    let width = |c: usize| table.iter().filter_map(|row| row.get(c)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    for row in table {
        let mut line = String::from(" ");
        for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match c {
                0 | 1 => write!(line, " {cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A number with at most `digits` after the point; a dash for what is none.
fn number(value: &Value, digits: usize) -> String {
    let Some(number) = value.as_f64() else { return "-".into() };
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| "-".into(), plain)
}

/// Text of clients on a terminal: printable ASCII only, and not too long.
fn plain(text: &str) -> String {
    let shown = text.chars().take(NAME).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' });
    let mut shown: String = shown.collect();
    if text.chars().nth(NAME).is_some() {
        shown.push_str("...");
    }
    shown
}
