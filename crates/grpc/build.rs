//! Compiles the service definitions, without `protoc`, and lists their methods for a test of the table.

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
    let mut methods = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                methods.push((path, method.client_streaming(), method.server_streaming()));
            }
        }
    }
    std::fs::write(out.join("methods.rs"), format!("&{methods:?}"))?;
    prost_build::compile_fds(descriptors)?;
    Ok(())
}
