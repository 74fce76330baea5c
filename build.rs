//! Compiles `proto/` without protoc: protox parses the files, prost and tonic generate the Rust, and
//! the descriptor set, comments included, is kept for reflection.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files([
            "pacenote/v1/job_service.proto",
            "pacenote/v1/queue_service.proto",
            "pacenote/v1/worker_service.proto",
        ])?;
    std::fs::write(
        out.join("pacenote.fds.bin"),
        compiler.encode_file_descriptor_set(),
    )?;

    let with_server = std::env::var_os("CARGO_FEATURE_SERVER").is_some();
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    // Events are encoded once, when they are stored, and travel as they are: see `pb::EventBatch`.
    config.extern_path(".pacenote.v1.EventBatch", "crate::pb::EventBatch");
    for message in compiler.descriptor_pool().all_messages() {
        // What the command line prints messages with.
        if with_server && message.package_name() == "pacenote.v1" && !message.is_map_entry() {
            let name = message.full_name();
            config.type_attribute(name, "#[derive(::prost_reflect::ReflectMessage)]");
            config.type_attribute(
                name,
                format!(
                    "#[prost_reflect(message_name = \"{name}\", descriptor_pool = \"crate::pb::DESCRIPTOR_POOL\")]"
                ),
            );
        }
    }
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(with_server)
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}
