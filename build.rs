//! Generates the ext_proc messages and service from `proto/` without a system `protoc`, and tells a release
//! build its commit.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(["envoy/service/ext_proc/v3/external_processor.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // Channels and servers are built by those who own the sockets.
        .build_transport(false)
        .include_file("wire.rs")
        .compile_fds(descriptors)?;

    // The variable wins, for builds outside of a checkout. Debug builds do not look, because each commit
    // would build everything again.
    println!("cargo:rerun-if-env-changed=POINTSMAN_COMMIT");
    if env::var_os("POINTSMAN_COMMIT").is_none()
        && env::var_os("PROFILE").is_some_and(|profile| profile == "release")
        && let Some(commit) = commit(Path::new(".git"))
    {
        println!("cargo:rustc-env=POINTSMAN_COMMIT={commit}");
    }
    Ok(())
}

/// The commit that is checked out, read without git, which need not be there. `None` outside of a
/// checkout.
fn commit(git: &Path) -> Option<String> {
    let folder = match fs::read_to_string(git) {
        // A work tree beside its repository.
        Ok(link) => PathBuf::from(link.strip_prefix("gitdir:")?.trim()),
        Err(_) => git.to_owned(),
    };
    let head = read(&folder.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref:").map(str::trim) else { return hash(&head) };
    let shared = fs::read_to_string(folder.join("commondir")).map_or(folder.clone(), |path| folder.join(path.trim()));
    // The log of HEAD changes with every commit, whichever file holds the branch.
    watch(&folder.join("logs/HEAD"));
    if let Some(found) = read(&shared.join(name)) {
        return hash(&found);
    }
    let packed = read(&shared.join("packed-refs"))?;
    packed.lines().find_map(|line| hash(line.strip_suffix(name)?))
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    watch(path);
    Some(text)
}

/// Only what exists: a file that is not there would run this script each time.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

fn hash(text: &str) -> Option<String> {
    let text = text.trim();
    (text.len() >= 40 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_owned())
}
