//! The committed table, and what has changed against it.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

const HEAD: &str = "\
# What one operation of each workload in benches/instructions.rs costs: instructions, allocations.
# Written by `make instructions ACCEPT=1`; docs/development.md says how to read it.
";

/// Growth that is let pass, as a share, where everything is as it was recorded.
const TOLERANCE: f64 = 0.05;
/// The same with another compiler, C library or valgrind.
const TOLERANCE_ELSEWHERE: f64 = 0.15;
/// Instructions that are always let pass: a register spilt in a loop of a small workload.
const SLACK: f64 = 20.0;

/// What one operation costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub instructions: f64,
    pub allocations: f64,
}

/// What counts depend on besides the code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    pub rustc: String,
    pub libc: String,
    pub valgrind: String,
    /// Architecture and vector instructions: with others the counts say nothing about these.
    pub cpu: String,
}

impl Conditions {
    pub fn now(valgrind: &Path) -> Self {
        let first_line = |program: &Path, args: &[&str], prefix: &str| {
            let output = Command::new(program).args(args).output().ok();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let line = text.lines().next().unwrap_or("unknown").trim();
            line.strip_prefix(prefix).unwrap_or(line).to_owned()
        };
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has_avx2 = cpus.lines().any(|line| line.starts_with("flags") && line.split(' ').any(|f| f == "avx2"));
        Self {
            rustc: first_line(Path::new("rustc"), &["--version"], "rustc "),
            libc: first_line(Path::new("getconf"), &["GNU_LIBC_VERSION"], ""),
            valgrind: first_line(valgrind, &["--tool=callgrind", "--version"], "valgrind-"),
            cpu: format!("{}{}", std::env::consts::ARCH, if has_avx2 { " with avx2" } else { "" }),
        }
    }

    fn fields(&self) -> [(&'static str, &str); 4] {
        [("rustc", &self.rustc), ("libc", &self.libc), ("valgrind", &self.valgrind), ("cpu", &self.cpu)]
    }
}

/// Workloads in the order of the program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub conditions: Conditions,
    pub rows: Vec<(String, Cost)>,
}

impl Table {
    /// Lines `key: value` for the conditions, then `instructions allocations name`.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            if let Some((key, value)) = line.split_once(": ") {
                let conditions = &mut table.conditions;
                match key {
                    "rustc" => conditions.rustc = value.into(),
                    "libc" => conditions.libc = value.into(),
                    "valgrind" => conditions.valgrind = value.into(),
                    "cpu" => conditions.cpu = value.into(),
                    _ => return Err(format!("line {}: `{key}` is no condition", number + 1)),
                }
                continue;
            }
            let mut words = line.split_whitespace();
            let mut figure = || words.next().and_then(|word| word.parse::<f64>().ok());
            let (Some(instructions), Some(allocations)) = (figure(), figure()) else {
                return Err(format!("line {}: two figures and a name are expected", number + 1));
            };
            let name = words.collect::<Vec<_>>().join(" ");
            table.rows.push((name, Cost { instructions, allocations }));
        }
        Ok(table)
    }

    /// This table with what was measured `now` in place of the workloads with `only` in their name; `names` are all
    /// that there are.
    pub fn updated<'n>(&self, now: Table, only: &str, names: impl Iterator<Item = &'n str>) -> Table {
        let rows = names.filter_map(|name| {
            let from = if name.contains(only) { &now } else { self };
            Some((name.to_owned(), from.get(name)?))
        });
        Table { rows: rows.collect(), conditions: now.conditions.clone() }
    }

    fn get(&self, name: &str) -> Option<Cost> {
        self.rows.iter().find(|(known, _)| known == name).map(|(_, cost)| *cost)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        for (key, value) in self.conditions.fields() {
            writeln!(f, "{key}: {value}")?;
        }
        for (name, cost) in &self.rows {
            writeln!(f, "{:>10.0} {:>8} {name}", cost.instructions, figure(cost.allocations))?;
        }
        Ok(())
    }
}

/// Up to two decimals: what is sampled shows as a fraction.
fn figure(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What has become of the recorded costs.
pub struct Verdict {
    /// For people: the conditions where they differ, and a line for each workload.
    pub text: String,
    grown: Vec<(String, String)>,
    unrecorded: Vec<String>,
    fell: bool,
}

/// Compares the workloads with `only` in their name.
pub fn compare(recorded: &Table, now: &Table, only: &str) -> Verdict {
    let mut verdict = Verdict { text: String::new(), grown: Vec::new(), unrecorded: Vec::new(), fell: false };
    let mut tolerance = TOLERANCE;
    for ((key, then), (_, now)) in recorded.conditions.fields().into_iter().zip(now.conditions.fields()) {
        if then != now && !recorded.rows.is_empty() {
            tolerance = TOLERANCE_ELSEWHERE;
            _ = writeln!(verdict.text, "{key} differs: recorded with {then}, now {now}");
        }
    }
    let comparable = recorded.conditions.cpu == now.conditions.cpu;
    _ = match comparable || recorded.rows.is_empty() {
        true => writeln!(verdict.text, "more than {:.0} % above the record fails\n", tolerance * 100.0),
        false => writeln!(verdict.text, "another kind of CPU: only allocations are compared\n"),
    };
    _ = writeln!(
        verdict.text,
        "{:<44} {:>12} {:>12} {:>8} {:>12} {:>8}",
        "per operation", "instructions", "recorded", "change", "allocations", "recorded"
    );
    for (name, cost) in &now.rows {
        let before = recorded.get(name);
        let share = before.map_or(0.0, |before| cost.instructions / before.instructions - 1.0);
        _ = writeln!(
            verdict.text,
            "{name:<44} {:>12.0} {:>12} {:>8} {:>12} {:>8}",
            cost.instructions,
            before.map_or_else(|| "-".into(), |before| format!("{:.0}", before.instructions)),
            before.map_or_else(|| "new".into(), |_| format!("{:+.1} %", share * 100.0)),
            figure(cost.allocations),
            before.map_or_else(|| "-".into(), |before| figure(before.allocations)),
        );
        let Some(before) = before else {
            verdict.unrecorded.push(format!("{name}: not in the table"));
            continue;
        };
        let allowed = (before.instructions * tolerance).max(SLACK);
        if comparable && cost.instructions > before.instructions + allowed {
            verdict.grown.push((
                name.clone(),
                format!(
                    "{:.0} instructions became {:.0} ({:+.1} %, {:.0} % is let pass)",
                    before.instructions,
                    cost.instructions,
                    share * 100.0,
                    tolerance * 100.0
                ),
            ));
        }
        // The table has two decimals.
        if cost.allocations > before.allocations + 0.006 {
            let (before, now) = (figure(before.allocations), figure(cost.allocations));
            verdict.grown.push((name.clone(), format!("{before} allocations became {now}")));
        }
        verdict.fell |= comparable && cost.instructions < before.instructions - allowed
            || cost.allocations < before.allocations - 0.006;
    }
    for (name, _) in recorded.rows.iter().filter(|(name, _)| name.contains(only)) {
        if now.get(name).is_none() {
            verdict.unrecorded.push(format!("{name}: in the table, but no longer a workload"));
        }
    }
    if verdict.fell {
        verdict.text.push_str("\nSome cost less than recorded: hold on to that with `make instructions ACCEPT=1`.\n");
    }
    verdict
}

impl Verdict {
    /// Why it fails, if it does, and what to do; `profile` is where that of a workload is.
    pub fn problem(&self, profile: impl Fn(&str) -> PathBuf) -> Option<String> {
        let mut text = String::new();
        if !self.grown.is_empty() {
            text.push_str("FAILED: these cost more than recorded:\n");
            for (name, how) in &self.grown {
                _ = writeln!(text, "  {name}: {how}");
            }
            _ = writeln!(text, "Where it goes: callgrind_annotate '{}'", profile(&self.grown[0].0).display());
        }
        if !self.unrecorded.is_empty() {
            text.push_str("FAILED: the table does not list the workloads that there are:\n");
            for line in &self.unrecorded {
                _ = writeln!(text, "  {line}");
            }
        }
        if text.is_empty() {
            return None;
        }
        text.push_str(
            "If it is meant: `make instructions ACCEPT=1` writes benches/instructions.txt anew; commit it with the \
             change and say there what the cost buys.",
        );
        Some(text)
    }
}
