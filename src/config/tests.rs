//! The shipped files are true, and every kind of mistake is named with its line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::model::id::HostId;
use crate::telemetry::LogFormat;

const SHIPPED: &str = include_str!("../../config/agent.toml");
const DEVELOPMENT: &str = include_str!("../../config/agent.dev.toml");

fn host(name: &str) -> HostId {
    HostId::try_from(name).unwrap()
}

/// "#key = value" and "#[section]" become settings; prose has a space behind "#".
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn complaints(text: &str) -> Vec<String> {
    parse(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_is_the_defaults() {
    assert_eq!(parse(SHIPPED).unwrap(), Config::defaults(host("host-a.example")));
    assert_eq!(parse("host = 'host-a.example'").unwrap(), Config::defaults(host("host-a.example")));
}

#[test]
fn what_the_shipped_file_suggests_is_valid() {
    let config = parse(&uncommented(SHIPPED)).unwrap();
    let peer = Peer { address: "10.0.0.2:7626".parse().unwrap(), receive: true };
    assert_eq!(config.peers, [(host("host-b.example"), peer)].into());
    let rule =
        MountRule { destination: "/data".into(), policy: MountPolicy::Map { map_to: "/srv/data".into() } };
    assert_eq!(config.files.mount_policies, [rule]);
    assert_eq!(config.control.listen, Some("10.0.0.1:7627".parse().unwrap()));
    assert_eq!(config.metrics.listen, Some("127.0.0.1:9626".parse().unwrap()));
    assert_eq!(config.network.bridge.as_deref(), Some("br0"));
}

/// Serde's refusal of an unknown key lists the known ones: so nothing can be added without being documented.
#[test]
fn the_shipped_file_has_every_key() {
    let shown: toml::Table = toml::from_str(&uncommented(SHIPPED)).unwrap();
    let known = |section: &str| -> Vec<String> {
        let refused = parse(&format!("{section}\nno_such_key = 1")).unwrap_err().remove(0);
        let (_, list) = refused.rule.split_once("expected").unwrap();
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mut keys = 0;
    let mut all_shown = |section: &str, table: &toml::Table| {
        for key in known(section) {
            keys += 1;
            assert!(table.contains_key(&key), "{section} {key} is not in config/agent.toml");
        }
    };
    all_shown("", &shown);
    for (name, value) in &shown {
        match value {
            toml::Value::Table(table) if name == "peers" => {
                all_shown("[peers.x]", table["host-b.example"].as_table().unwrap());
            }
            toml::Value::Table(table) => all_shown(&format!("[{name}]"), table),
            _ => {}
        }
    }
    let rule = shown["files"]["mount_policies"][0].as_table().unwrap();
    all_shown("[[files.mount_policies]]", rule);
    assert!(keys > 45, "only {keys} keys were looked for");
}

#[test]
fn the_development_file_is_two_agents() {
    let left = parse(DEVELOPMENT).unwrap();
    // The second file, as the comments say: the comment's value in place of the line's.
    let mut second = String::new();
    for line in DEVELOPMENT.lines() {
        let other = match (line.split_once(" # \""), line.split_once(" # [")) {
            (Some((setting, value)), _) => {
                let (key, _) = setting.split_once('=').unwrap();
                format!("{key}= \"{}\"", value.split('"').next().unwrap())
            }
            (None, Some((_, section))) => format!("[{section}"),
            (None, None) => line.to_owned(),
        };
        second.push_str(&other);
        second.push('\n');
    }
    let right = parse(&second).unwrap();
    assert_eq!(left.peers[&right.host].address, right.quic.listen);
    assert_eq!(right.peers[&left.host].address, left.quic.listen);
    assert!(left.peers[&right.host].receive && right.peers[&left.host].receive);
    assert_eq!(left.control.socket, Path::new("/run/decamp-left/agent.sock"));
    assert_eq!(right.control.socket, Path::new("/run/decamp-right/agent.sock"));
    assert_ne!(left.state_dir, right.state_dir);
    assert_ne!(left.runtime.root, right.runtime.root);
    assert_ne!(left.metrics.listen, right.metrics.listen);
    assert_ne!(left.tls.key, right.tls.key);
}

#[test]
fn values_reach_their_fields() {
    let config = parse(
        r#"
host = "a"
[operators]
allow = ["anna", "bert"]
[migration]
downtime_target = "1s 500ms"
bandwidth = "100MiB/s"
if_not_converging = "cancel"
compress = "off"
tcp = "refuse"
[store]
retain_memory = 4096
[files]
allow_sources = ["/srv"]
bases = ["/images"]
[[files.mount_policies]]
destination = "/cache"
policy = "refuse"
[log]
level = "decamp=trace"
format = "json"
"#,
    )
    .unwrap();
    let mut expected = Config::defaults(host("a"));
    expected.operators.allow = vec!["anna".into(), "bert".into()];
    expected.migration.downtime_target = Duration::from_millis(1500);
    expected.migration.bandwidth = Some(100 << 20);
    expected.migration.if_not_converging = IfNotConverging::Cancel;
    expected.migration.compress = Compress::Off;
    expected.migration.tcp = Tcp::Refuse;
    expected.store.retain_memory = 4096;
    expected.files.allow_sources = vec!["/srv".into()];
    expected.files.bases = vec!["/images".into()];
    expected.files.mount_policies =
        vec![MountRule { destination: "/cache".into(), policy: MountPolicy::Refuse }];
    expected.log = Log { level: "decamp=trace".into(), format: LogFormat::Json };
    assert_eq!(config, expected);
}

#[test]
fn every_complaint_comes_at_once_with_line_key_value_and_rule() {
    let text = r#"state_dir = "var/lib"
[quic]
listen = "7626"
streams = 17
idle_timeout = 10
[migration]
tcp = "drop"
bandwidth = "100Mbit"
[peers.b]
receive = "yes"
[[files.mount_policies]]
destination = "/x"
policy = "map"
"#;
    let found = complaints(text);
    let expected = [
        r"host: it is missing and has no default",
        r#"line 1: state_dir = "var/lib": it must be an absolute path"#,
        r#"line 3: quic.listen = "7626": it must be an IP address and a port, such as 0.0.0.0:7626 or [::]:7626"#,
        r"line 4: quic.streams = 17: it must be from 1 to 16",
        r#"line 5: quic.idle_timeout = 10: it must be a time with its unit, such as "300ms", not a TOML integer"#,
        r#"line 7: migration.tcp = "drop": it must be one of "keep", "close", "refuse""#,
        r#"line 8: migration.bandwidth = "100Mbit": "Mbit" is not a unit"#,
        r"line 9: peers.b.address: it is missing",
        r#"line 10: peers.b.receive = "yes": it must be true or false, not a TOML string"#,
        r"line 11: files.mount_policies[0].map_to: it is missing",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\nshould begin with\n{expected}");
    }
}

#[test]
fn one_mistake_is_one_complaint() {
    for (text, expected) in [
        ("hots = 'a'", "line 1: hots: unknown key `hots`, expected one of `host`"),
        ("host = 'a'\n\n[quic]\nlisten_on = 1", "line 4: listen_on: unknown key"),
        ("host = 'a'\n[qiuc]", "line 2: qiuc: unknown key"),
        ("host = 'a'\nquic = 3", "line 2: invalid type"),
        ("host = 'a'\nrun_dir = ", "line 2: "),
        ("host = 'a'\nhost = 'b'", "line 2: duplicate key"),
        ("host = '../a'", "line 1: host = '../a': "),
        ("host = 'a'\n[peers.a]\naddress = '10.0.0.1:1'", "line 2: peers.a: a host is not its own peer"),
        ("host = 'a'\n[peers.b]\naddress = '0.0.0.0:1'", "line 3: peers.b.address = '0.0.0.0:1': nobody"),
        ("host = 'a'\n[peers.'b/c']\naddress = '10.0.0.1:1'", "line 2: peers.b/c: host name"),
        ("host = 'a'\n[quic]\nlisten = '0.0.0.0:0'", "line 3: quic.listen = '0.0.0.0:0': port 0"),
        (
            "host = 'a'\n[migration]\ntimeout = '200ms'",
            "line 3: migration.timeout = '200ms': downtime_target",
        ),
        (
            "host = 'a'\n[migration]\ntimeout = '0s'",
            "line 3: migration.timeout = '0s': it must be more than zero",
        ),
        (
            "host = 'a'\n[migration]\nmax_rounds = 0",
            "line 3: migration.max_rounds = 0: it must be from 1 to 100",
        ),
        ("host = 'a'\n[store]\nretain_disk = -1", "line 3: store.retain_disk = -1: it must not be negative"),
        (
            "host = 'a'\n[store]\nretain_disk = '1GiB/s'",
            "line 3: store.retain_disk = '1GiB/s': this is an amount",
        ),
        ("host = 'a'\n[tls]\nkey = '/a/../b'", "line 3: tls.key = '/a/../b': a path with \"..\""),
        (
            "host = 'a'\n[runtime]\nrunc = 'bin/runc'",
            "line 3: runtime.runc = 'bin/runc': it must be an absolute",
        ),
        ("host = 'a'\n[network]\nbridge = 'a-far-too-long-name'", "line 3: network.bridge = 'a-far-"),
        (
            "host = 'a'\n[operators]\nallow = ['ok', 3]",
            "line 3: operators.allow[1] = ['ok', 3]: it must be a text",
        ),
        ("host = 'a'\n[log]\nlevel = 'decamp=loud'", "line 3: log.level = 'decamp=loud': "),
        (
            "host = 'a'\n[[files.mount_policies]]\ndestination = '/x'\npolicy = 'copy'\nmap_to = '/y'",
            "line 5: files.mount_policies[0].map_to = '/y': only policy \"map\"",
        ),
        (
            "host = 'a'\n[files]\nmount_policies = [{destination = '/x', policy = 'copy'},\n\
             {destination = '/x', policy = 'refuse'}]",
            "line 4: files.mount_policies[1].destination = '/x': another rule",
        ),
    ] {
        let found = complaints(text);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].starts_with(expected), "{text}\ngave {}\nnot {expected}", found[0]);
    }
}

#[test]
fn a_socket_path_must_fit() {
    let long = format!("host = 'a'\n[control]\nsocket = '/{}'", "s".repeat(107));
    assert!(complaints(&long)[0].contains("at most 107 bytes"));
    let fits = format!("host = 'a'\n[control]\nsocket = '/{}'", "s".repeat(106));
    parse(&fits).unwrap();
    // Derived from run_dir it must fit as well.
    let derived = format!("host = 'a'\nrun_dir = '/{}'", "r".repeat(100));
    assert!(complaints(&derived)[0].contains("at most 107 bytes"), "{:?}", complaints(&derived));
}

#[test]
fn a_file_others_can_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    fs::write(&path, "host = 'a'").unwrap();
    for (mode, usable) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false), (0o620, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match load(&path) {
            Ok(_) => assert!(usable, "{mode:o} was accepted"),
            Err(ConfigError::Writable { mode: seen, .. }) => assert!(!usable && seen == mode),
            Err(other) => panic!("{mode:o}: {other}"),
        }
    }
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    assert!(matches!(load(&path), Err(ConfigError::Read { .. })));
    assert!(matches!(load(folder.path()), Err(ConfigError::NotAFile { .. })));

    fs::write(&path, "hots = 'a'").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let said = load(&path).unwrap_err().to_string();
    assert!(
        said.starts_with(&format!("configuration {} is not usable: line 1: hots", path.display())),
        "{said}"
    );

    fs::write(&path, "state_dir = 'x'").unwrap();
    let said = load(&path).unwrap_err().to_string();
    assert!(
        said.contains("\n  host: it is missing") && said.contains("\n  line 1: state_dir = 'x': "),
        "{said}"
    );

    fs::write(&path, "#".repeat(2 << 20)).unwrap();
    assert!(matches!(load(&path), Err(ConfigError::TooLarge { .. })));
}
