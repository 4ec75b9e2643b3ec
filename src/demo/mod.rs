//! The demonstration: two containers move from one host to the other and back, and check themselves. This room holds the story's
//! report; it judges only what was measured and never measures anything itself.

mod report;

pub use report::{Check, Container, Report, Trip, report};
