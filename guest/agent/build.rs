//! Generates messages, server traits and clients of the agent's protocol from the project's `.proto` files.
//!
//! Everything is parsed in Rust: no `protoc` is needed on the machine that builds.

use std::path::{Path, PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// The files the agent needs, relative to the repository's `protos/`.
const FILES: [&str; 7] = [
    "guest.proto",
    "kata/agent.proto",
    "kata/csi.proto",
    "kata/health.proto",
    "kata/oci.proto",
    "kata/types.proto",
    "wkt.proto",
];

/// What comes out of them.
const MODULES: [&str; 10] =
    ["agent", "agent_ttrpc", "csi", "guest", "guest_ttrpc", "health", "health_ttrpc", "oci", "types", "wkt"];

fn main() -> std::io::Result<()> {
    let root = Path::new("../../protos");
    let inputs: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    for input in &inputs {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    Codegen::new()
        .include(root)
        .inputs(&inputs)
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Customize::default() })
        .run()?;
    declare_modules()
}

/// Writes `modules.rs`, which the crate includes: the generator's own `mod.rs` begins with an inner attribute and cannot be.
fn declare_modules() -> std::io::Result<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let declarations: String = MODULES
        .iter()
        .map(|module| format!("#[path = {:?}]\npub mod {module};\n", out.join(format!("{module}.rs"))))
        .collect();
    std::fs::write(out.join("modules.rs"), declarations)
}
