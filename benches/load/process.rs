//! Child processes under measurement: started on a core of their own, their CPU time and memory read from
//! `/proc`, stopped when dropped.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running child.
pub struct Server {
    child: Child,
    /// Where it serves ext_proc.
    pub address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command pinned to `core`; without a second core, or without `taskset`, unpinned.
pub fn pinned(core: Option<usize>, program: &Path) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
    }
}

impl Server {
    /// Starts this program again as `role` (`echo`, `null`); it prints its address.
    pub fn own(role: &str, core: Option<usize>) -> Self {
        Self::own_with(role, core, &[])
    }

    /// [`Server::own`] with further arguments.
    pub fn own_with(role: &str, core: Option<usize>, args: &[&str]) -> Self {
        let mut child = pinned(core, &std::env::current_exe().expect("a path"))
            .args(["--bench", "--role", role])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints its address");
        let address = line.trim().parse().expect("an address");
        Self { child, address }
    }

    /// Starts the picker with `args`; `port` is its ext_proc port.
    pub fn picker(core: Option<usize>, port: u16, args: &[String], log: &Path) -> Self {
        let child = pinned(core, Path::new(env!("CARGO_BIN_EXE_pointsman")))
            .args(args)
            .args(["--grpc-port", &port.to_string()])
            .stderr(std::fs::File::create(log).expect("a log file"))
            .spawn()
            .expect("the picker starts");
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// CPU time used so far, user and system together. The kernel counts in ticks of 10 ms.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

/// CPU time of a process so far.
pub fn cpu_of(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("a process that lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    // Fields 14 and 15 of proc(5), counted from the third.
    [11, 12].iter().map(|at| Duration::from_millis(fields[*at].parse::<u64>().expect("a number") * 10)).sum()
}

/// A port that is free now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Moves this process, the generator, to the last core, and returns the core for the servers. `None` where there is
/// one core only, or no `taskset`.
pub fn split_cores() -> Option<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores > 1 && set_affinity(&(cores - 1).to_string())).then_some(0)
}

/// Gives this process all cores back.
pub fn use_all_cores() {
    let cores = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    set_affinity(cores.trim());
}

fn set_affinity(cores: &str) -> bool {
    let id = std::process::id().to_string();
    let set = Command::new("taskset").args(["-acp", cores, &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    set.is_ok_and(|status| status.success())
}
