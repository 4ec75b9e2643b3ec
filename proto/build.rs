//! Compiles the `.proto` files with protox (no protoc needed) into the `rpc` room and, for CRIU's images, into `images`.

use std::path::Path;

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
    Ok(())
}
