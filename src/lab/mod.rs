//! Simulated hosts on one machine: for `decamp demo`, `decamp lab`, end-to-end tests and benchmarks.
//!
//! A host is a set of namespaces (mount, pid, net, uts, ipc, cgroup) over a shared, read-only Debian root file system, with
//! its own PID 1, its own cgroups, /run, /var/lib/decamp and so on. Hosts share a kernel, so page tracking, CRIU and the
//! network stack are the real ones; what is simulated is only that they are two machines.
//!
//! ```text
//!            building ──▶ open ─────────── close, drop ────────────▶ nothing is left
//!                          │ └─ Ctrl-C, SIGKILL of the owner ──▶ the kernel ends every process, mount, interface of
//!                          │                                     the hosts; their launchers remove the cgroups
//!                          └─── launchers killed too ──▶ `decamp lab down` removes what is left, found by name
//! ```
//! Must never change the outer machine: no mount, interface, address, rule or sysctl outside the lab's own namespaces; no
//! cgroup but those whose name begins with [`cgroup::PREFIX`]; no file but in [`rootfs::directory`] and [`STATE_DIR`].

mod agent;
pub mod cgroup;
mod cluster;
pub mod command;
mod container;
mod entry;
mod error;
mod host;
mod mounts;
mod network;
mod process;
pub mod rootfs;
mod state;
mod workloads;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

pub use agent::{CONFIG_IN_HOST, SOCKET_IN_HOST};
pub use cluster::Cluster;
pub use container::{ContainerSpec, Volume, bundle, netns, veth};
pub use entry::{BINARY_IN_HOST, entry};
pub use error::LabError;
pub use host::{Background, EXEC_DEADLINE, Host};
pub use mounts::{BASE_IN_HOST, CONTAINERS_DIR, WORKLOADS_IN_HOST};
pub use network::HOSTS_MAX;
pub use process::{OUTPUT_KEPT_MAX, Output, last_lines};
pub use state::{STATE_DIR, Status, attach, down, names, status};

use crate::model::ContainerId;
use entry::{OpenSpec, Opened};
use error::Doing;
use host::Identity;
use mounts::Places;
use process::wait_until;
use state::State;

/// Name of the host for outside clients.
pub const CLIENT: &str = "client";
/// Name of the namespace with the bridge that joins the hosts; not a host for use.
const HUB: &str = "hub";
/// How long a host may take to go.
const CLOSE_DEADLINE: Duration = Duration::from_secs(15);

/// What lab to open.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Its name; labs with different names do not meet.
    pub name: String,
    /// Its hosts, in the order of their addresses from 10.77.0.10.
    pub hosts: Vec<String>,
    /// Speed of each host's link, bits per second each way; `None`: as fast as memory.
    pub rate_bits: Option<u64>,
    /// The decamp binary: run on this machine for the lab's helpers, and seen in every host at [`BINARY_IN_HOST`].
    pub decamp: PathBuf,
}

impl LabOptions {
    /// Two hosts, `node-a` and `node-b`, without a rate limit; the binary is this process's own.
    ///
    /// # Errors
    /// When the kernel does not say what this process's binary is.
    pub fn new(name: &str) -> Result<Self, LabError> {
        Ok(Self {
            name: name.to_owned(),
            hosts: vec!["node-a".into(), "node-b".into()],
            rate_bits: None,
            decamp: std::env::current_exe().doing(|| "find this process's binary")?,
        })
    }

    fn check(&self) -> Result<(), LabError> {
        let uid = nix::unistd::geteuid();
        if !uid.is_root() {
            return Err(LabError::NotRoot { uid: uid.as_raw() });
        }
        state::check_name("lab name", &self.name)?;
        if self.hosts.is_empty() || self.hosts.len() > usize::from(HOSTS_MAX) {
            let what = format!("a lab of {} hosts", self.hosts.len());
            return Err(LabError::BadInput { what, why: format!("it has 1 to {HOSTS_MAX}") });
        }
        for (at, name) in self.hosts.iter().enumerate() {
            state::check_name("host name", name)?;
            if name == CLIENT || name == HUB || self.hosts[..at].contains(name) {
                let what = format!("host name {name:?}");
                return Err(LabError::BadInput { what, why: "it is taken".into() });
            }
        }
        Ok(())
    }
}

/// An open lab. Dropping it closes it.
#[derive(Debug)]
pub struct Lab {
    state: State,
    launchers: Vec<Child>,
    agents: HashMap<String, Background>,
    closed: bool,
}

impl Lab {
    /// Opens a lab; builds the root file system first if this machine has none. `progress` gets a line now and then.
    ///
    /// # Errors
    /// When not root, the name is held by another lab, the root file system cannot be built, or the kernel refuses something.
    /// Nothing is left behind then.
    pub fn open(options: &LabOptions, progress: &mut dyn FnMut(&str)) -> Result<Self, LabError> {
        options.check()?;
        let trees = rootfs::ensure(&options.decamp, progress)?;
        let state = State::create(&options.name)?;
        let mut lab = Self { state, launchers: Vec::new(), agents: HashMap::new(), closed: false };
        let octets = network::FIRST_OCTET..;
        let mut members: Vec<(&str, u8)> = vec![(HUB, 0), (CLIENT, network::CLIENT_OCTET)];
        members.extend(options.hosts.iter().map(String::as_str).zip(octets));
        let hosts_file = hosts_file(&members);
        let workloads = lab.state.dir.join("workloads");
        workloads::write(&workloads)?;
        for (name, octet) in members {
            let staging = lab.state.staging(name)?;
            let places = Places {
                rootfs: trees.rootfs.clone(),
                base: trees.base.clone(),
                decamp: options.decamp.clone(),
                workloads: workloads.clone(),
                staging,
                hosts_file: hosts_file.clone(),
            };
            let host = lab.launch(name, octet, places)?;
            if name == HUB {
                network::make_hub(&host)?;
                lab.state.file.hub = Some(host);
            } else {
                network::join(lab.hub()?, &host, options.rate_bits)?;
                lab.state.file.hosts.push(host);
            }
            lab.state.save()?;
        }
        network::wait_until_joined(&lab.state.file.hosts)?;
        progress(&format!("lab {}: {} hosts are up", options.name, lab.state.file.hosts.len()));
        Ok(lab)
    }

    fn launch(&mut self, name: &str, octet: u8, places: Places) -> Result<Host, LabError> {
        let failed = |why: String| LabError::HostFailed { host: name.to_owned(), why };
        let decamp = places.decamp.clone();
        let spec = OpenSpec { lab: self.state.file.lab.clone(), host: name.to_owned(), places };
        let log = self.state.create_log(&format!("host-{name}.log"))?;
        let mut child = entry::helper(&decamp, "open", &spec)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .doing(|| format!("start {}", decamp.display()))?;
        let answer = child.stdout.take().map(|out| {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).map(|_| line)
        });
        let launcher = i32::try_from(child.id()).ok().and_then(Identity::of);
        self.launchers.push(child);
        let line = answer.transpose().doing(|| format!("hear from host {name}"))?.unwrap_or_default();
        if line.is_empty() {
            return Err(failed(self.state.log_tail(&format!("host-{name}.log"))));
        }
        let opened: Opened = serde_json::from_str(&line).map_err(|e| failed(e.to_string()))?;
        if let Some(why) = opened.error {
            return Err(failed(why));
        }
        let gone = || failed("it ended at once".into());
        Ok(Host {
            lab: self.state.file.lab.clone(),
            name: name.to_owned(),
            octet,
            init: Identity::of(opened.init_pid).ok_or_else(gone)?,
            launcher: launcher.ok_or_else(gone)?,
            cgroups: opened.cgroups,
            decamp,
            state: self.state.dir.clone(),
        })
    }

    /// Marks this process as one that closes the lab on SIGTERM.
    fn supervise(&mut self) -> Result<(), LabError> {
        self.state.file.supervised = true;
        self.state.save()
    }

    fn hub(&self) -> Result<&Host, LabError> {
        let lab = || self.state.file.lab.clone();
        self.state.file.hub.as_ref().ok_or_else(|| LabError::HostDown { lab: lab(), host: HUB.into() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.file.lab
    }

    /// Where logs are, on this machine.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state.dir
    }

    /// The hosts for containers, without the client.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        self.state.file.hosts.iter().filter(|h| h.name != CLIENT).cloned().collect()
    }

    /// One host, or the client, by name.
    ///
    /// # Errors
    /// [`LabError::NoSuchHost`].
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        self.state.file.host(name)
    }

    /// The host for outside clients.
    ///
    /// # Errors
    /// [`LabError::NoSuchHost`], if it could not be opened.
    pub fn client(&self) -> Result<Host, LabError> {
        self.host(CLIENT)
    }

    /// Runs a command on a host; see [`Host::exec`].
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn exec<S: AsRef<str>>(&self, host: &str, argv: &[S]) -> Result<String, LabError> {
        self.host(host)?.exec(argv)
    }

    /// Starts a command on a host in the background, logging to `log` in [`Lab::state_dir`].
    ///
    /// # Errors
    /// As [`Host::spawn`].
    pub fn spawn<S: AsRef<str>>(&self, host: &str, argv: &[S], log: &str) -> Result<Background, LabError> {
        self.host(host)?.spawn(argv, &[], log)
    }

    /// Writes a file on a host; see [`Host::write_file`].
    ///
    /// # Errors
    /// As [`Host::write_file`].
    pub fn write_file(&self, host: &str, path: &str, bytes: &[u8], mode: u32) -> Result<(), LabError> {
        self.host(host)?.write_file(path, bytes, mode)
    }

    /// Starts a container on a host.
    ///
    /// # Errors
    /// What the host or runc said. What was made until then is removed.
    pub fn run_container(&self, host: &str, spec: &ContainerSpec) -> Result<(), LabError> {
        self.host(host)?.run_container(spec)
    }

    /// Removes a container from a host, with its folder and network. It need not be there.
    ///
    /// # Errors
    /// When the host is down or something stays busy.
    pub fn delete_container(&self, host: &str, id: &ContainerId) -> Result<(), LabError> {
        self.host(host)?.delete_container(id)
    }

    /// Starts the agent of a host with this configuration and waits until its control socket accepts.
    ///
    /// # Errors
    /// With the last lines of its log when it ends or is not ready in time.
    pub fn start_agent(&mut self, host: &str, config_toml: &str) -> Result<(), LabError> {
        self.write_file(host, CONFIG_IN_HOST, config_toml.as_bytes(), 0o600)?;
        self.restart_agent(host)
    }

    /// Kills the agent of a host, if there is one, and starts it again with the configuration it had.
    ///
    /// # Errors
    /// As [`Lab::start_agent`].
    pub fn restart_agent(&mut self, host: &str) -> Result<(), LabError> {
        self.agents.remove(host);
        let started = agent::start(&self.host(host)?)?;
        self.agents.insert(host.to_owned(), started);
        Ok(())
    }

    /// Sends a signal to the agent of a host; with SIGKILL or SIGTERM, waits until it is gone.
    ///
    /// # Errors
    /// [`LabError::Deadline`] when it does not end within 30 seconds of SIGTERM; it is killed then.
    pub fn kill_agent(&mut self, host: &str, signal: Signal) -> Result<(), LabError> {
        let Some(agent) = self.agents.get_mut(host) else { return Ok(()) };
        agent.signal(signal);
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            agent.wait(Duration::from_secs(30))?;
            self.agents.remove(host);
        }
        Ok(())
    }

    /// Pid of a host's agent as this machine numbers it.
    #[must_use]
    pub fn agent_pid(&self, host: &str) -> Option<i32> {
        self.agents.get(host).map(Background::pid)
    }

    /// Cuts a host's link to the others, or mends it.
    ///
    /// # Errors
    /// When the host is not known.
    pub fn set_link(&self, host: &str, up: bool) -> Result<(), LabError> {
        network::set_link(self.hub()?, &self.host(host)?, up)
    }

    /// Changes the speed of a host's link, bits per second each way; `None`: no limit.
    ///
    /// # Errors
    /// When the host is not known or the rate is not one that the kernel takes.
    pub fn set_rate(&self, host: &str, rate_bits: Option<u64>) -> Result<(), LabError> {
        network::set_rate(self.hub()?, &self.host(host)?, rate_bits)
    }

    /// Closes the lab: every process, mount, interface and cgroup of it is gone afterwards.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn close(mut self) -> Result<(), LabError> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<(), LabError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.agents.clear();
        for launcher in &mut self.launchers {
            // The end of this pipe is what a launcher waits for.
            drop(launcher.stdin.take());
        }
        let until = Instant::now() + CLOSE_DEADLINE;
        for launcher in &mut self.launchers {
            wait_until(launcher, until).doing(|| "wait for a host to go")?;
        }
        self.state.sweep()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(e) = self.tear_down() {
            tracing::error!(error = %error::chain(&e), lab = self.name(), "the lab was not closed cleanly");
        }
    }
}

fn hosts_file(members: &[(&str, u8)]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for (name, octet) in members.iter().filter(|(name, _)| *name != HUB) {
        text.push_str(&format!("{} {name}\n", Ipv4Addr::new(10, 77, 0, *octet)));
    }
    text
}
