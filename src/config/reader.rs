//! Reads single values out of the raw file and collects what is wrong with them.
//!
//! It must never stop at the first complaint: whoever edits the file wants the whole list.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::error::Complaint;
use super::raw::Value;
use super::size::{parse_bytes, parse_rate};
use crate::model::id::HostId;

/// What of a value is repeated in a complaint, characters.
const VALUE_CHARS_MAX: usize = 80;
/// Longest path a UNIX socket can be bound to: `sun_path` in unix(7), less the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// The text being checked, and the complaints so far.
pub(super) struct Reader<'a> {
    text: &'a str,
    complaints: Vec<Complaint>,
}

/// A complaint about the shape: syntax, an unknown key, a section that is not one.
pub(super) fn shape(text: &str, refused: &toml::de::Error) -> Complaint {
    let span = refused.span();
    let unknown = refused.message().starts_with("unknown field");
    let here = span.clone().and_then(|span| text.get(span)).unwrap_or_default();
    Complaint {
        line: span.map(|span| line_of(text, span.start)),
        key: if unknown { shorten(here) } else { String::new() },
        value: String::new(),
        rule: refused.message().replace("unknown field", "unknown key").replace('\n', ": "),
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, complaints: Vec::new() }
    }

    /// The configuration, if there were no complaints.
    pub(super) fn finish<T>(mut self, checked: T) -> Result<T, Vec<Complaint>> {
        if self.complaints.is_empty() {
            return Ok(checked);
        }
        self.complaints.sort_by_key(|complaint| complaint.line);
        Err(self.complaints)
    }

    /// Complains about a place in the file.
    pub(super) fn complain_at(&mut self, key: &str, span: Range<usize>, rule: &str) {
        let line = Some(line_of(self.text, span.start));
        self.complaints.push(Complaint {
            line,
            key: key.to_owned(),
            value: String::new(),
            rule: rule.to_owned(),
        });
    }

    /// Complains about a value, if it is in the file.
    pub(super) fn complain(&mut self, key: &str, value: &Value, rule: &str) {
        let span = value.as_ref().map(toml::Spanned::span);
        self.complaints.push(Complaint {
            line: span.clone().map(|span| line_of(self.text, span.start)),
            key: key.to_owned(),
            value: span.and_then(|span| self.text.get(span)).map(shorten).unwrap_or_default(),
            rule: rule.to_owned(),
        });
    }

    /// A value that may be left out.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        value: &Value,
        rule: impl FnOnce(&toml::Value) -> Result<T, String>,
    ) -> Option<T> {
        match rule(value.as_ref()?.get_ref()) {
            Ok(checked) => Some(checked),
            Err(broken) => {
                self.complain(key, value, &broken);
                None
            }
        }
    }

    /// A value that has no default.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        value: &Value,
        rule: impl FnOnce(&toml::Value) -> Result<T, String>,
    ) -> Option<T> {
        if value.is_none() {
            self.complain(key, value, "it is missing and has no default");
        }
        self.optional(key, value, rule)
    }

    /// Replaces a default by the file's value, and says whether it did.
    pub(super) fn set<T>(
        &mut self,
        key: &str,
        value: &Value,
        rule: impl FnOnce(&toml::Value) -> Result<T, String>,
        to: &mut T,
    ) -> bool {
        let given = self.optional(key, value, rule);
        let is_given = given.is_some();
        if let Some(given) = given {
            *to = given;
        }
        is_given
    }

    /// As [`Reader::set`], for one word of a few.
    pub(super) fn word<T: Clone>(&mut self, key: &str, value: &Value, words: &[(&str, T)], to: &mut T) {
        self.set(key, value, |value| Self::one_of(value, words), to);
    }

    /// A list of texts; each element that is wrong gets its own complaint.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        value: &Value,
        rule: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let array = self.optional(key, value, |value| match value {
            toml::Value::Array(array) => Ok(array.clone()),
            other => Err(not_a("a list of texts, such as [\"a\", \"b\"]", other)),
        });
        let mut checked = Vec::new();
        for (index, element) in array.unwrap_or_default().iter().enumerate() {
            match Self::text(element).and_then(&rule) {
                Ok(element) => checked.push(element),
                Err(broken) => self.complain(&format!("{key}[{index}]"), value, &broken),
            }
        }
        checked
    }

    pub(super) fn text(value: &toml::Value) -> Result<&str, String> {
        value.as_str().ok_or_else(|| not_a("a text in quotes", value))
    }

    pub(super) fn flag(value: &toml::Value) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| not_a("true or false", value))
    }

    pub(super) fn one_of<T: Clone>(value: &toml::Value, words: &[(&str, T)]) -> Result<T, String> {
        let given = Self::text(value)?;
        words.iter().find(|(word, _)| *word == given).map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            format!("it must be one of {}", known.join(", "))
        })
    }

    /// A whole number from 1 to `max`.
    pub(super) fn count(value: &toml::Value, max: u32) -> Result<u32, String> {
        let number = value.as_integer().ok_or_else(|| not_a("a whole number", value))?;
        u32::try_from(number)
            .ok()
            .filter(|number| (1..=max).contains(number))
            .ok_or_else(|| format!("it must be from 1 to {max}"))
    }

    /// A nice value that only yields.
    pub(super) fn nice(value: &toml::Value) -> Result<i32, String> {
        let number = value.as_integer().ok_or_else(|| not_a("a whole number", value))?;
        let nice = i32::try_from(number).ok().filter(|nice| (0..=19).contains(nice));
        nice.ok_or_else(|| "it must be from 0 to 19".to_owned())
    }

    pub(super) fn bytes(value: &toml::Value) -> Result<u64, String> {
        Self::size(value, "a size such as \"256MiB\"", |text| {
            parse_bytes(text).map_err(|bad| bad.to_string())
        })
    }

    /// Bytes per second.
    pub(super) fn rate(value: &toml::Value) -> Result<u64, String> {
        Self::size(value, "a rate such as \"100MiB/s\"", |text| {
            parse_rate(text).map_err(|bad| bad.to_string())
        })
    }

    fn size(
        value: &toml::Value,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<u64, String>,
    ) -> Result<u64, String> {
        match value {
            toml::Value::String(text) => parse(text),
            toml::Value::Integer(bytes) => {
                u64::try_from(*bytes).map_err(|_| "it must not be negative".to_owned())
            }
            other => Err(not_a(wanted, other)),
        }
    }

    /// A time span that is not zero.
    pub(super) fn duration(value: &toml::Value) -> Result<Duration, String> {
        let text = value.as_str().ok_or_else(|| not_a("a time with its unit, such as \"300ms\"", value))?;
        let duration = humantime::parse_duration(text).map_err(|bad| {
            format!("{bad}; write a number and a unit, such as \"300ms\", \"10s\", \"30m\"")
        })?;
        if duration.is_zero() {
            return Err("it must be more than zero".to_owned());
        }
        Ok(duration)
    }

    pub(super) fn host(value: &toml::Value) -> Result<HostId, String> {
        let text = Self::text(value)?;
        HostId::try_from(text).map_err(|bad| bad.why.to_owned())
    }

    /// An address to listen on.
    pub(super) fn address(value: &toml::Value) -> Result<SocketAddr, String> {
        let text = Self::text(value)?;
        let wanted = "it must be an IP address and a port, such as 0.0.0.0:7626 or [::]:7626";
        let address: SocketAddr = text.parse().map_err(|_| wanted.to_owned())?;
        if address.port() == 0 {
            return Err("port 0 would be a different one at every start".to_owned());
        }
        Ok(address)
    }

    /// An address to connect to.
    pub(super) fn peer_address(value: &toml::Value) -> Result<SocketAddr, String> {
        let address = Self::address(value)?;
        if address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err("nobody can be reached at this address; name the peer's own".to_owned());
        }
        Ok(address)
    }

    /// A path from the root, without "..".
    pub(super) fn absolute(value: &toml::Value) -> Result<PathBuf, String> {
        Self::absolute_text(Self::text(value)?)
    }

    pub(super) fn absolute_text(text: &str) -> Result<PathBuf, String> {
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            return Err("it must be an absolute path".to_owned());
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err("a path with \"..\" may lead elsewhere; write where it ends".to_owned());
        }
        Ok(path.to_owned())
    }

    pub(super) fn socket_path(value: &toml::Value) -> Result<PathBuf, String> {
        let path = Self::absolute(value)?;
        if Self::fits_socket(&path) { Ok(path) } else { Err(Self::socket_rule()) }
    }

    pub(super) fn fits_socket(path: &Path) -> bool {
        path.as_os_str().len() <= SOCKET_PATH_MAX
    }

    pub(super) fn socket_rule() -> String {
        format!("the path of the UNIX socket has at most {SOCKET_PATH_MAX} bytes")
    }

    /// A program: its absolute path, or a name to be looked up in PATH.
    pub(super) fn program(value: &toml::Value) -> Result<PathBuf, String> {
        let text = Self::text(value)?;
        if text.contains('/') {
            return Self::absolute_text(text);
        }
        if text.is_empty() || text.contains('\0') || matches!(text, "." | "..") {
            return Err("it must be a program's name or absolute path".to_owned());
        }
        Ok(text.into())
    }
}

fn not_a(wanted: &str, given: &toml::Value) -> String {
    format!("it must be {wanted}, not a TOML {}", given.type_str())
}

/// Line of a byte, from 1.
fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|byte| *byte == b'\n').count()
}

/// One line, and not too long.
fn shorten(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= VALUE_CHARS_MAX {
        return line;
    }
    line.chars().take(VALUE_CHARS_MAX).chain("...".chars()).collect()
}
