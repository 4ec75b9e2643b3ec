//! The real `decamp` binary against an agent that plays a script: what it prints, where, and how it exits.

#![allow(clippy::unwrap_used, reason = "a test ends where its helper cannot go on")]

mod fake;
mod harness;
mod look;
mod one;
mod several;
mod signals;
mod terminal;
mod tls;
