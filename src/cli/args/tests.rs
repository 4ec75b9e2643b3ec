//! The tree is sound, the help teaches, and every option becomes the request it promises.

use clap::{CommandFactory, Parser};

use super::*;

/// The commands whose rooms run on this machine, parsed as they will be.
#[derive(Debug, Parser)]
enum Rooms {
    Agent(AgentArgs),
    Pki(PkiArgs),
    Demo(DemoArgs),
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::parse_line(line.split_whitespace().map(Into::into))
}

fn refusal(line: &str) -> String {
    let error = parse(line).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{line}");
    error.to_string()
}

#[test]
fn the_trees_are_sound() {
    Cli::tree().debug_assert();
    Rooms::command().debug_assert();
}

#[test]
fn every_command_has_one_line_a_longer_text_and_examples() {
    let trees = [Cli::tree(), Rooms::command()];
    for command in
        trees.iter().flat_map(clap::Command::get_subcommands).filter(|command| !command.is_hide_set())
    {
        let name = command.get_name();
        let about = command.get_about().expect(name).to_string();
        assert!(about.len() < 90 && !about.contains('\n') && !about.ends_with('.'), "{name}: {about}");
        assert!(command.get_long_about().is_some(), "{name} has no longer text");
        let after = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.contains("Examples:\n  decamp "), "{name} has no examples");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{name} {} has no help", argument.get_id());
        }
    }
}

#[test]
fn the_help_shows_groups_and_exit_codes() {
    let long = Cli::tree().render_long_help().to_string();
    for piece in
        ["Look:\n  ls", "Move:\n  migrate", "Set up:", "Examples:", "Exit codes:\n  0  done", "  5  in doubt"]
    {
        assert!(long.contains(piece), "{piece:?} is missing in\n{long}");
    }
    let short = Cli::tree().render_help().to_string();
    assert!(short.contains("decamp help COMMAND") && !short.contains("Exit codes:"), "{short}");
}

#[test]
fn every_example_in_every_help_parses() {
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| line.starts_with("decamp "));
        found.extend(lines.map(str::to_owned));
        command.get_subcommands().for_each(|inner| examples(inner, found));
    }
    let mut found = Vec::new();
    examples(&Cli::command(), &mut found);
    assert!(found.len() > 20, "only {} examples", found.len());
    for line in found {
        // What the shell would pass: no pipes, no redirections, no quotes, no explanation after many spaces.
        let end =
            line.find(" | ").or_else(|| line.find(" > ")).or_else(|| line.find("    ")).unwrap_or(line.len());
        let words = line[..end].replace("'maintenance was called off'", "maintenance");
        assert!(parse(&words).is_ok(), "{words}: {}", parse(&words).unwrap_err());
    }
}

#[test]
fn a_full_line_becomes_the_request_it_says() {
    let line = "decamp migrate redis --to 10.0.0.2:7443 --mode cold --downtime-target 300ms --max-rounds 7 --bandwidth 100MiB/s \
        --tcp close --if-not-converging cancel --mount /data=copy --mount /etc/x=map:/srv/x --compress off --timeout 30m";
    let Command::Migrate(args) = parse(line).unwrap().command else { panic!("not migrate") };
    let request = args.options.request(args.container.as_str());
    assert_eq!((request.container.as_str(), request.to.as_str()), ("redis", "10.0.0.2:7443"));
    assert_eq!(
        (request.mode.as_str(), request.tcp.as_str(), request.compress.as_str()),
        ("cold", "close", "off")
    );
    assert_eq!((request.downtime_target_ms, request.max_rounds, request.timeout_ms), (300, 7, 1_800_000));
    assert_eq!((request.bandwidth_bytes_per_s, request.if_not_converging.as_str()), (104_857_600, "cancel"));
    let mounts: Vec<_> = request.mounts.iter().map(|m| (&*m.destination, &*m.policy, &*m.map_to)).collect();
    assert_eq!(mounts, [("/data", "copy", ""), ("/etc/x", "map", "/srv/x")]);
}

#[test]
fn nothing_typed_means_the_agents_defaults() {
    let Command::Drain(args) = parse("decamp drain --to node-b").unwrap().command else {
        panic!("not drain")
    };
    assert_eq!(args.jobs, 2);
    let request = args.options.request("x");
    assert_eq!(
        (request.mode.as_str(), request.tcp.as_str(), request.compress.as_str()),
        ("precopy", "keep", "auto")
    );
    assert_eq!((request.downtime_target_ms, request.max_rounds, request.bandwidth_bytes_per_s), (0, 0, 0));
}

#[test]
fn bad_input_is_refused_with_what_to_write() {
    let cases = [
        ("decamp migrate .x --to b", "must not begin with a dot"),
        ("decamp migrate a/b --to b", "only letters, digits"),
        ("decamp migrate redis", "--to <HOST>"),
        ("decamp migrate redis --to b --bandwidth 10M", "write MiB (powers of 1024) or MB"),
        ("decamp migrate redis --to b --downtime-target 300", "write for example 300ms"),
        ("decamp migrate redis --to b --max-rounds 0", "0 is not in 1..=100"),
        ("decamp migrate redis --to b --mount /x=move", "DEST=map:PATH"),
        ("decamp migrate redis --to b --mount /x=copy --mount /x=shared", "given twice"),
        ("decamp migrate redis --to b --tcp drop", "keep, close, refuse"),
        ("decamp migrate redis --to b --json --quiet", "cannot be used with"),
        ("decamp ls --agent nowhere", "unix:/path/to/socket or HOST:PORT"),
        ("decamp drain --to b -j 0", "0 is not in 1..=64"),
        ("decamp history -n 0", "0 is not in 1..=10000"),
        ("decamp teleport", "unrecognized subcommand"),
    ];
    for (line, piece) in cases {
        let text = refusal(line);
        assert!(text.contains(piece), "{line}\n{text}");
    }
}

#[test]
fn rooms_parse() {
    let line = ["decamp", "pki", "issue", "node-a", "--dir", "p", "--address", "10.0.0.1"];
    assert!(matches!(Rooms::try_parse_from(line), Ok(Rooms::Pki(_))));
    let Rooms::Demo(demo) = Rooms::try_parse_from(["decamp", "demo"]).unwrap() else { panic!("not demo") };
    assert_eq!(demo.values, 200 << 20);
    assert!(matches!(Rooms::try_parse_from(["decamp", "agent", "--config", "a.toml"]), Ok(Rooms::Agent(_))));
}
