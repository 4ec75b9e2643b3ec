//! End to end, for real: root, real CRIU, real runc, real containers with data, two simulated hosts with agents.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod cancels;
mod configs;
mod drains;
mod dumps;
mod harness;
mod kills;
mod links;
mod lost;
mod memory;
mod moves;
mod moving;
mod pagers;
mod policies;
mod programs;
mod refusals;
mod restores;
mod sizes;
mod subject;
mod timers;
mod trust;
