#![doc = include_str!("../README.md")]

pub mod cli;
pub mod demo;
pub mod human;
pub mod model;
pub mod protocol;
pub mod rpc;
