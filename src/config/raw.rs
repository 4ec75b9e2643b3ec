//! The file as written: which keys exist, and where each value stands.
//!
//! Unknown keys are refused here, by serde. Values are kept as they are, whatever their type, so that the check
//! can complain about all of them at once instead of stopping at the first.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

/// A value of any type, and its place in the file.
pub(super) type Value = Option<Spanned<toml::Value>>;

macro_rules! raw {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $field: Value,)*
        }
    )*};
}

raw! {
    Control { socket, listen }
    Quic { listen, idle_timeout, streams }
    Tls { ca, cert, key }
    Peer { address, receive }
    Operators { allow }
    Runtime { runc, root, criu }
    Migration {
        downtime_target, max_rounds, bandwidth, timeout, if_not_converging, compress, tcp, max_concurrent, nice,
    }
    Store { retain_memory, retain_disk, reserve_memory }
    MountRule { destination, policy, map_to }
    Network { bridge }
    Metrics { listen }
    Log { level, format }
}

/// `[files]`: the only section with tables inside.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Files {
    pub(super) mount_policies: Vec<Spanned<MountRule>>,
    pub(super) allow_sources: Value,
    pub(super) bases: Value,
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) host: Value,
    pub(super) state_dir: Value,
    pub(super) run_dir: Value,
    pub(super) control: Control,
    pub(super) quic: Quic,
    pub(super) tls: Tls,
    pub(super) peers: BTreeMap<String, Spanned<Peer>>,
    pub(super) operators: Operators,
    pub(super) runtime: Runtime,
    pub(super) migration: Migration,
    pub(super) store: Store,
    pub(super) files: Files,
    pub(super) network: Network,
    pub(super) metrics: Metrics,
    pub(super) log: Log,
}
