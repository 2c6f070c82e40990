//! Medians of runs, the goals beside them, and the page that they are written to.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::drive::Run;

/// The median of some figures.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of one figure of some runs.
pub fn of(runs: &[Run], figure: impl Fn(&Run) -> f64) -> f64 {
    median(runs.iter().map(figure))
}

/// CPU microseconds per request of all runs together. Medians of rounds of a second differ by some percent.
pub fn mean(runs: &[Run]) -> f64 {
    let requests: u64 = runs.iter().map(|run| run.requests).sum();
    runs.iter().map(|run| run.cpu.as_secs_f64()).sum::<f64>() * 1e6 / requests.max(1) as f64
}

/// The page under construction; everything also goes to standard output as it is found.
#[derive(Default)]
pub struct Report {
    page: String,
    missed: Vec<String>,
}

impl Report {
    /// A line of text.
    pub fn say(&mut self, text: &str) {
        println!("{text}");
        self.page.push_str(text);
        self.page.push('\n');
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        self.say(&format!("\n## {text}\n"));
    }

    /// The head of a table.
    pub fn table(&mut self, columns: &[&str]) {
        self.say(&format!("| {} |", columns.join(" | ")));
        self.say(&format!("|{}", "---|".repeat(columns.len())));
    }

    /// A row of a table.
    pub fn row(&mut self, cells: &[String]) {
        self.say(&format!("| {} |", cells.join(" | ")));
    }

    /// A figure beside its goal: at most `goal`.
    pub fn at_most(&mut self, what: &str, found: f64, goal: f64, digits: usize) -> String {
        let met = found <= goal;
        if !met {
            self.missed.push(format!("{what}: {found:.digits$}, goal {goal}"));
        }
        format!("{found:.digits$} {} {goal}", if met { "≤" } else { "**>**" })
    }

    /// Writes the page, with what was missed at its end.
    pub fn write(mut self, file: &Path, head: &str) {
        self.heading("Goals that this run missed");
        if self.missed.is_empty() {
            self.say("None.");
        }
        for line in std::mem::take(&mut self.missed) {
            self.say(&format!("* {line}"));
        }
        let mut page = String::from(head);
        let _ = write!(page, "{}", self.page);
        match std::fs::write(file, page) {
            Ok(()) => println!("\nwritten to {}", file.display()),
            Err(error) => eprintln!("cannot write {}: {error}", file.display()),
        }
    }
}

/// Microseconds, in a width that reads well.
pub fn micros(value: f64) -> String {
    if value >= 1000.0 { format!("{:.2} ms", value / 1000.0) } else { format!("{value:.0} µs") }
}

/// What the figures were taken on.
pub fn conditions() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    vec![
        format!("{cores} cores ({model}), Linux {}, loopback, plaintext, all processes on this machine", kernel.trim()),
        "release build with the settings of `Cargo.toml`; mimalloc in every process".to_owned(),
    ]
}

/// Share of the machine that other processes take just now, in cores.
pub fn other_load() -> f64 {
    let busy = || {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<f64> =
            stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
        // All but idle and waiting for disks, in ticks of 10 ms.
        fields.iter().sum::<f64>() - fields.get(3).unwrap_or(&0.0) - fields.get(4).unwrap_or(&0.0)
    };
    let before = busy();
    std::thread::sleep(Duration::from_secs(1));
    (busy() - before) / 100.0
}
