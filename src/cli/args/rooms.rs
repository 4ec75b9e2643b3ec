//! Commands that are not clients: they run something on this machine.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Telling;
use crate::human::parse_size;

/// Where certificates are kept when nothing else is said.
const PKI_DIR: &str = "/etc/decamp/pki";

/// Ten years: replacing an authority means visiting every host.
const CERTIFICATE_DAYS: u32 = 3653;

/// `decamp agent`
#[derive(Debug, Args)]
#[command(
    about = "Run the agent of this host (as root, under systemd)",
    long_about = "Run the agent of this host: it finds the containers, talks to CRIU and the runtime, serves operators over \
        gRPC and other agents over QUIC. One per host, as root; it stays in the foreground and stops on SIGTERM after \
        finishing or rolling back what is in flight.",
    after_long_help = "Examples:\n  decamp agent --config /etc/decamp/agent.toml"
)]
pub struct AgentArgs {
    /// The agent's configuration (TOML); every key is explained in the file that is shipped
    #[arg(long, value_name = "FILE", env = "DECAMP_CONFIG", default_value = "/etc/decamp/agent.toml")]
    pub config: PathBuf,
}

/// `decamp pki`
#[derive(Debug, Args)]
#[command(
    about = "Make the certificates by which agents and operators know each other",
    long_about = "Make the certificates by which agents and operators know each other: an authority of your own, then one \
        certificate per host and per operator. Keys are written readable by their owner only.",
    after_long_help = "\
Examples:
  decamp pki init --dir pki
  decamp pki issue node-a --dir pki --address 10.0.0.1
  decamp pki issue alice --dir pki --operator"
)]
pub struct PkiArgs {
    /// What to make.
    #[command(subcommand)]
    pub command: PkiCommand,
}

/// What `decamp pki` can make.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make an authority: DIR/ca.crt and DIR/ca.key
    Init {
        /// Folder for certificates and keys
        #[arg(long, value_name = "DIR", default_value = PKI_DIR)]
        dir: PathBuf,
        /// How many days it is valid
        #[arg(long, value_name = "DAYS", default_value_t = CERTIFICATE_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_525))]
        days: u32,
        /// Replace an authority that is there: every certificate it signed becomes useless
        #[arg(long)]
        force: bool,
    },
    /// Make a certificate for a host (NAME.crt, NAME.key), or with --operator for a person (NAME.operator.crt, .key)
    Issue {
        /// Name in the certificate: the host's name as the other agents' allow-lists spell it
        name: String,
        /// Folder of the authority; the certificate is written there too
        #[arg(long, value_name = "DIR", default_value = PKI_DIR)]
        dir: PathBuf,
        /// Addresses under which the host is reached; may be repeated
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// How many days it is valid; never longer than the authority
        #[arg(long, value_name = "DAYS", default_value_t = CERTIFICATE_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_525))]
        days: u32,
        /// For an operator's command line, not for a host
        #[arg(long)]
        operator: bool,
        /// Replace a certificate that is there
        #[arg(long)]
        force: bool,
    },
}

/// `decamp demo`
#[derive(Debug, Args)]
#[command(
    about = "Watch Redis and a process tree move between two simulated hosts and back (needs root)",
    long_about = "Opens a lab with two hosts, starts Redis with real values and a client that counts every millisecond, and a \
        second container full of things that are hard to move; moves both to the other host and back; checks every key, \
        counter, byte and file; prints what it cost; and removes the lab.\n\nExits with 7 if any check fails.",
    after_long_help = "Examples:\n  decamp demo\n  decamp demo --values 512MiB --keep"
)]
pub struct DemoArgs {
    /// How much Redis holds
    #[arg(long, value_name = "SIZE", default_value = "200MiB", value_parser = parse_size)]
    pub values: u64,
    /// Leave the lab up afterwards
    #[arg(long)]
    pub keep: bool,
    /// How to tell it.
    #[command(flatten)]
    pub telling: Telling,
}
