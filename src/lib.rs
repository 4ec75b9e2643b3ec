#![doc = include_str!("../README.md")]

pub mod criu;
pub mod model;
pub mod protocol;
pub mod rpc;
pub mod runtime;
