//! Values with a form of their own, and precise complaints when the form is broken.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::model::{ContainerId, HostId};

/// Why a value was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadValue {
    /// Neither form of an agent's address.
    #[error("{given:?} is no address of an agent ({why}); write unix:/path/to/socket or HOST:PORT")]
    Address {
        /// What was typed.
        given: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Neither a peer's name nor an address.
    #[error(
        "{given:?} is no destination ({why}); write a peer's name from the agent's configuration, or ADDRESS:PORT"
    )]
    Destination {
        /// What was typed.
        given: String,
        /// The rule it breaks.
        why: String,
    },
    /// Not a container or migration id.
    #[error("{given:?} is neither a container nor a migration id: {why}")]
    Which {
        /// What was typed.
        given: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Not a mount rule.
    #[error(
        "{given:?} is no rule for a mount ({why}); write DEST=shared, DEST=copy, DEST=refuse or DEST=map:PATH"
    )]
    Mount {
        /// What was typed.
        given: String,
        /// The rule it breaks.
        why: &'static str,
    },
}

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAddress {
    /// UNIX socket on this host.
    Unix(PathBuf),
    /// TCP with mutual TLS.
    Tcp {
        /// DNS name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

impl FromStr for AgentAddress {
    type Err = BadValue;
    fn from_str(given: &str) -> Result<Self, BadValue> {
        if let Some(path) = given.strip_prefix("unix:").or_else(|| given.starts_with('/').then_some(given)) {
            let path = PathBuf::from(path);
            let bad = |why| Err(BadValue::Address { given: given.to_owned(), why });
            return match () {
                () if !path.is_absolute() => bad("the socket's path must be absolute"),
                // sockaddr_un(7): 108 bytes with the closing zero.
                () if path.as_os_str().len() > 107 => bad("a socket's path may have at most 107 bytes"),
                () => Ok(Self::Unix(path)),
            };
        }
        let (host, port) =
            host_port(given).map_err(|why| BadValue::Address { given: given.to_owned(), why })?;
        Ok(Self::Tcp { host, port })
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// `host:7007`, `10.0.0.1:7007`, `[fd00::1]:7007`.
fn host_port(given: &str) -> Result<(String, u16), &'static str> {
    if let Ok(address) = SocketAddr::from_str(given) {
        return if address.port() == 0 {
            Err("port 0 is no port")
        } else {
            Ok((address.ip().to_string(), address.port()))
        };
    }
    let (host, port) = given.rsplit_once(':').ok_or("there is no port")?;
    if host.contains(':') {
        return Err("an IPv6 address needs brackets: [ADDRESS]:PORT");
    }
    HostId::try_from(host).map_err(|_| "the host is no name")?;
    match port.parse::<u16>() {
        Ok(0) => Err("port 0 is no port"),
        Ok(port) => Ok((host.to_owned(), port)),
        Err(_) => Err("the port is not a number from 1 to 65535"),
    }
}

/// Where to move a container: a peer's name, or an address with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination(String);

impl FromStr for Destination {
    type Err = BadValue;
    fn from_str(given: &str) -> Result<Self, BadValue> {
        let bad = |why: String| BadValue::Destination { given: given.to_owned(), why };
        if given.contains(':') {
            host_port(given).map_err(|why| bad(why.to_owned()))?;
        } else {
            HostId::try_from(given).map_err(|name| bad(name.why.to_owned()))?;
        }
        Ok(Self(given.to_owned()))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A container or a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Which(String);

impl FromStr for Which {
    type Err = BadValue;
    fn from_str(given: &str) -> Result<Self, BadValue> {
        // Whatever is a migration id is also a valid container id.
        let checked = ContainerId::try_from(given);
        checked.map_err(|name| BadValue::Which { given: given.to_owned(), why: name.why })?;
        Ok(Self(given.to_owned()))
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What to do with one bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRule {
    /// Mount point inside the container.
    pub destination: String,
    /// What to do with it.
    pub way: MountWay,
}

/// The ways of a bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountWay {
    /// The same path must exist at the destination.
    Shared,
    /// Its contents travel.
    Copy,
    /// Do not migrate a container that has it.
    Refuse,
    /// Another path at the destination host.
    Map(String),
}

impl FromStr for MountRule {
    type Err = BadValue;
    fn from_str(given: &str) -> Result<Self, BadValue> {
        let bad = |why| BadValue::Mount { given: given.to_owned(), why };
        let words = [("=shared", MountWay::Shared), ("=copy", MountWay::Copy), ("=refuse", MountWay::Refuse)];
        let word = words.into_iter().find_map(|(end, way)| given.strip_suffix(end).map(|rest| (rest, way)));
        let mapped = given.split_once("=map:").map(|(rest, path)| (rest, MountWay::Map(path.to_owned())));
        let (destination, way) = match mapped.or(word) {
            Some(found) => found,
            None if given.contains('=') => return Err(bad("the policy is none of the four")),
            None => return Err(bad("there is no \"=\"")),
        };
        if !is_plain_absolute(destination) {
            return Err(bad("DEST must be an absolute path without \"..\""));
        }
        if matches!(&way, MountWay::Map(path) if !is_plain_absolute(path)) {
            return Err(bad("PATH must be an absolute path without \"..\""));
        }
        Ok(Self { destination: destination.to_owned(), way })
    }
}

fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == ".." || part == ".") && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_addresses() {
        let good = ["unix:/run/a.sock", "node-b:7007", "10.0.0.1:7007", "[fd00::1]:7007"];
        for text in good {
            assert_eq!(text.parse::<AgentAddress>().unwrap().to_string(), text);
        }
        assert_eq!("/run/a.sock".parse::<AgentAddress>().unwrap(), AgentAddress::Unix("/run/a.sock".into()));
        let long = format!("unix:/{}", "x".repeat(200));
        let bad = [
            "",
            "node-b",
            "node-b:",
            "node-b:0",
            "node-b:x",
            ":7",
            "fd00::1:7007",
            "unix:rel",
            "a b:1",
            &long,
        ];
        for text in bad {
            assert!(text.parse::<AgentAddress>().is_err(), "{text:?}");
        }
        let why = "fd00::1:7007".parse::<AgentAddress>().unwrap_err().to_string();
        assert!(why.contains("needs brackets") && why.contains("HOST:PORT"), "{why}");
    }

    #[test]
    fn destinations() {
        for good in ["node-b", "node-b.example.org", "10.1.2.3:7443", "[fd00::2]:7443", "node-b:7443"] {
            assert_eq!(good.parse::<Destination>().unwrap().to_string(), good);
        }
        for bad in ["", "-x", "a/b", "fd00::2", "node-b:99999", "no de"] {
            assert!(bad.parse::<Destination>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mount_rules() {
        let rule = |text: &str| text.parse::<MountRule>();
        assert_eq!(
            rule("/data=copy").unwrap(),
            MountRule { destination: "/data".into(), way: MountWay::Copy }
        );
        assert_eq!(rule("/a=b=shared").unwrap().destination, "/a=b");
        let mapped = MountRule { destination: "/data".into(), way: MountWay::Map("/srv/x=y".into()) };
        assert_eq!(rule("/data=map:/srv/x=y").unwrap(), mapped);
        for bad in [
            "/data",
            "data=copy",
            "/data=move",
            "/d/../e=copy",
            "/d=map:",
            "/d=map:rel",
            "/d=map:/a/../b",
            "=copy",
        ] {
            assert!(rule(bad).is_err(), "{bad:?}");
        }
    }
}
