//! The bar that shows how far a comparison is.

use crate::replay::compare::Progress;

const WIDTH: usize = 30;

/// The bar after `micros` microseconds, without a line break.
pub fn bar(progress: &Progress, runs: usize, micros: u64) -> String {
    let (seconds, done) = progress.get();
    let filled = (done * WIDTH / runs.max(1)).min(WIDTH);
    let speed = seconds / (micros.max(1) as f64 / 1e6);
    format!("[{}{}] {done}/{runs} runs, {speed:.0} x real time   ", "#".repeat(filled), "-".repeat(WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bar_is_a_bar() {
        let text = bar(&Progress::default(), 4, 0);
        assert!(text.starts_with(&format!("[{}] 0/4 runs", "-".repeat(WIDTH))), "{text}");
    }
}
