//! Configurations that an agent refuses, with the key and the line.

use std::time::Duration;

use crate::harness::{cluster, everything};

#[test]
fn a_wrong_configuration_is_refused_with_key_and_line() {
    let cluster = cluster("config");
    let host = cluster.host("node-a").unwrap();
    let good = String::from_utf8(host.read_file(cluster.config_path()).unwrap()).unwrap();
    let line = |text: &str, with: &str| text.lines().position(|l| l.contains(with)).unwrap() + 1;
    let cases = [
        ("[quic]\nlisten_on = \"0.0.0.0:1\"\n", "listen_on"),
        ("[store]\nretain_memory = \"many\"\n", "retain_memory"),
        ("[control]\nlisten = \"10.77.0.10\"\n", "listen"),
        ("[peers.other]\naddress = \"node-c\"\n", "address = \"node-c\""),
        ("[migration]\nmax_rounds = 0\n", "max_rounds"),
        ("[colour]\n", "[colour]"),
    ];
    let start = |text: &str, mode: u32| {
        host.write_file("/etc/decamp/wrong.toml", text.as_bytes(), mode).unwrap();
        let argv = [decamp::lab::BINARY_IN_HOST, "agent", "--config", "/etc/decamp/wrong.toml"];
        let output = host.exec_with(&argv, b"", Duration::from_secs(20)).unwrap();
        assert_ne!(output.code, 0, "{}", everything(&output));
        everything(&output)
    };
    for (wrong, key) in cases {
        let text = format!("{good}{wrong}");
        let said = start(&text, 0o600);
        println!("{said}");
        let key_only = key.split(' ').next().unwrap().trim_matches(['[', ']']);
        assert!(said.contains(key_only), "no {key_only}: {said}");
        let number = line(&text, key).to_string();
        let numbers: Vec<&str> = said.split(|c: char| !c.is_ascii_digit()).collect();
        assert!(numbers.contains(&number.as_str()), "no line {number}: {said}");
    }
    let said = start(&good, 0o666);
    assert!(said.contains("wrong.toml has mode 0666") && said.contains("chmod"), "{said}");

    // The key's mode is checked where the key is read; a second agent gets no further than that.
    host.shell("cp /etc/decamp/tls/host.key /etc/decamp/loose.key; chmod 644 /etc/decamp/loose.key").unwrap();
    let text = format!("{good}[tls]\nkey = \"/etc/decamp/loose.key\"\n");
    let said = start(&text, 0o600);
    println!("{said}");
    assert!(said.contains("/etc/decamp/loose.key") && said.contains("644"), "{said}");
}
