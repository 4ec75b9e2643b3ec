#![doc = include_str!("../README.md")]

pub mod config;
pub mod model;
pub mod protocol;
pub mod rpc;
pub mod telemetry;
