//! The pager against real userfaultfds: a process that plays the restored task checks every byte it reads. Needs root and python3.
#![allow(clippy::unwrap_used, reason = "a test's way to fail")]

mod ends;
mod fills;
mod harness;
mod rate;
