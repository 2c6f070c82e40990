//! Generates the ext_proc messages and service from `proto/` without a system `protoc`.

use std::error::Error;

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
    Ok(())
}
