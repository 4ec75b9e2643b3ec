//! Compiles the `.proto` files with protox (no protoc needed) into the `rpc` room and, for CRIU's images, into `images`; and the
//! shared library that is preloaded into CRIU.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["decamp/v1/types.proto", "decamp/v1/control.proto", "decamp/v1/peer.proto"];
    let set = protox::compile(files, [Path::new("proto")])?;
    let mut prost = prost_build::Config::new();
    prost.type_attribute(".", "#[derive(serde::Serialize)]");
    prost.type_attribute(".", "#[serde(rename_all = \"snake_case\")]");
    // `--json` says "cut-over", not 5: prost keeps enum fields as numbers.
    for field in ["PhaseChange.phase", "Failure.phase"] {
        let attribute = "#[serde(serialize_with = \"crate::rpc::json::phase\")]";
        prost.field_attribute(format!(".decamp.v1.{field}"), attribute);
    }
    // An event's body is a field of the event, as in protobuf's own JSON: {"migration_id": …, "completed": {…}}.
    // (Without a leading dot the path is matched as a suffix: the field, but not the variants inside.)
    prost.field_attribute("Event.body", "#[serde(flatten)]");
    prost.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(set, prost)?;

    let criu = protox::compile(["criu/pagemap.proto"], [Path::new("proto")])?;
    prost_build::Config::new().compile_fds(criu)?;
    preload()
}

/// Compiles src/preload/object.rs with the compiler that compiles the rest, into OUT_DIR, from where src/preload/mod.rs takes it.
/// Always optimised: in a debug build it could panic, and its overflow checks would be in CRIU.
fn preload() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/preload");
    let variable = |name: &str| std::env::var_os(name).ok_or_else(|| format!("cargo has not set {name}"));
    let object = PathBuf::from(variable("OUT_DIR")?).join("libdecamp_hide.so");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--crate-name", "decamp_hide", "--edition", "2024", "--crate-type", "cdylib"]);
    rustc.args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "strip=symbols", "--deny", "warnings"]);
    rustc.arg("--target").arg(variable("TARGET")?);
    rustc.arg("src/preload/object.rs").arg("-o").arg(&object);
    let status = rustc.status()?;
    if status.success() { Ok(()) } else { Err(format!("src/preload/object.rs: {status}").into()) }
}
