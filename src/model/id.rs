//! Names that must not be mixed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::CONTAINER_ID_MAX;

/// Why a name was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} {given:?} is not usable: {why}")]
pub struct BadName {
    /// Kind of name.
    pub what: &'static str,
    /// What was given.
    pub given: String,
    /// The rule it breaks.
    pub why: &'static str,
}

fn check(what: &'static str, given: &str, max: usize, extra: &str) -> Result<(), BadName> {
    let bad = |why| Err(BadName { what, given: given.chars().take(80).collect(), why });
    if given.is_empty() {
        return bad("it is empty");
    }
    if given.len() > max {
        return bad("it is too long");
    }
    if !given.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c)) {
        return bad("only letters, digits and a few marks are allowed");
    }
    if given.starts_with(['.', '-']) {
        return bad("it must not begin with a dot or a dash");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr, $extra:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(given: String) -> Result<Self, BadName> {
                check($what, &given, $max, $extra)?;
                Ok(Self(given))
            }
        }
        impl TryFrom<&str> for $type {
            type Error = BadName;
            fn try_from(given: &str) -> Result<Self, BadName> {
                Self::try_from(given.to_owned())
            }
        }
        impl std::str::FromStr for $type {
            type Err = BadName;
            fn from_str(given: &str) -> Result<Self, BadName> {
                Self::try_from(given)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A container as its runtime knows it. Safe as a file name.
    ContainerId, "container id", CONTAINER_ID_MAX, "_+.-"
}
name! {
    /// A host: the DNS name in its certificate. Safe as a file name.
    HostId, "host name", 200, ".-_"
}
name! {
    /// One migration, unique across hosts and time. Safe as a file name.
    MigrationId, "migration id", 64, "-"
}

impl MigrationId {
    /// A fresh id; sorts by time of creation.
    #[must_use]
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }
}

/// Fences late messages: a decision about epoch n says nothing about epoch n + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_are_refused() {
        for bad in ["", "..", ".hidden", "a/b", "a b", "-rf", "a\0b"] {
            assert!(ContainerId::try_from(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ContainerId::try_from("redis-1.a_b+c").unwrap().as_str(), "redis-1.a_b+c");
    }

    #[test]
    fn fresh_ids_differ_and_are_valid() {
        let (a, b) = (MigrationId::fresh(), MigrationId::fresh());
        assert_ne!(a, b);
        assert!(MigrationId::try_from(a.as_str()).is_ok());
    }
}
