//! Dirty pages of real processes are found, all of them, and the processes do not notice: root only, with the host's C compiler.

#![expect(clippy::unwrap_used, reason = "a test ends with the first surprise")]

mod choice;
mod kinds;
mod oracle;
mod storms;
mod target;
mod transparency;
