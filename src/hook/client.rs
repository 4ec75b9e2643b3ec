//! The hook's side: a short-lived process inside CRIU's critical path, so no runtime, no configuration, no logging.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::{Action, Greeting};
use crate::model::HOOK_NAME;

/// Environment variable that names the agent's hook socket; inherited through runc and CRIU.
pub const ENV_SOCKET: &str = "DECAMP_HOOK_SOCKET";
/// Environment variable with the secret of this dump or restore.
pub const ENV_TOKEN: &str = "DECAMP_HOOK_TOKEN";

/// Was the program started under the hook's name? CRIU passes no arguments, so the name is all there is.
#[must_use]
pub fn called_as_hook(program: Option<&std::ffi::OsStr>) -> bool {
    program
        .and_then(|program| std::path::Path::new(program).file_name())
        .is_some_and(|name| name == HOOK_NAME)
}

/// The whole program. Success lets CRIU go on.
#[must_use]
pub fn main() -> ExitCode {
    let word = std::env::var("CRTOOLS_SCRIPT_ACTION").unwrap_or_default();
    // CRIU calls for every point it has; those that nobody waits for cost only the start of this process.
    let Some(action) = Action::parse(&word) else { return ExitCode::SUCCESS };
    match ask(action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // CRIU's standard error ends in the runtime's log.
            eprintln!("decamp-hook: {word}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn ask(action: Action) -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let socket = variable(ENV_SOCKET)?;
    let init_pid = std::env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok()).unwrap_or(0);
    let greeting = Greeting { token: variable(ENV_TOKEN)?, action, init_pid };
    let mut stream =
        UnixStream::connect(&socket).map_err(|e| format!("cannot reach the agent at {socket}: {e}"))?;
    let mut line = serde_json::to_string(&greeting).map_err(|e| e.to_string())?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(|e| format!("cannot ask the agent: {e}"))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|e| format!("the agent did not answer: {e}"))?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err("the agent went away without an answer".to_owned()),
        refusal => Err(refusal.to_owned()),
    }
}
