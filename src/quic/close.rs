//! Numbers with which a link is closed or a stream is given up. They cross the wire: never reuse one for another meaning.

/// A close code or stream error code of decamp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(u32);

/// Let go without a word: what QUIC itself sends when a link or a stream is dropped, by a task that ended or was cancelled.
pub const DROPPED: Code = Code(0);
/// Everything is done.
pub const DONE: Code = Code(1);
/// The peer's name is not on the allow-list here.
pub const NOT_ALLOWED: Code = Code(2);
/// The peer's certificate names no host: an operator's, or one with no name or several.
pub const NOT_A_HOST: Code = Code(3);
/// Too many links or handshakes here; try again later.
pub const BUSY: Code = Code(4);
/// The agent here is being stopped.
pub const STOPPING: Code = Code(5);
/// The peer broke the protocol.
pub const PROTOCOL: Code = Code(6);
/// The migration was stopped, by an operator or by a failure.
pub const ABORTED: Code = Code(7);
/// Something failed here that is not the peer's fault.
pub const INTERNAL: Code = Code(8);
/// The peer took too long.
pub const TOO_SLOW: Code = Code(9);
/// The calling side found, after the handshake, that it reached somebody else.
pub const WRONG_PEER: Code = Code(10);

/// Every code, for the table of meanings and the test that no number is used twice.
const ALL: &[(Code, &str)] = &[
    (DROPPED, "let go without giving a reason"),
    (DONE, "done"),
    (NOT_ALLOWED, "not on the allow-list"),
    (NOT_A_HOST, "the certificate is not a host's"),
    (BUSY, "too busy"),
    (STOPPING, "its agent is being stopped"),
    (PROTOCOL, "the protocol was broken"),
    (ABORTED, "the migration was stopped there"),
    (INTERNAL, "an internal failure"),
    (TOO_SLOW, "too slow"),
    (WRONG_PEER, "not the host that was called"),
];

impl Code {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// What QUIC takes.
    pub(super) fn var_int(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self.0)
    }
}

/// What a code from a peer means. A newer peer may know more codes than we do.
#[must_use]
pub fn meaning(number: u64) -> &'static str {
    ALL.iter().find(|(code, _)| u64::from(code.0) == number).map_or("an unknown reason", |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_two_meanings() {
        let numbers: std::collections::HashSet<_> = ALL.iter().map(|(code, _)| code.0).collect();
        assert_eq!(numbers.len(), ALL.len());
        assert_eq!(meaning(u64::from(NOT_ALLOWED.number())), "not on the allow-list");
        assert_eq!(meaning(u64::MAX), "an unknown reason");
    }
}
