//! Which agent to talk to, and how to prove who asks.

use std::path::PathBuf;

use clap::Args;

use super::AgentAddress;

/// Where an agent listens for its local operator when nothing else is said.
const DEFAULT_AGENT: &str = "unix:/run/decamp/agent.sock";

/// Which agent to talk to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Agent")]
pub struct AgentOptions {
    /// The agent: unix:PATH, or HOST:PORT with the three --tls options
    #[arg(long, env = "DECAMP_AGENT", default_value = DEFAULT_AGENT, value_name = "WHERE", hide_env_values = true)]
    pub agent: AgentAddress,
    /// Certificate of the authority that signed the agent's certificate
    #[arg(long, env = "DECAMP_TLS_CA", value_name = "PEM", hide_env_values = true)]
    pub tls_ca: Option<PathBuf>,
    /// Certificate that names this operator
    #[arg(long, env = "DECAMP_TLS_CERT", value_name = "PEM", hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate; must be readable by its owner only
    #[arg(long, env = "DECAMP_TLS_KEY", value_name = "PEM", hide_env_values = true)]
    pub tls_key: Option<PathBuf>,
    /// Name in the agent's certificate, when it is not the HOST of --agent
    #[arg(long, env = "DECAMP_TLS_NAME", value_name = "NAME", hide_env_values = true)]
    pub tls_name: Option<String>,
}
