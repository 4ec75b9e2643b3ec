//! The agent's configuration: from a TOML file to checked values.
//!
//! ```text
//!   file ──mode, size──▶ text ──serde──▶ raw (unknown keys refused) ──rules──▶ Config
//!                                                                     └─▶ every complaint at once
//! ```
//!
//! It must never fall back to a default for a value that is present but wrong, nor touch anything the file names:
//! whether a key can be read or an address bound is found out by the room that uses it.

mod check;
mod error;
mod raw;
mod reader;
mod size;
#[cfg(test)]
mod tests;
mod types;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

pub use error::{Complaint, ConfigError};
pub use size::{BadSize, parse_bytes, parse_rate};
pub use types::{
    Compress, Config, Control, Files, IfNotConverging, Log, Metrics, Migration, MountPolicy, MountRule,
    Network, Operators, Peer, Quic, Runtime, Store, Tcp, Tls,
};

/// Larger than any configuration an operator writes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks an agent's configuration.
///
/// # Errors
/// It cannot be read, others could change it (mode `go+w`), or it is wrong: then every complaint, each with its
/// line, key, value and rule. Syntax errors and unknown keys are reported one at a time.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let at = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(at)?;
    // Asked of the open file, so that what is checked is what is read.
    let metadata = file.metadata().map_err(at)?;
    if !metadata.is_file() {
        return Err(ConfigError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(ConfigError::Writable { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(at)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned(), max: FILE_BYTES_MAX });
    }
    parse(&text).map_err(|complaints| ConfigError::Invalid { path: path.to_owned(), complaints })
}

/// Checks the text of a configuration.
///
/// # Errors
/// Every complaint, in the order of the file.
pub fn parse(text: &str) -> Result<Config, Vec<Complaint>> {
    match toml::from_str::<raw::Raw>(text) {
        Ok(raw) => check::check(text, &raw),
        Err(refused) => Err(vec![reader::shape(text, &refused)]),
    }
}
