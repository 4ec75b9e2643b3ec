//! End to end, for real: root, real CRIU, real runc, real containers with data, two simulated hosts with agents.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod harness;
mod moves;
mod timers;
