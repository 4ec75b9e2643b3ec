//! Style as a test: who may import whom, sizes, room docs, where unsafe may be, reasons for dependencies.
//!
//! Standard library only, so that it stays true whatever the project depends on. It reads tokens, not text: words in
//! comments and strings do not count.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
/// The only places with unsafe code: system calls, and the object preloaded into CRIU.
const UNSAFE_ROOMS: [&str; 2] = ["sys", "preload"];
/// What a hand may use: the ground all rooms stand on. Hands do not know each other.
const GROUND: &[&str] = &["model", "rpc", "protocol", "sys", "images", "pages"];
/// The rooms that touch one thing each.
const HANDS: &[&str] =
    &["runtime", "criu", "memory", "files", "network", "store", "pager", "pki", "quic", "journal", "hook"];

/// What a room may name.
enum May {
    /// These.
    Name(&'static [&'static [&'static str]]),
    /// Every room in a row above its own.
    NameAllAbove,
}
use May::{Name, NameAllAbove};

/// Rooms from the ground up; no row names a later one, so the graph cannot have a cycle.
const ROOMS: &[(&str, May)] = &[
    ("preload", Name(&[])),
    ("model", Name(&[])),
    ("telemetry", Name(&[])),
    ("rpc", Name(&[&["model"]])),
    ("sys", Name(&[&["model"]])),
    ("human", Name(&[&["model"]])),
    ("protocol", Name(&[&["model", "rpc"]])),
    ("images", Name(&[&["model"]])),
    ("pages", Name(&[&["model"]])),
    ("runtime", Name(&[GROUND])),
    // The plan that the object preloaded into CRIU reads.
    ("criu", Name(&[GROUND, &["preload"]])),
    ("memory", Name(&[GROUND])),
    ("files", Name(&[GROUND])),
    ("network", Name(&[GROUND])),
    ("store", Name(&[GROUND])),
    ("pager", Name(&[GROUND])),
    ("pki", Name(&[GROUND])),
    // Its connections are made with the certificates of pki.
    ("quic", Name(&[GROUND, &["pki"]])),
    ("journal", Name(&[GROUND])),
    ("hook", Name(&[GROUND])),
    ("migration", NameAllAbove),
    ("config", Name(&[&["model", "telemetry", "migration"], HANDS])),
    ("agent", NameAllAbove),
    ("lab", Name(&[&["model", "sys", "human", "config", "pki"]])),
    ("demo", Name(&[&["lab", "rpc", "human", "model"]])),
    ("bench", NameAllAbove),
    ("cli", NameAllAbove),
];

#[derive(Debug)]
struct Token {
    line: usize,
    text: String,
}

/// The tokens of Rust source: words, literals (as `"`), `::` and single marks. No comments.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let (mut at, mut line) = (0, 1);
    let mut found = Vec::new();
    while at < chars.len() {
        let start = at;
        let text = if let Some(end) = comment_end(&chars, at) {
            at = end;
            None
        } else if let Some(end) = literal_end(&chars, at) {
            at = end;
            Some("\"".to_owned())
        } else if chars[at].is_alphanumeric() || chars[at] == '_' {
            at += chars[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            Some(chars[start..at].iter().collect())
        } else {
            at += if chars[at..].starts_with(&[':', ':']) { 2 } else { 1 };
            Some(chars[start..at].iter().collect::<String>()).filter(|text| !text.trim().is_empty())
        };
        found.extend(text.map(|text| Token { line, text }));
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn comment_end(chars: &[char], start: usize) -> Option<usize> {
    let rest = &chars[start..];
    if rest.starts_with(&['/', '/']) {
        return Some(start + rest.iter().take_while(|c| **c != '\n').count());
    }
    if !rest.starts_with(&['/', '*']) {
        return None;
    }
    let (mut depth, mut at) = (0, start);
    while at < chars.len() {
        let (deeper, step) = match &chars[at..chars.len().min(at + 2)] {
            ['/', '*'] => (1, 2),
            ['*', '/'] => (-1, 2),
            _ => (0, 1),
        };
        depth += deeper;
        at += step;
        if depth == 0 {
            break;
        }
    }
    Some(at)
}

/// End of a string or character literal beginning here; lifetimes are none.
fn literal_end(chars: &[char], start: usize) -> Option<usize> {
    let prefix = chars[start..].iter().take(2).take_while(|c| matches!(c, 'b' | 'c' | 'r')).count();
    let open = start + prefix;
    let raw = prefix > 0 && chars[open - 1] == 'r';
    let hashes = if raw { chars[open..].iter().take_while(|c| **c == '#').count() } else { 0 };
    let quote = *chars.get(open + hashes)?;
    if raw && quote == '"' {
        let mut close = vec!['"'];
        close.resize(1 + hashes, '#');
        let body = open + hashes + 1;
        let length = chars[body..].windows(close.len()).position(|window| window == close)?;
        return Some(body + length + close.len());
    }
    let lifetime = quote == '\'' && chars.get(open + 1) != Some(&'\\') && chars.get(open + 2) != Some(&'\'');
    if !matches!(quote, '"' | '\'') || lifetime {
        return None;
    }
    let mut at = open + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    Some(chars.len().min(at + 1))
}

/// Index of the bracket that closes the one at `open`; the last token if there is none.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len() - 1
}

fn text(tokens: &[Token], index: usize) -> &str {
    tokens.get(index).map_or("", |token| token.text.as_str())
}

/// Names directly below the crate's root that a file uses, by `crate::` or by enough `super::`. `depth`: how many
/// modules down the file is.
fn root_names(tokens: &[Token], depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // Ends of the inline modules we are in: each makes the root one `super` further away.
    let mut inline: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        inline.retain(|end| *end > at);
        let is_super =
            |n: &usize| text(tokens, at + 2 * n) == "super" && text(tokens, at + 2 * n + 1) == "::";
        let supers = (0..).take_while(is_super).count();
        let after = match text(tokens, at) {
            "mod" if text(tokens, at + 2) == "{" => {
                inline.push(closing(tokens, at + 2));
                None
            }
            "crate" if text(tokens, at + 1) == "::" => Some(at + 2),
            "super" if supers > 0 && supers == depth + inline.len() => Some(at + 2 * supers),
            _ => None,
        };
        match after {
            Some(group) if text(tokens, group) == "{" => found.extend(group_names(tokens, group)),
            Some(name) => found.extend(tokens.get(name).map(|token| (token.line, token.text.clone()))),
            None => {}
        }
        at += if supers > 0 { 2 * supers } else { 1 };
    }
    found
}

/// First names of the paths in `{a::b, c, d::{e, f}}`.
fn group_names(tokens: &[Token], open: usize) -> Vec<(usize, String)> {
    let end = closing(tokens, open);
    let (mut found, mut at, mut first) = (Vec::new(), open + 1, true);
    while at < end {
        match text(tokens, at) {
            "," => first = true,
            "{" => at = closing(tokens, at),
            name => {
                if first {
                    found.push((tokens[at].line, name.to_owned()));
                }
                first = false;
            }
        }
        at += 1;
    }
    found
}

fn may_name(room: &str, other: &str) -> bool {
    let Some(row) = ROOMS.iter().position(|(name, _)| *name == room) else { return false };
    match &ROOMS[row].1 {
        Name(lists) => lists.iter().any(|list| list.contains(&other)),
        NameAllAbove => ROOMS[..row].iter().any(|(name, _)| *name == other),
    }
}

/// Line and what is wrong there.
type Offence = (usize, String);

/// `modules`: the file's path below src without ".rs" and "/mod".
fn imports(tokens: &[Token], modules: &[&str]) -> Vec<Offence> {
    let [room, ..] = modules else { return Vec::new() };
    let is_room = |name: &str| ROOMS.iter().any(|(room, _)| *room == name);
    // A room of tests may bring both ends of a conversation together; what ships may not.
    if is_room(room) && modules[1..].iter().any(|module| *module == "tests" || module.ends_with("_tests")) {
        return Vec::new();
    }
    if !is_room(room) {
        return vec![(1, format!("room {room} is not in the table of tests/tidy.rs"))];
    }
    root_names(tokens, modules.len())
        .into_iter()
        .filter(|(_, name)| name != room && is_room(name) && !may_name(room, name))
        .map(|(line, name)| (line, format!("{room} may not name {name}")))
        .collect()
}

fn long_functions(tokens: &[Token]) -> Vec<Offence> {
    let mut found = Vec::new();
    for start in (0..tokens.len()).filter(|at| text(tokens, *at) == "fn" && text(tokens, at + 1) != "(") {
        let mut at = start + 1;
        while at < tokens.len() && !matches!(text(tokens, at), "{" | ";") {
            at = if matches!(text(tokens, at), "(" | "[") { closing(tokens, at) + 1 } else { at + 1 };
        }
        if text(tokens, at) == "{" {
            let lines = tokens[closing(tokens, at)].line - tokens[start].line + 1;
            if lines > FUNCTION_LINES_MAX {
                let name = text(tokens, start + 1);
                let offence = format!("function {name} has {lines} lines, {FUNCTION_LINES_MAX} are allowed");
                found.push((tokens[start].line, offence));
            }
        }
    }
    found
}

fn words(tokens: &[Token], unsafe_allowed: bool) -> Vec<Offence> {
    let offence = |at: usize| match (text(tokens, at), text(tokens, at + 1)) {
        ("unsafe", _) if !unsafe_allowed => Some("unsafe code belongs into src/sys"),
        ("todo" | "unimplemented", "!") => Some("unfinished code"),
        ("dbg", "!") => Some("dbg! was left behind"),
        ("ignore", "]") if text(tokens, at.wrapping_sub(1)) == "[" => Some("#[ignore] needs a reason"),
        _ => None,
    };
    (0..tokens.len()).filter_map(|at| offence(at).map(|what| (tokens[at].line, what.to_owned()))).collect()
}

fn rust_file(path: &str, source: &str) -> Vec<Offence> {
    let tokens = tokens(source);
    let below_src = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs"));
    let modules: Vec<&str> = match below_src {
        None | Some("lib" | "main") => Vec::new(),
        Some(path) => path.strip_suffix("/mod").unwrap_or(path).split('/').collect(),
    };
    let mut found = imports(&tokens, &modules);
    found.extend(long_functions(&tokens));
    let unsafe_allowed = modules.first().is_some_and(|room| UNSAFE_ROOMS.contains(room));
    found.extend(words(&tokens, unsafe_allowed));
    let lines = source.lines().count();
    if lines > FILE_LINES_MAX {
        found.push((lines, format!("the file has {lines} lines, {FILE_LINES_MAX} are allowed")));
    }
    if !source.starts_with("//!") && !source.starts_with("#![doc = include_str!") {
        found.push((1, "the file does not begin with //!: what it is for, what it must never do".to_owned()));
    }
    found
}

/// In each dependency section, a group of dependencies begins with a comment.
fn reasons(manifest: &str) -> Vec<Offence> {
    let mut found = Vec::new();
    let (mut inside, mut explained, mut open) = (false, false, false);
    for (number, line) in (1..).zip(manifest.lines().map(str::trim)) {
        if line.starts_with('[') && !open {
            inside = line.trim_end_matches(']').ends_with("dependencies");
            if line.contains("dependencies.") && !explained {
                found.push((number, format!("{line} has no comment with its reason above")));
            }
            explained = false;
        } else if line.starts_with('#') {
            explained = true;
        } else if line.is_empty() {
            explained = false;
        } else if inside && !open && !explained {
            let name = line.split(['=', '.']).next().unwrap_or(line).trim();
            found.push((number, format!("dependency {name} has no comment with its reason above its group")));
        }
        // An array over several lines.
        open = (open || line.ends_with('[')) && !line.contains(']');
    }
    found
}

/// Things that are true on one machine only: package mirrors, home folders, the folder of this checkout.
fn private(content: &str, folders: &[String]) -> Vec<Offence> {
    const MIRRORS: [&str; 6] = ["artifactory", "nexus", "mirror", "proxy", ".internal", ".corp"];
    let mut found = Vec::new();
    for (number, line) in (1..).zip(content.lines()) {
        for rest in line.split("://").skip(1) {
            let host = rest.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-')).next();
            let host = host.unwrap_or_default();
            if MIRRORS.iter().any(|mark| host.contains(mark)) {
                found.push((number, format!("{host} looks like a private package mirror")));
            }
        }
        let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}*".contains(c));
        for folder in folders {
            if line.match_indices(folder.as_str()).any(|(at, _)| begins(at)) {
                found.push((number, format!("{folder} is a folder of one developer's machine")));
            }
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn private_folders() -> Vec<String> {
    // Put together here, or this file would offend.
    let mut folders = vec![format!("/{}/", "home"), format!("/{}/", "Users"), root().display().to_string()];
    folders.extend(["CARGO_HOME", "RUSTUP_HOME"].into_iter().filter_map(|name| std::env::var(name).ok()));
    // One component alone, "/src", would be found everywhere.
    folders.retain(|folder| folder.ends_with('/') || folder.matches('/').count() > 1);
    folders
}

/// Every file of the project; build output and git's own are none.
fn project_files() -> Vec<PathBuf> {
    let mut folders = vec![root().to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project can be listed") {
            let entry = entry.expect("a folder of the project can be listed");
            let kind = entry.file_type().expect("a listed entry has a type");
            let name = entry.file_name();
            if kind.is_dir() && name != ".git" && name != "target" {
                folders.push(entry.path());
            } else if kind.is_file() && name != ".git" {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_project_is_tidy() {
    let private_folders = private_folders();
    let mut offences = Vec::new();
    let mut rust_files = 0;
    for path in project_files() {
        // Binary files have no lines to complain about.
        let Ok(content) = fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(root()).expect("it was found below the root").display().to_string();
        let mut found = private(&content, &private_folders);
        if name.ends_with(".rs") {
            rust_files += 1;
            found.extend(rust_file(&name, &content));
        }
        if name == "Cargo.toml" {
            found.extend(reasons(&content));
        }
        offences.extend(found.into_iter().map(|(line, what)| format!("{name}:{line}: {what}")));
    }
    assert!(rust_files > 10, "only {rust_files} files were looked at");
    assert!(offences.is_empty(), "{} offences\n{}", offences.len(), offences.join("\n"));
}

#[test]
fn the_table_has_no_cycle() {
    for (row, (room, may)) in ROOMS.iter().enumerate() {
        let Name(lists) = may else { continue };
        for other in lists.iter().flat_map(|list| list.iter()) {
            let above = ROOMS[..row].iter().any(|(name, _)| name == other);
            assert!(above, "{room} names {other}, which is not above it");
        }
    }
}

fn said(path: &str, source: &str) -> Vec<String> {
    rust_file(path, source).into_iter().map(|(line, what)| format!("{line}: {what}")).collect()
}

#[test]
fn imports_are_found_wherever_they_hide() {
    for (path, source) in [
        ("src/model/id.rs", "//! .\nuse crate::rpc::X;"),
        ("src/model/mod.rs", "//! .\nuse super::rpc::X;"),
        ("src/model/a/b.rs", "//! .\nfn f() { super::super::super::rpc::x() }"),
        ("src/model/id.rs", "//! .\nuse crate::{model::{id, rpc}, rpc as other};"),
        ("src/model/id.rs", "//! .\nmod tests { use super::super::super::rpc; }"),
        ("src/model/id.rs", "//! .\nfn f<'a>(_: &'a u8) -> char { '\"' } use crate::rpc; // \""),
    ] {
        assert_eq!(said(path, source), ["2: model may not name rpc"], "{source}");
    }
    for (path, source) in [
        ("src/rpc/mod.rs", "//! .\nuse crate::model::id;"),
        ("src/quic/mod.rs", "//! .\nuse crate::{pki, protocol};"),
        (
            "src/model/mod.rs",
            "//! .\n/* /* */ crate::rpc */ // crate::rpc\nconst A: &str = r#\"\"crate::rpc\"#;",
        ),
        ("src/model/mod.rs", "//! .\nmod tests { use super::rpc; }"),
        ("src/model/mod.rs", "//! .\nuse crate::{model::{id, rpc}};"),
    ] {
        assert!(said(path, source).is_empty(), "{source}: {:?}", said(path, source));
    }
    assert_eq!(said("src/files/a.rs", "//! .\nuse crate::store;"), ["2: files may not name store"]);
    assert!(said("src/memory/pipeline_tests/world.rs", "//! .\nuse crate::store;").is_empty());
    assert_eq!(said("src/attic/mod.rs", "//! ."), ["1: room attic is not in the table of tests/tidy.rs"]);
}

#[test]
fn each_rule_can_fail() {
    let body = |lines: usize| format!("//! .\nfn f(_: [u8; 2]) {{\n{}}}\n", "// x\n".repeat(lines));
    assert!(said("src/model/a.rs", &body(68)).is_empty());
    assert_eq!(said("src/model/a.rs", &body(69)), ["2: function f has 71 lines, 70 are allowed"]);
    assert!(said("src/model/a.rs", &format!("//! .\n{}", "\n".repeat(499))).is_empty());
    assert_eq!(said("src/model/a.rs", &format!("//! .\n{}", "\n".repeat(500))).len(), 1);
    assert_eq!(said("src/model/a.rs", "fn f() {}").len(), 1);
    assert_eq!(said("src/model/a.rs", "//! .\nunsafe fn f() {}"), ["2: unsafe code belongs into src/sys"]);
    assert!(said("src/sys/a.rs", "//! .\nunsafe fn f() {}").is_empty());
    assert_eq!(said("tests/a.rs", "//! .\n#[ignore]\nfn f() { todo!(); dbg!(1) }").len(), 3);
    assert!(said("tests/a.rs", "//! .\n#[ignore = \"slow\"]\nfn f() { todo() }").is_empty());

    let manifest =
        "[dependencies]\n# Why.\na = [\n\"x\",\n]\nb = 1\n\nc = 1\n[dev-dependencies]\nd = 1\n[lints]\ne = 1";
    let lines: Vec<usize> = reasons(manifest).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [8, 10]);
    assert_eq!(reasons("[dependencies.a]\nversion = \"1\"").len(), 1);

    let folders = ["/some/checkout".to_owned()];
    let url = format!("{}//{}", "https:", "cargo.mirror.example/index");
    assert_eq!(private(&url, &folders).len(), 1);
    assert_eq!(private("see https://docs.rs/x and a/some/checkout", &folders).len(), 0);
    assert_eq!(private("x\ncd /some/checkout/src", &folders)[0].0, 2);
}
