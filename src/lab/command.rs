//! `decamp lab up | exec | status | down` for people; a thin layer over the rest of this room.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use super::error::{Doing, LabError};
use super::process::{last_lines, wait_until};
use super::{Lab, LabOptions, Status, down, names, state, status};

/// Lab name when none is given.
pub const NAME_DEFAULT: &str = "lab";
/// How long a lab in the background may take to come up, its root file system included.
const DETACH_DEADLINE: Duration = Duration::from_secs(40 * 60);

/// `decamp lab …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum LabCommand {
    /// Build the root file system of simulated hosts, if this machine has none yet, and check it
    Build,
    /// Open a lab of simulated hosts on this machine; it closes at Ctrl-C
    Up {
        /// Name of the lab
        #[arg(long, default_value = NAME_DEFAULT)]
        name: String,
        /// Hosts, separated by commas
        #[arg(long, value_delimiter = ',', default_value = "node-a,node-b")]
        hosts: Vec<String>,
        /// Speed of each host's link in Mbit/s, each way [default: no limit]
        #[arg(long, value_name = "MBIT")]
        rate: Option<u64>,
        /// Return when the lab is up and keep it in the background until `decamp lab down`
        #[arg(long)]
        detach: bool,
    },
    /// Run a command on a host of an open lab
    Exec {
        /// Name of the lab
        #[arg(long, default_value = NAME_DEFAULT)]
        name: String,
        /// Which host; `client` is the one for outside clients
        host: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the labs of this machine and their hosts
    Status,
    /// Close a lab and remove whatever is left of it, also after a crash
    Down {
        /// Name of the lab
        #[arg(long, default_value = NAME_DEFAULT)]
        name: String,
        /// All labs of this machine
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
}

impl LabCommand {
    /// Does it; returns the exit code. `print` gets lines for standard output, `progress` those about what is going on.
    ///
    /// # Errors
    /// Whatever failed, for the caller to print.
    pub fn run(self, print: &mut dyn FnMut(&str), progress: &mut dyn FnMut(&str)) -> Result<i32, LabError> {
        match self {
            Self::Build => {
                let binary = std::env::current_exe().doing(|| "find this process's binary")?;
                let trees = super::rootfs::ensure(&binary, progress)?;
                print(&format!("hosts       {}", trees.rootfs.display()));
                print(&format!("containers  {}", trees.base.display()));
                Ok(0)
            }
            Self::Up { name, hosts, rate, detach } => {
                let mut options = LabOptions::new(&name)?;
                options.hosts = hosts;
                options.rate_bits = rate.map(|mbit| mbit.saturating_mul(1_000_000));
                if detach { up_detached(&options, print) } else { up(&options, print, progress) }?;
                Ok(0)
            }
            Self::Exec { name, host, command } => state::attach(&name, &host)?.exec_attached(&command),
            Self::Status => {
                for name in names()? {
                    match status(&name) {
                        Ok(status) => show(&status, print),
                        Err(_) => {
                            print(&format!("{name}  left over: `decamp lab down --name {name}` removes it"))
                        }
                    }
                }
                Ok(0)
            }
            Self::Down { name, all } => {
                let names = if all { names()? } else { vec![name] };
                names.iter().try_for_each(|name| down(name))?;
                Ok(0)
            }
        }
    }
}

fn show(status: &Status, print: &mut dyn FnMut(&str)) {
    match status.owner {
        Some(pid) => print(&format!("{}  open, held by process {pid}", status.name)),
        None => print(&format!("{0}  left over: `decamp lab down --name {0}` removes it", status.name)),
    }
    for (host, alive) in &status.hosts {
        let state = if *alive { "up" } else { "down" };
        print(&format!("  {:12} {:12} {state:5} pid {}", host.name(), host.address(), host.init_pid()));
    }
}

/// Opens a lab and holds it until SIGINT, SIGTERM or SIGHUP.
fn up(
    options: &LabOptions,
    print: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(&str),
) -> Result<(), LabError> {
    // While the root file system is built, Ctrl-C ends this process and the build with it.
    super::rootfs::ensure(&options.decamp, progress)?;
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ends.add(signal);
    }
    // From here on there is something to remove. Helpers start with every signal unblocked (`entry`).
    ends.thread_block().doing(|| "hold back Ctrl-C")?;
    let mut lab = Lab::open(options, progress)?;
    lab.supervise()?;
    show(&status(lab.name())?, print);
    print(&format!(
        "run `decamp lab exec --name {0} HOST -- COMMAND`; Ctrl-C or `decamp lab down --name {0}` ends it",
        lab.name()
    ));
    ends.wait().doing(|| "wait for Ctrl-C")?;
    lab.close()
}

/// Starts `decamp lab up` in the background and waits until it holds the lab.
fn up_detached(options: &LabOptions, print: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    state::check_name("lab name", &options.name)?;
    let log_path =
        std::env::temp_dir().join(format!("decamp-lab-{}.{}.log", options.name, std::process::id()));
    let log = std::fs::File::create(&log_path).doing(|| format!("create {}", log_path.display()))?;
    let err = log.try_clone().doing(|| format!("open {}", log_path.display()))?;
    let mut command = Command::new("setsid");
    command.arg(&options.decamp).args([
        "lab",
        "up",
        "--name",
        &options.name,
        "--hosts",
        &options.hosts.join(","),
    ]);
    if let Some(rate) = options.rate_bits {
        command.args(["--rate", &(rate / 1_000_000).to_string()]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(log).stderr(err).spawn().doing(|| "start setsid")?;
    let until = Instant::now() + DETACH_DEADLINE;
    let outcome = loop {
        let owner = i32::try_from(child.id()).ok();
        match status(&options.name) {
            Ok(status) if status.owner == owner && state::is_supervised(&options.name) => break Ok(status),
            _ => {}
        }
        let left = Instant::now() >= until;
        if left || child.try_wait().doing(|| "look after the lab's process")?.is_some() {
            wait_until(&mut child, Instant::now()).doing(|| "stop the lab's process")?;
            let tail = last_lines(&std::fs::read(&log_path).unwrap_or_default(), 12);
            break Err(LabError::Failed {
                what: "opening the lab in the background".into(),
                status: "an error".into(),
                tail,
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // Its content was only for the error.
    let _ = std::fs::remove_file(&log_path);
    show(&outcome?, print);
    Ok(())
}
