//! End to end, for real: root, real CRIU, real runc, real containers with data, two simulated hosts with agents.

mod harness;
mod moves;
