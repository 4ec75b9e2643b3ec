//! What is wrong with a configuration, for the person who has to mend it.
//!
//! Every complaint names line, key, value and rule; a file's complaints come together.

use std::fmt;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading configuration {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could change what the agent, running as root, is told to do.
    #[error(
        "configuration {path} has mode {mode:04o}: group or others could change it; run chmod go-w on it",
        path = .path.display()
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a plain file.
    #[error("configuration {path} is not a regular file", path = .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Larger than any configuration.
    #[error("configuration {path} has more than {max} bytes", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is accepted, bytes.
        max: u64,
    },
    /// It was read, and is wrong.
    #[error("configuration {path} is not usable{list}", path = .path.display(), list = Listed(.complaints))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything found, in the order of the file.
        complaints: Vec<Complaint>,
    },
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Line, from 1; none where a key is missing.
    pub line: Option<usize>,
    /// Dotted path of the key; empty for a syntax error.
    pub key: String,
    /// The value as the file has it, shortened; empty when there is none.
    pub value: String,
    /// The rule it breaks.
    pub rule: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        match (self.key.as_str(), self.value.as_str()) {
            ("", _) => {}
            (key, "") => write!(f, "{key}: ")?,
            (key, value) => write!(f, "{key} = {value}: ")?,
        }
        f.write_str(&self.rule)
    }
}

/// One complaint on the same line, several below each other.
struct Listed<'a>(&'a [Complaint]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0 {
            return write!(f, ": {only}");
        }
        for complaint in self.0 {
            write!(f, "\n  {complaint}")?;
        }
        Ok(())
    }
}
