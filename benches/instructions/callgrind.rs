//! Runs one workload under callgrind and reads what it wrote.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::table::Cost;
use super::workloads::Workload;

/// Functions of the allocator whose calls are allocations, unless one calls the other.
const ALLOCATING: [&str; 6] =
    ["mi_malloc", "mi_malloc_aligned", "mi_zalloc", "mi_zalloc_aligned", "mi_realloc", "mi_realloc_aligned"];

/// `rep movsb`, which the C library uses or not by its version and the size of a copy, counts as one instruction
/// per byte. Off, so that a copy costs the same everywhere: one instruction for about ten bytes.
const COPY_IN_A_LOOP: &str =
    "glibc.cpu.x86_rep_movsb_threshold=0x7fffffffffffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffffffffffff";

/// Where things are.
pub struct Callgrind<'a> {
    pub valgrind: &'a Path,
    pub program: &'a Path,
    /// Where profiles are kept, for `callgrind_annotate`.
    pub folder: &'a Path,
}

impl Callgrind<'_> {
    pub fn run(&self, workload: &Workload) -> Result<Cost, String> {
        let name = workload.name;
        // Three parts: before `counted`, from there to `done`, and the rest. Not `--toggle-collect`, because it counts
        // the calls of the rest all the same.
        let parts = self.folder.join("parts").join(file(name));
        let counted = parts.with_extension("2");
        // What an earlier run has left must not be taken for this one's.
        let _ = std::fs::remove_file(&counted);
        let output = Command::new(self.valgrind)
            .args(["--tool=callgrind", "--quiet", "--vgdb=no"])
            .args(["--dump-before=instructions::counted*", "--dump-before=instructions::done*"])
            .arg(format!("--callgrind-out-file={}", parts.display()))
            .arg(self.program)
            .args(["--bench", "--workload", name])
            .env_clear()
            .env("GLIBC_TUNABLES", COPY_IN_A_LOOP)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("{} does not start: {e}", self.valgrind.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("workload {name:?} failed under valgrind ({}):\n{said}", output.status));
        }
        let text = std::fs::read_to_string(&counted).map_err(|e| format!("{}: {e}", counted.display()))?;
        let (instructions, allocations) = read(&text).ok_or_else(|| {
            format!("{}: callgrind counted nothing; is the function `counted` still there?", counted.display())
        })?;
        // The calls that led here began in the part before. `callgrind_annotate` stumbles over calls that never began.
        let whole = text.replace("\ncalls=0 ", "\ncalls=1 ");
        let kept = profile(self.folder, name);
        std::fs::write(&kept, whole).map_err(|e| format!("{}: {e}", kept.display()))?;
        let each = |total: u64| total as f64 / f64::from(workload.times);
        Ok(Cost { instructions: each(instructions), allocations: each(allocations) })
    }
}

/// The profile of a workload.
pub fn profile(folder: &Path, name: &str) -> PathBuf {
    folder.join(file(name)).with_extension("callgrind")
}

fn file(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect()
}

/// Instructions and allocations of a profile. A function is named where it is first mentioned, as `(id) name`, and
/// `(id)` afterwards; `cfn` names whom the next `calls` line is about.
fn read(text: &str) -> Option<(u64, u64)> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut caller, mut callee) = ("", "");
    let (mut total, mut allocations) = (None, 0);
    for line in text.lines() {
        let Some((key, value)) = line.split_once(['=', ':']) else { continue };
        match key {
            "fn" | "cfn" => {
                let (id, name) = value.split_once(' ').unwrap_or((value, ""));
                let name = match name {
                    "" => names.get(id).copied().unwrap_or_default(),
                    name => {
                        names.insert(id, name);
                        name
                    }
                };
                *(if key == "fn" { &mut caller } else { &mut callee }) = name;
            }
            "calls" if ALLOCATING.contains(&callee) && !caller.starts_with("mi_") && !caller.starts_with("_mi_") => {
                allocations += value.split(' ').next()?.parse::<u64>().ok()?;
            }
            "totals" => total = value.trim().parse().ok(),
            _ => {}
        }
    }
    total.filter(|total| *total > 0).map(|total| (total, allocations))
}
