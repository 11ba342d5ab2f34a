//! Compiles the protocol with protox: no protoc on the machine is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../proto");
    let files = ["frame", "nodes", "inference", "cluster", "records", "jobs", "tenants", "blobs", "files"]
        .map(|name| root.join(format!("janus/v1/{name}.proto")));
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(files, [root])?;
    let out = std::env::var("OUT_DIR")?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    std::fs::write(Path::new(&out).join("janus.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
