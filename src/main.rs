//! The `decamp` command.

fn main() {}
