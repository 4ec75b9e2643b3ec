//! The configuration's words in the migration room's types.

use crate::config::{Compress, Config, IfNotConverging, MountPolicy as Rule, Tcp};
use crate::criu::TcpPolicy;
use crate::migration::convergence::NotConverging;
use crate::migration::request::MountPolicy;
use crate::migration::{Peer, Settings};
use crate::pages::compress::Compression;

/// Only words change; every value was checked when the configuration was read.
pub(super) fn of(config: &Config) -> Settings {
    let migration = &config.migration;
    let policies = config.files.mount_policies.iter().map(|rule| {
        let policy = match &rule.policy {
            Rule::Shared => MountPolicy::Shared,
            Rule::Copy => MountPolicy::Copy,
            Rule::Map { map_to } => MountPolicy::Map(map_to.clone()),
            Rule::Refuse => MountPolicy::Refuse,
        };
        (rule.destination.to_string_lossy().into_owned(), policy)
    });
    Settings {
        peers: config.peers.iter().map(|(id, peer)| (id.clone(), Peer { address: peer.address })).collect(),
        streams: config.quic.streams,
        downtime_target: migration.downtime_target,
        max_rounds: migration.max_rounds,
        if_not_converging: match migration.if_not_converging {
            IfNotConverging::Cutover => NotConverging::CutOver,
            IfNotConverging::Cancel => NotConverging::Cancel,
        },
        bandwidth: migration.bandwidth,
        timeout: migration.timeout,
        tcp: match migration.tcp {
            Tcp::Keep => TcpPolicy::Keep,
            Tcp::Close => TcpPolicy::Close,
            Tcp::Refuse => TcpPolicy::Refuse,
        },
        compress: match migration.compress {
            Compress::Auto => Compression::Auto,
            Compress::On => Compression::On,
            Compress::Off => Compression::Off,
        },
        max_concurrent: usize::try_from(migration.max_concurrent).unwrap_or(1),
        mount_policies: policies.collect(),
        allow_sources: config.files.allow_sources.clone(),
        bases: config.files.bases.clone(),
        bridge: config.network.bridge.clone(),
        retain_disk: config.store.retain_disk,
        reserve_memory: config.store.reserve_memory,
    }
}
