//! What the process takes from the machine, under the names that every Prometheus client library uses.
//!
//! Read from `/proc` when the page is made; where that is not to be had, the families are absent.
//! Rejected: the collector of the `prometheus` crate, which counts CPU in whole seconds (an idle picker
//! would show steps) and brings a second copy of its system bindings.

use std::fs;

use super::catalog as c;
use super::family::Page;

/// Length of the kernel's clock tick for user space; fixed on the platforms that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds the families.
pub fn collect(page: &mut Page) {
    if let Some(stat) = read("/proc/self/stat").as_deref().and_then(Stat::parse) {
        page.value::<&str>(&c::PROCESS_CPU, &[], stat.cpu_seconds);
        page.value::<&str>(&c::PROCESS_THREADS, &[], stat.threads);
        if let Some(boot) = read("/proc/stat").as_deref().and_then(boot_time) {
            page.value::<&str>(&c::PROCESS_START, &[], boot + stat.started);
        }
    }
    if let Some(bytes) = read("/proc/self/status").as_deref().and_then(resident) {
        page.value::<&str>(&c::PROCESS_RESIDENT, &[], bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.value::<&str>(&c::PROCESS_OPEN_FDS, &[], open.count() as f64);
    }
    if let Some(most) = read("/proc/self/limits").as_deref().and_then(most_files) {
        page.value::<&str>(&c::PROCESS_MAX_FDS, &[], most);
    }
}

fn read(path: &str) -> Option<String> {
    // A few kilobytes each, but for /proc/stat on machines with very many interrupts.
    fs::read_to_string(path).ok()
}

/// Parts of `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    /// Seconds from the start of the machine to that of the process.
    started: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name in parentheses, and may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let field = |n: usize| rest.split_ascii_whitespace().nth(n - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            threads: field(20)?,
            started: field(22)? / TICKS_PER_SECOND,
        })
    }
}

/// Seconds since the epoch at which the machine started.
fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Resident memory in bytes.
fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// The soft limit of open files; absent if there is none.
fn most_files(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 900 0 0 0 150 25 0 0 20 0 9 0 5000 1000 200 1 2 3";
        assert_eq!(Stat::parse(stat), Some(Stat { cpu_seconds: 1.75, threads: 9.0, started: 50.0 }));
        assert_eq!(boot_time("cpu 1 2\nintr 5\nbtime 1700000000\nprocesses 3\n"), Some(1_700_000_000.0));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        let limits = "Limit   Soft Limit   Hard Limit   Units\nMax open files            1024      4096     files\n";
        assert_eq!(most_files(limits), Some(1024.0));
        assert_eq!(most_files("Max open files            unlimited      unlimited     files\n"), None);
        for text in ["", ")", "x", "1 (a) S", "VmRSS:", "btime"] {
            assert_eq!(
                (Stat::parse(text), boot_time(text), resident(text), most_files(text)),
                (None, None, None, None)
            );
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_all_families() {
        let mut page = Page::default();
        collect(&mut page);
        let families = page.into_families();
        let value = |name: &str| {
            let family = families.iter().find(|f| f.name() == name).unwrap_or_else(|| panic!("{name}"));
            let metric = &family.get_metric()[0];
            metric.get_gauge().get_value() + metric.get_counter().get_value()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_threads") >= 1.0);
        assert!(value("process_cpu_seconds_total") < 1e6);
        assert!(value("process_start_time_seconds") > 1.6e9);
    }
}
