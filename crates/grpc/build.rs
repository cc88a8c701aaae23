//! Compiles the service definitions, without `protoc`.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 3] = [
    "grpc/health/v1/health.proto",
    "inference/grpc_service.proto",
    "tei/v1/tei.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    prost_build::compile_fds(descriptors)?;
    Ok(())
}
