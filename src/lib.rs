#![doc = include_str!("../README.md")]

pub mod criu;
pub mod hook;
pub mod journal;
pub mod model;
pub mod network;
pub mod protocol;
pub mod rpc;
pub mod runtime;
