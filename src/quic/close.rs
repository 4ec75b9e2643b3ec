//! Numeric close codes: what each means to the peer.

/// Everything was said.
pub const DONE: u32 = 0;
/// The peer's certificate is good, but its name is not on the allow-list.
pub const NOT_ALLOWED: u32 = 1;
/// The peer broke the protocol.
pub const PROTOCOL: u32 = 2;
/// The migration was stopped.
pub const ABORTED: u32 = 3;
/// The agent is stopping.
pub const STOPPING: u32 = 4;

/// In words.
#[must_use]
pub fn meaning(code: u64) -> &'static str {
    match u32::try_from(code) {
        Ok(DONE) => "it had nothing more to say",
        Ok(NOT_ALLOWED) => {
            "this host is not on its allow-list: set `receive = true` for it in the peer's [peers] table"
        }
        Ok(PROTOCOL) => "it says that we broke the protocol: run the same version on both hosts",
        Ok(ABORTED) => "the migration was stopped there",
        Ok(STOPPING) => "its agent is stopping",
        _ => "for a reason that this version does not know",
    }
}
