//! The configuration file of one dump or restore (syntax: criu(8), "CONFIGURATION FILES": long options without dashes).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::model::HOOK_NAME;
use crate::rpc::v1::Reason;

/// What to do with established TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpPolicy {
    /// Carry them, sequence numbers and queues included.
    Keep,
    /// Restore them closed; the application reconnects.
    Close,
    /// Refuse to move while there are any.
    Refuse,
}

impl TcpPolicy {
    /// From an option's word; empty means keep.
    ///
    /// # Errors
    /// An unknown word.
    pub fn parse(word: &str) -> Result<Self, Reason> {
        match word {
            "" | "keep" => Ok(Self::Keep),
            "close" => Ok(Self::Close),
            "refuse" => Ok(Self::Refuse),
            other => Err(Reason {
                code: "bad-option".to_owned(),
                what: format!("--tcp {other:?} is not a policy"),
                evidence: String::new(),
                remedy: "use keep, close or refuse".to_owned(),
            }),
        }
    }

    /// The option's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Close => "close",
            Self::Refuse => "refuse",
        }
    }
}

/// How a container's network is kept still during a dump (criu(8), `--network-lock`). A restore does as its images say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// CRIU's default: programs of iptables are started, a few milliseconds each.
    Usual,
    /// One transaction of netlink messages; CRIU and the kernel must know nftables ([`super::knows_nftables`]).
    Nftables,
}

/// What CRIU is told beside what the runtime asks.
#[derive(Debug, Clone)]
pub struct CriuConfig {
    /// The action script: a link named [`HOOK_NAME`].
    pub hook: PathBuf,
    /// Connections.
    pub tcp: TcpPolicy,
    /// The network.
    pub lock: Lock,
    /// Largest deleted-but-open file that is carried inside the images.
    pub ghost_limit_bytes: u64,
}

impl CriuConfig {
    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let _infallible = writeln!(text, "action-script {}", self.hook.display());
        // A connection that a listener has not accepted yet fails the whole dump otherwise; such clients retry.
        text.push_str("skip-in-flight\n");
        // The default of 1 MiB refuses containers with a large deleted file open.
        let _infallible = writeln!(text, "ghost-limit {}", self.ghost_limit_bytes);
        if self.lock == Lock::Nftables {
            text.push_str("network-lock nftables\n");
        }
        if self.tcp == TcpPolicy::Close {
            text.push_str("tcp-close\n");
        }
        text
    }

    /// Writes configuration and hook link into a folder; returns the configuration's path.
    ///
    /// # Errors
    /// The file system's.
    pub fn install(folder: &Path, program: &Path, tcp: TcpPolicy, lock: Lock) -> std::io::Result<PathBuf> {
        let hook = folder.join(HOOK_NAME);
        std::os::unix::fs::symlink(program, &hook)?;
        let config = Self { hook, tcp, lock, ghost_limit_bytes: 4 << 30 };
        let path = folder.join("criu.conf");
        std::fs::write(&path, config.render())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_closed_only_when_asked() {
        let mut config = CriuConfig {
            hook: "/run/x/decamp-hook".into(),
            tcp: TcpPolicy::Keep,
            lock: Lock::Usual,
            ghost_limit_bytes: 1 << 20,
        };
        assert_eq!(
            config.render(),
            "action-script /run/x/decamp-hook\nskip-in-flight\nghost-limit 1048576\n"
        );
        config.tcp = TcpPolicy::Close;
        config.lock = Lock::Nftables;
        assert!(config.render().ends_with("network-lock nftables\ntcp-close\n"));
        assert!(TcpPolicy::parse("drop").is_err());
    }
}
