//! A decamp agent in a lab host: started with a configuration, waited for, killed.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::error::LabError;
use super::host::{Background, Host};
use super::process::last_lines;

/// Where an agent's control socket is, in the host.
pub const SOCKET_IN_HOST: &str = "/run/decamp/agent.sock";
/// Where an agent's configuration is, in the host.
pub const CONFIG_IN_HOST: &str = "/etc/decamp/agent.toml";
/// How long an agent may take until its control socket accepts.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// Starts the agent with the configuration that is in the host, and waits until it accepts.
pub(super) fn start(host: &Host) -> Result<Background, LabError> {
    // A socket file left by an agent that was killed says nothing about the new one.
    host.shell(&format!("rm -f {SOCKET_IN_HOST}; mkdir -p /run/decamp"))?;
    let argv = [super::entry::BINARY_IN_HOST, "agent", "--config", CONFIG_IN_HOST];
    let mut agent = host.spawn(&argv, &[], &format!("agent-{}.log", host.name()))?;
    let socket = host.outer_path(SOCKET_IN_HOST);
    let until = Instant::now() + READY_DEADLINE;
    let failed = |agent: &Background, status: String| LabError::Failed {
        what: format!("the agent on {}", host.name()),
        status,
        tail: last_lines(&std::fs::read(agent.log()).unwrap_or_default(), 20),
    };
    loop {
        if UnixStream::connect(&socket).is_ok() {
            return Ok(agent);
        }
        if let Some(code) = agent.ended()? {
            return Err(failed(&agent, format!("exit code {code} before it was ready")));
        }
        if Instant::now() >= until {
            let waited = humantime::format_duration(READY_DEADLINE);
            return Err(failed(&agent, format!("no control socket at {SOCKET_IN_HOST} after {waited}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
