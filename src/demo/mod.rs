//! The demonstration: two containers move from one host to the other and back, and check themselves.
//!
//! ```text
//! lab up ─▶ redis filled, clients started ─▶ there ─▶ checked ─▶ back ─▶ checked ─▶ report ─▶ lab down
//! ```
//! This room tells the story and judges what was measured; it never measures or checks anything itself: the workloads do.

mod interrupt;
mod measured;
mod report;
mod story;

pub use report::{Check, Container, Report, Trip, report};
pub use story::{DemoError, run};
