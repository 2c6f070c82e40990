//! Instructions and allocations per operation, held against a table: `make instructions`.
//!
//! Time wobbles with the machine; the number of instructions does not. This program runs each of its workloads
//! under callgrind in a process of its own, where only what [`counted`] calls is counted: not the start, not the
//! preparation, not the first operations, which fill caches and buffers. The result is compared with
//! `benches/instructions.txt`. More instructions than the tolerance allows, or any allocation more, is a failure
//! that names what grew.
//!
//! What keeps the counts still: one thread, seeded random numbers, a clock that moves only when told to, an empty
//! environment, and the CPU that valgrind pretends to be. What is left comes from the compiler and the C library,
//! so the table says which ones it was made with; with others the tolerance is wider.
//!
//! Rejected: `iai-callgrind` (a second program to install in the version of the library, for what is a few lines),
//! client requests of valgrind (C headers, unsafe code), and hardware counters (not there on most CI machines).
//!
//! Options: `--valgrind PATH` (without it nothing is measured), `--only TEXT` for the workloads with TEXT in their
//! name, `--accept` to write the table anew.

#[path = "instructions/callgrind.rs"]
mod callgrind;
#[path = "micro/chains.rs"]
mod chains;
#[path = "micro/edge.rs"]
mod edge;
#[path = "micro/held.rs"]
mod held;
#[path = "micro/picker.rs"]
mod picker;
#[path = "pick/pool.rs"]
mod pool;
#[path = "micro/requests.rs"]
mod requests;
#[path = "instructions/table.rs"]
mod table;
#[path = "instructions/workloads.rs"]
mod workloads;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use callgrind::Callgrind;
use table::{Conditions, Cost, Table};
use workloads::{CONTROL, WORKLOADS, Workload};

/// That of the process: it is part of what a request costs, and its functions are how allocations are counted.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Callgrind writes a profile when this function begins, so that what was before is not in the next one.
#[inline(never)]
fn counted(run: &mut dyn FnMut(), times: u32) {
    for _ in 0..times {
        run();
    }
}

/// Callgrind writes a profile when this function begins: that of `counted`.
#[inline(never)]
fn done() -> ! {
    std::process::exit(0)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    if !args.iter().any(|arg| arg == "--bench") {
        // Built and run by `cargo test --all-targets`, which wants no measurement.
        return ExitCode::SUCCESS;
    }
    if let Some(name) = option("--workload") {
        run(name);
    }
    let Some(valgrind) = option("--valgrind") else {
        println!("instructions are counted by `make instructions`");
        return ExitCode::SUCCESS;
    };
    let only = option("--only").map_or("", String::as_str);
    match gate(Path::new(valgrind), only, args.iter().any(|arg| arg == "--accept")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("\n{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a workload as callgrind's client. Does not return: threads of the workload may wait for ever.
fn run(name: &str) -> ! {
    let workload = all().find(|workload| workload.name == name).expect("a workload");
    let mut run = (workload.make)();
    (0..workload.times).for_each(|_| run());
    counted(&mut *run, workload.times);
    done()
}

fn all() -> impl Iterator<Item = &'static Workload> {
    std::iter::once(&CONTROL).chain(WORKLOADS)
}

fn gate(valgrind: &Path, only: &str, accept: bool) -> Result<(), String> {
    #[allow(clippy::disallowed_methods, reason = "nothing is injected into a benchmark")]
    let started = std::time::Instant::now();
    let program = std::env::current_exe().map_err(|e| format!("this program cannot find itself: {e}"))?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    std::fs::create_dir_all(folder.join("parts")).map_err(|e| format!("{}: {e}", folder.display()))?;
    let callgrind = Callgrind { valgrind, program: &program, folder: &folder };
    let control = callgrind.run(&CONTROL)?;
    if control.allocations != 3.0 {
        return Err(format!(
            "the control workload allocates 3 times and {} were seen: has the allocator changed? \
             See ALLOCATING in benches/instructions/callgrind.rs",
            control.allocations
        ));
    }
    let chosen: Vec<&Workload> = WORKLOADS.iter().filter(|workload| workload.name.contains(only)).collect();
    let measured = measure(&callgrind, &chosen)?;

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let recorded = match std::fs::read_to_string(&path) {
        Ok(text) => Table::read(&text).map_err(|e| format!("{}: {e}", path.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Table::default(),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    let now = Table { conditions: Conditions::now(valgrind), rows: measured };
    let verdict = table::compare(&recorded, &now, only);
    print!("{}", verdict.text);
    println!("\n{} workloads in {} s; profiles in {}", chosen.len(), started.elapsed().as_secs(), folder.display());
    if accept {
        let accepted = recorded.updated(now, only, WORKLOADS.iter().map(|workload| workload.name));
        std::fs::write(&path, accepted.to_string()).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("accepted: benches/instructions.txt is written anew");
        return Ok(());
    }
    verdict.problem(|name| callgrind::profile(&folder, name)).map_or(Ok(()), Err)
}

/// Runs the workloads, as many at a time as there are cores: it does not change what is counted.
fn measure(callgrind: &Callgrind<'_>, chosen: &[&Workload]) -> Result<Vec<(String, Cost)>, String> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some(workload) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((workload.name, callgrind.run(workload)));
        }
        done
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores.min(chosen.len())).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    done.sort_by_key(|(name, _)| chosen.iter().position(|workload| workload.name == *name));
    done.into_iter().map(|(name, cost)| Ok((name.to_owned(), cost?))).collect()
}
