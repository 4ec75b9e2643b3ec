//! From raw to checked: each value's type and rule, with a complaint for everything that is not as it should be.
//!
//! A value that is present but wrong yields its default only so that the check can go on; the configuration is then
//! never returned.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::Complaint;
use super::raw::{self, Raw};
use super::reader::Reader;
use super::types::{
    Compress, Config, Files, IfNotConverging, Log, MountPolicy, MountRule, Operators, Peer, Runtime, Tcp,
};
use crate::model::id::HostId;
use crate::model::limits::{ROUNDS_MAX, STREAMS_MAX};
use crate::telemetry::LogFormat;

/// Migrations at once: beyond this the pages buffered for them would not fit into any host.
const CONCURRENT_MAX: u32 = 64;
/// Longest name of a network interface: IFNAMSIZ in linux/if.h, less the final zero.
const INTERFACE_NAME_MAX: usize = 15;

pub(super) fn check(text: &str, raw: &Raw) -> Result<Config, Vec<Complaint>> {
    let mut read = Reader::new(text);
    let host = read.required("host", &raw.host, Reader::host);
    // The name only stands in until the complaint about the missing one is returned.
    let stand_in = || HostId::try_from("unnamed").expect("letters are a host name");
    let mut config = Config::defaults(host.unwrap_or_else(stand_in));
    places(&mut read, raw, &mut config);
    addresses(&mut read, raw, &mut config);
    migration(&mut read, &raw.migration, &mut config);
    store(&mut read, &raw.store, &mut config);
    config.peers = peers(&mut read, raw, &config.host);
    config.operators = Operators {
        allow: read.list("operators.allow", &raw.operators.allow, |name| {
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err("a name in a client certificate is not empty and has no spaces".to_owned());
            }
            Ok(name.to_owned())
        }),
    };
    config.files = files(&mut read, &raw.files);
    log(&mut read, &raw.log, &mut config.log);
    read.finish(config)
}

fn places(read: &mut Reader<'_>, raw: &Raw, config: &mut Config) {
    read.set("state_dir", &raw.state_dir, Reader::absolute, &mut config.state_dir);
    if read.set("run_dir", &raw.run_dir, Reader::absolute, &mut config.run_dir) {
        config.control.socket = config.run_dir.join("agent.sock");
        if raw.control.socket.is_none() && !Reader::fits_socket(&config.control.socket) {
            read.complain("run_dir", &raw.run_dir, &Reader::socket_rule());
        }
    }
    read.set("control.socket", &raw.control.socket, Reader::socket_path, &mut config.control.socket);
    read.set("tls.ca", &raw.tls.ca, Reader::absolute, &mut config.tls.ca);
    read.set("tls.cert", &raw.tls.cert, Reader::absolute, &mut config.tls.cert);
    read.set("tls.key", &raw.tls.key, Reader::absolute, &mut config.tls.key);
    let Runtime { runc, root, criu } = &mut config.runtime;
    read.set("runtime.runc", &raw.runtime.runc, Reader::program, runc);
    read.set("runtime.root", &raw.runtime.root, Reader::absolute, root);
    read.set("runtime.criu", &raw.runtime.criu, Reader::program, criu);
}

fn addresses(read: &mut Reader<'_>, raw: &Raw, config: &mut Config) {
    config.control.listen = read.optional("control.listen", &raw.control.listen, Reader::address);
    config.metrics.listen = read.optional("metrics.listen", &raw.metrics.listen, Reader::address);
    config.network.bridge = read.optional("network.bridge", &raw.network.bridge, interface);
    read.set("quic.listen", &raw.quic.listen, Reader::address, &mut config.quic.listen);
    read.set("quic.idle_timeout", &raw.quic.idle_timeout, Reader::duration, &mut config.quic.idle_timeout);
    let streams = |value: &_| Reader::count(value, STREAMS_MAX);
    read.set("quic.streams", &raw.quic.streams, streams, &mut config.quic.streams);
}

/// The kernel's own rule: `dev_valid_name` in net/core/dev.c.
fn interface(value: &toml::Value) -> Result<String, String> {
    let name = Reader::text(value)?;
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.is_empty() || name.len() > INTERFACE_NAME_MAX || matches!(name, "." | "..") || name.contains(bad)
    {
        return Err(format!(
            "an interface has a name of 1 to {INTERFACE_NAME_MAX} bytes without spaces, \"/\" and \":\""
        ));
    }
    Ok(name.to_owned())
}

fn migration(read: &mut Reader<'_>, raw: &raw::Migration, config: &mut Config) {
    let to = &mut config.migration;
    read.set("migration.downtime_target", &raw.downtime_target, Reader::duration, &mut to.downtime_target);
    read.set("migration.timeout", &raw.timeout, Reader::duration, &mut to.timeout);
    let rounds = |value: &_| Reader::count(value, ROUNDS_MAX);
    read.set("migration.max_rounds", &raw.max_rounds, rounds, &mut to.max_rounds);
    let concurrent = |value: &_| Reader::count(value, CONCURRENT_MAX);
    read.set("migration.max_concurrent", &raw.max_concurrent, concurrent, &mut to.max_concurrent);
    read.set("migration.nice", &raw.nice, Reader::nice, &mut to.nice);
    to.bandwidth =
        read.optional("migration.bandwidth", &raw.bandwidth, Reader::rate).filter(|rate| *rate != 0);
    let converge = [("cutover", IfNotConverging::Cutover), ("cancel", IfNotConverging::Cancel)];
    read.word("migration.if_not_converging", &raw.if_not_converging, &converge, &mut to.if_not_converging);
    let compress = [("auto", Compress::Auto), ("on", Compress::On), ("off", Compress::Off)];
    read.word("migration.compress", &raw.compress, &compress, &mut to.compress);
    let tcp = [("keep", Tcp::Keep), ("close", Tcp::Close), ("refuse", Tcp::Refuse)];
    read.word("migration.tcp", &raw.tcp, &tcp, &mut to.tcp);
    if to.downtime_target >= to.timeout {
        let (key, at) = match &raw.downtime_target {
            Some(_) => ("migration.downtime_target", &raw.downtime_target),
            None => ("migration.timeout", &raw.timeout),
        };
        read.complain(key, at, "downtime_target must be shorter than timeout, or no migration could end");
    }
}

fn store(read: &mut Reader<'_>, raw: &raw::Store, config: &mut Config) {
    let to = &mut config.store;
    read.set("store.retain_memory", &raw.retain_memory, Reader::bytes, &mut to.retain_memory);
    read.set("store.retain_disk", &raw.retain_disk, Reader::bytes, &mut to.retain_disk);
    read.set("store.reserve_memory", &raw.reserve_memory, Reader::bytes, &mut to.reserve_memory);
}

fn peers(read: &mut Reader<'_>, raw: &Raw, this: &HostId) -> BTreeMap<HostId, Peer> {
    let mut peers = BTreeMap::new();
    for (name, table) in &raw.peers {
        let section = format!("peers.{name}");
        let peer = table.get_ref();
        let id = match HostId::try_from(name.as_str()) {
            Ok(id) if id == *this => {
                read.complain_at(
                    &section,
                    table.span(),
                    "a host is not its own peer; leave this section out",
                );
                None
            }
            Ok(id) => Some(id),
            Err(bad) => {
                read.complain_at(&section, table.span(), &bad.to_string());
                None
            }
        };
        let key = format!("{section}.address");
        let address = match &peer.address {
            None => {
                read.complain_at(
                    &key,
                    table.span(),
                    "it is missing: every peer needs one, such as 10.0.0.2:7626",
                );
                None
            }
            address => read.optional(&key, address, Reader::peer_address),
        };
        let receive = read.optional(&format!("{section}.receive"), &peer.receive, Reader::flag);
        if let (Some(id), Some(address)) = (id, address) {
            peers.insert(id, Peer { address, receive: receive.unwrap_or(false) });
        }
    }
    peers
}

fn files(read: &mut Reader<'_>, raw: &raw::Files) -> Files {
    let mut rules: Vec<MountRule> = Vec::new();
    for (index, table) in raw.mount_policies.iter().enumerate() {
        let section = format!("files.mount_policies[{index}]");
        let Some(rule) = mount_rule(read, &section, table) else { continue };
        if rules.iter().any(|other| other.destination == rule.destination) {
            let key = format!("{section}.destination");
            read.complain(&key, &table.get_ref().destination, "another rule above is for the same mount");
        }
        rules.push(rule);
    }
    let folder = |text: &str| Reader::absolute_text(text);
    Files {
        mount_policies: rules,
        allow_sources: read.list("files.allow_sources", &raw.allow_sources, folder),
        bases: read.list("files.bases", &raw.bases, folder),
    }
}

fn mount_rule(
    read: &mut Reader<'_>,
    section: &str,
    table: &toml::Spanned<raw::MountRule>,
) -> Option<MountRule> {
    let rule = table.get_ref();
    let mut missing = |name: &str, value: &raw::Value| {
        if value.is_none() {
            read.complain_at(
                &format!("{section}.{name}"),
                table.span(),
                "it is missing: every rule needs one",
            );
        }
    };
    missing("destination", &rule.destination);
    missing("policy", &rule.policy);
    let destination = read.optional(&format!("{section}.destination"), &rule.destination, Reader::absolute);
    let key = format!("{section}.map_to");
    let map_to: Option<PathBuf> = read.optional(&key, &rule.map_to, Reader::absolute);
    let words = [
        ("shared", MountPolicy::Shared),
        ("copy", MountPolicy::Copy),
        ("map", MountPolicy::Map { map_to: PathBuf::new() }),
        ("refuse", MountPolicy::Refuse),
    ];
    let policy =
        read.optional(&format!("{section}.policy"), &rule.policy, |value| Reader::one_of(value, &words))?;
    let policy = match (policy, map_to) {
        (MountPolicy::Map { .. }, Some(map_to)) => MountPolicy::Map { map_to },
        (MountPolicy::Map { .. }, None) => {
            if rule.map_to.is_none() {
                read.complain_at(
                    &key,
                    table.span(),
                    "it is missing: policy \"map\" needs a folder to map to",
                );
            }
            return None;
        }
        (_, Some(_)) => {
            read.complain(&key, &rule.map_to, "only policy \"map\" takes it");
            return None;
        }
        (policy, None) => policy,
    };
    Some(MountRule { destination: destination?, policy })
}

fn log(read: &mut Reader<'_>, raw: &raw::Log, to: &mut Log) {
    let filter = |value: &_| {
        let text = Reader::text(value)?;
        crate::telemetry::check_filter(text).map_err(|why| format!("it is no tracing filter: {why}"))?;
        Ok(text.to_owned())
    };
    read.set("log.level", &raw.level, filter, &mut to.level);
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    read.word("log.format", &raw.format, &formats, &mut to.format);
}
