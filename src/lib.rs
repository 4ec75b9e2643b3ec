#![doc = include_str!("../README.md")]

pub mod model;
pub mod network;
pub mod protocol;
pub mod rpc;
