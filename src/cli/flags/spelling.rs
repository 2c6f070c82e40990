//! Every accepted spelling of a flag becomes `--name=value`.
//!
//! Accepted: `--name value` and `--name=value`; one dash, as Go's flag package did; camelCase, as
//! llm-d v0.1 to v0.3.0 had it; flags that only older releases had, which are dropped. Each old
//! spelling is a warning that names today's. Anything else that starts with a dash is an error here,
//! so that all unknown flags are reported at once.

use clap::{ArgAction, Command};

use crate::domain::node::{Position, Problems, nearest};

/// Flags that older releases had. The value, if the flag takes one, goes with it.
const REMOVED: [(&str, bool, &str); 6] = [
    ("model-server-metrics-port", true, "set `port` of a metrics-data-source"),
    ("model-server-metrics-path", true, "set `path` of a metrics-data-source"),
    ("model-server-metrics-scheme", true, "set `scheme` of a metrics-data-source"),
    ("model-server-metrics-https-insecure-skip-verify", false, "set `insecureSkipVerify` of a metrics-data-source"),
    ("destination-endpoint-hint-key", true, "the header is always x-gateway-destination-endpoint"),
    ("destination-endpoint-hint-metadata-namespace", true, "the namespace is always envoy.lb"),
];

/// Flags that name metrics; setting one stops start-up, as in the picker we replace.
const METRICS: [&str; 5] = [
    "total-queued-requests-metric",
    "total-running-requests-metric",
    "kv-cache-usage-percentage-metric",
    "lora-info-metric",
    "cache-info-metric",
];

/// What a flag's name asks of the words around it.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// Takes a value, after `=` or as the next word.
    Value,
    /// A boolean: a value only after `=`.
    Switch,
}

/// Rewrites `args`; what cannot go on to clap is recorded and left out.
pub(super) fn normalise(args: &[String], command: &Command, problems: &mut Problems) -> Vec<String> {
    let mut out = Vec::with_capacity(args.len());
    let mut words = args.iter().peekable();
    let mut subcommand = false;
    while let Some(word) = words.next() {
        let Some(dashed) = word.strip_prefix('-').filter(|rest| !rest.is_empty() && *rest != "-") else {
            match command.find_subcommand(word) {
                Some(sub) if !subcommand => {
                    subcommand = true;
                    out.push(word.clone());
                    if sub.get_name() != "check" {
                        // The flags of other subcommands are their own.
                        out.extend(words.cloned());
                        break;
                    }
                }
                _ => stray(word, subcommand, command, problems),
            }
            continue;
        };
        let single = !dashed.starts_with('-');
        let body = dashed.strip_prefix('-').unwrap_or(dashed);
        let (written, mut value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if matches!(written, "h" | "help" | "V" | "version") {
            out.push(if matches!(written, "h" | "help") { "--help".into() } else { "--version".into() });
            continue;
        }
        // `-v4`, which pflag takes for a short flag.
        if single && written.len() > 1 && written.starts_with('v') && written[1..].bytes().all(|b| b.is_ascii_digit()) {
            out.push(format!("--v={}", &written[1..]));
            continue;
        }
        let name = kebab(written);
        let shape = shape(&name, command);
        if shape == Some(Shape::Value) && value.is_none() {
            match words.next() {
                Some(next) => value = Some(next.clone()),
                None => {
                    let path = format!("--{name}");
                    problems.error(
                        Position::default(),
                        &path,
                        "the flag needs a value",
                        format!("write `{path}=value`"),
                    );
                    continue;
                }
            }
        }
        let Some(_) = shape else {
            unknown(word, &name, command, problems);
            // Its value, if the next word is one, is not a word of its own.
            if value.is_none() && words.peek().is_some_and(|next| !next.starts_with('-')) {
                words.next();
            }
            continue;
        };
        let removed = REMOVED.iter().find(|(removed, _, _)| *removed == name);
        if (name != written || single) && name != "v" && removed.is_none() {
            problems.warn(
                Position::default(),
                format!("--{name}"),
                format!("`{}{written}` is an old spelling", if single { "-" } else { "--" }),
                format!("write `--{name}`"),
            );
        }
        if let Some((_, _, instead)) = removed {
            let path = format!("--{name}");
            problems.warn(Position::default(), path, "the flag no longer exists and is ignored", *instead);
            continue;
        }
        if METRICS.contains(&name.as_str()) {
            problems.error(
                Position::default(),
                format!("--{name}"),
                "names of metrics are no longer set by flags",
                "declare a core-metrics-extractor and set it in its `engineConfigs`",
            );
            continue;
        }
        out.push(match value {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{name}"),
        });
    }
    out
}

fn stray(word: &str, subcommand: bool, command: &Command, problems: &mut Problems) {
    let shown: String = word.chars().take(80).collect();
    let names: Vec<&str> = command.get_subcommands().map(|c| c.get_name()).collect();
    let fix = match nearest(word, names.iter().copied()) {
        Some(near) if !subcommand => format!("did you mean `{near}`?"),
        _ if subcommand => "a file is named by --config-file".to_owned(),
        _ => format!("a boolean flag takes its value after `=`; the subcommands are {}", names.join(", ")),
    };
    let message = format!("`{shown}` is neither a flag nor a subcommand");
    problems.error(Position::default(), "(arguments)", message, fix);
}

fn unknown(word: &str, name: &str, command: &Command, problems: &mut Problems) {
    let known: Vec<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
    let fix = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `--{near}`?"),
        None => "see --help for all flags".into(),
    };
    let shown: String = word.split('=').next().unwrap_or_default().chars().take(80).collect();
    problems.error(
        Position::default(),
        format!("--{}", name.chars().take(80).collect::<String>()),
        format!("`{shown}` is not a flag"),
        fix,
    );
}

fn shape(name: &str, command: &Command) -> Option<Shape> {
    if let Some((_, takes_value, _)) = REMOVED.iter().find(|(removed, _, _)| *removed == name) {
        return Some(if *takes_value { Shape::Value } else { Shape::Switch });
    }
    if METRICS.contains(&name) {
        return Some(Shape::Value);
    }
    let arg = command.get_arguments().find(|a| a.get_long() == Some(name))?;
    let switch = !matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
        || arg.get_num_args().is_some_and(|n| n.min_values() == 0);
    Some(if switch { Shape::Switch } else { Shape::Value })
}

/// `grpcHealthPort` as `grpc-health-port`.
fn kebab(name: &str) -> String {
    let mut kebab = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() && !kebab.ends_with('-') {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}
