//! A container on a lab host: bundle, overlay root, own network namespace, started with `runc run --detach`.
//!
//! The configuration is what CRIU can dump on every kind of machine: no seccomp profile and no rlimits (changing them at
//! restore needs CAP_SYS_RESOURCE), no /sys/fs/cgroup mount, standard streams at /dev/null (a file of the host outside the
//! container's mounts cannot be found again at restore).
//!
//! ```text
//! /var/lib/decamp-lab-containers/ID/  config.json  rootfs/ (overlay)  upper/  work/  volumes/NAME/
//! ```

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::error::LabError;
use super::host::Host;
use super::mounts::{BASE_IN_HOST, CONTAINERS_DIR, WORKLOADS_IN_HOST};
use super::network::has_ipv6;
use crate::model::ContainerId;

/// What Docker grants by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A folder or file of the host inside the container.
#[derive(Debug, Clone)]
pub struct Volume {
    /// On the host. Without a leading slash: a folder of that name below the bundle's `volumes`, made if it is not there.
    pub source: String,
    /// In the container, absolute.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Its id; runc's, and the name of its folder.
    pub id: ContainerId,
    /// The command.
    pub args: Vec<String>,
    /// `NAME=value`, beside PATH and HOME.
    pub env: Vec<String>,
    /// Address in the lab's network; `None`: a network namespace with only a loopback interface.
    pub address: Option<Ipv4Addr>,
    /// Bind mounts.
    pub volumes: Vec<Volume>,
    /// Where a tmpfs is mounted.
    pub tmpfs: Vec<String>,
    /// More capabilities than Docker's default.
    pub capabilities: Vec<String>,
    /// cgroup limit of memory, bytes.
    pub memory_max: Option<u64>,
}

impl ContainerSpec {
    /// A container without network, volumes and limits.
    #[must_use]
    pub fn new<S: AsRef<str>>(id: ContainerId, args: &[S]) -> Self {
        Self {
            id,
            args: args.iter().map(|a| a.as_ref().to_owned()).collect(),
            env: Vec::new(),
            address: None,
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            capabilities: Vec::new(),
            memory_max: None,
        }
    }

    /// Redis without persistence, reachable at `address`, port 6379. DEBUG is allowed, for its DIGEST.
    #[must_use]
    pub fn redis(id: ContainerId, address: Ipv4Addr) -> Self {
        let args = [
            "redis-server",
            "--bind",
            "* -::*",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--dir",
            "/data",
            "--enable-debug-command",
            "yes",
            "--logfile",
            "/data/redis.log",
        ];
        Self::new(id, &args).address(address).volume("data", "/data")
    }

    /// One of the programs in the lab's workloads folder, with a volume at /vol and the programs themselves at /workloads.
    #[must_use]
    pub fn workload(id: ContainerId, program: &str, args: &[&str]) -> Self {
        let path = format!("/workloads/{program}");
        let argv: Vec<&str> = ["python3", "-u", &path].into_iter().chain(args.iter().copied()).collect();
        let mut spec = Self::new(id, &argv).volume("vol", "/vol");
        spec.volumes.push(Volume {
            source: WORKLOADS_IN_HOST.into(),
            destination: "/workloads".into(),
            read_only: true,
        });
        spec
    }

    /// Gives it an address in the lab's network.
    #[must_use]
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }

    /// Adds a writable bind mount; see [`Volume::source`].
    #[must_use]
    pub fn volume(mut self, source: &str, destination: &str) -> Self {
        self.volumes.push(Volume {
            source: source.into(),
            destination: destination.into(),
            read_only: false,
        });
        self
    }

    /// Adds a tmpfs.
    #[must_use]
    pub fn tmpfs(mut self, destination: &str) -> Self {
        self.tmpfs.push(destination.into());
        self
    }

    /// MAC address that goes with the address, as Docker derives it.
    #[must_use]
    pub fn mac(&self) -> Option<String> {
        let [a, b, c, d] = self.address?.octets();
        Some(format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))
    }

    /// Its folder on the host.
    #[must_use]
    pub fn bundle(&self) -> String {
        bundle(&self.id)
    }

    fn source(&self, volume: &Volume) -> String {
        if volume.source.starts_with('/') {
            volume.source.clone()
        } else {
            format!("{}/volumes/{}", self.bundle(), volume.source)
        }
    }

    /// The OCI runtime configuration (runtime-spec `config.md`, `config-linux.md`).
    #[must_use]
    pub fn config_json(&self) -> Value {
        let mut capabilities: Vec<&str> = CAPABILITIES.to_vec();
        capabilities.extend(self.capabilities.iter().map(String::as_str));
        let mut env = vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "HOME=/root".to_owned(),
            "LANG=C.UTF-8".to_owned(),
        ];
        env.extend(self.env.iter().cloned());
        let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        if let Some(limit) = self.memory_max {
            resources["memory"] = json!({ "limit": limit });
        }
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": self.args,
                "env": env,
                "cwd": "/",
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
                "noNewPrivileges": false,
            },
            "root": { "path": "rootfs", "readonly": false },
            "hostname": self.id.as_str(),
            "mounts": self.mounts(),
            "linux": {
                "resources": resources,
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network", "path": format!("/run/netns/{}", netns(&self.id)) },
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
        let guarded = ["nosuid", "noexec", "nodev"];
        let mut all = vec![
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &guarded),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ];
        for at in &self.tmpfs {
            all.push(mount(at, "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777"]));
        }
        for volume in &self.volumes {
            let access = if volume.read_only { "ro" } else { "rw" };
            all.push(mount(&volume.destination, "bind", &self.source(volume), &["rbind", access]));
        }
        all
    }
}

/// A container's folder on its host.
#[must_use]
pub fn bundle(id: &ContainerId) -> String {
    format!("{CONTAINERS_DIR}/{id}")
}

/// Name of a container's network namespace.
#[must_use]
pub fn netns(id: &ContainerId) -> String {
    format!("ct-{id}")
}

/// The host's end of a container's veth: an interface name has at most 15 bytes, an id many more.
#[must_use]
pub fn veth(id: &ContainerId) -> String {
    format!("v{}", &blake3::hash(id.as_str().as_bytes()).to_hex()[..10])
}

impl Host {
    /// Starts a container.
    ///
    /// # Errors
    /// What the host or runc said. What was made until then is removed.
    pub fn run_container(&self, spec: &ContainerSpec) -> Result<(), LabError> {
        run(self, spec).inspect_err(|_| {
            // The cause is reported; the removal's own failure would only hide it.
            let _ = delete(self, &spec.id);
        })
    }

    /// Makes bundle, root file system and network of a container, and starts nothing: for a restore by hand.
    ///
    /// # Errors
    /// What the host said. What was made until then is removed.
    pub fn prepare_container(&self, spec: &ContainerSpec) -> Result<(), LabError> {
        prepare(self, spec).inspect_err(|_| {
            // As above.
            let _ = delete(self, &spec.id);
        })
    }

    /// Removes a container, with its folder and network. It need not be there.
    ///
    /// # Errors
    /// When the host is down or something stays busy.
    pub fn delete_container(&self, id: &ContainerId) -> Result<(), LabError> {
        delete(self, id)
    }
}

/// Makes the network namespace of a container on a host.
fn make_network(host: &Host, spec: &ContainerSpec) -> Result<(), LabError> {
    let (ns, veth) = (netns(&spec.id), veth(&spec.id));
    let mut script = format!("ip netns add {ns}\n");
    let mut inside = String::from("link set lo up\n");
    if let (Some(address), Some(mac)) = (spec.address, spec.mac()) {
        let outer = mac.replacen("02:00", "02:01", 1);
        // Infallible, all of them: writing to a String.
        let _ = writeln!(
            script,
            "ip link add {veth} address {outer} type veth peer name eth0 address {mac} netns {ns}"
        );
        let _ = writeln!(script, "ip link set {veth} master br0 up");
        let _ = writeln!(inside, "address add {address}/24 broadcast 10.77.0.255 dev eth0");
        if has_ipv6() {
            let six = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 1, u16::from(address.octets()[3]));
            let _ = writeln!(inside, "address add {six}/64 dev eth0 nodad");
        }
        inside.push_str("link set eth0 up\n");
    }
    let _ = writeln!(script, "ip -n {ns} -batch - <<'END'\n{inside}END");
    host.shell(&script)?;
    Ok(())
}

/// Removes the network namespace. The veth goes first: a namespace is torn down later, and its name would stay taken.
fn remove_network(host: &Host, id: &ContainerId) -> Result<(), LabError> {
    let (ns, veth) = (netns(id), veth(id));
    host.shell(&format!("! ip link show {veth} >/dev/null 2>&1 || ip link del {veth}; ! test -e /run/netns/{ns} || ip netns del {ns}"))?;
    Ok(())
}

fn prepare(host: &Host, spec: &ContainerSpec) -> Result<(), LabError> {
    if let Some(address) = spec.address {
        let usable =
            address.octets()[..3] == [10, 77, 0] && address.octets()[3] > 40 && address.octets()[3] < 255;
        if !usable {
            return Err(LabError::BadInput {
                what: format!("address {} of container {}", IpAddr::from(address), spec.id),
                why: "containers of a lab have 10.77.0.41 to 10.77.0.254".into(),
            });
        }
    }
    let bundle = spec.bundle();
    let mut script =
        format!("mkdir -p {CONTAINERS_DIR}\nmkdir {bundle} {bundle}/rootfs {bundle}/upper {bundle}/work\n");
    for volume in spec.volumes.iter().filter(|v| !v.source.starts_with('/')) {
        let _ = writeln!(script, "mkdir -p '{}'", spec.source(volume).replace('\'', ""));
    }
    let _ = writeln!(
        script,
        "mount -t overlay overlay -o lowerdir={BASE_IN_HOST},upperdir={bundle}/upper,workdir={bundle}/work {bundle}/rootfs"
    );
    host.shell(&script)?;
    let config = serde_json::to_vec_pretty(&spec.config_json())
        .map_err(|source| LabError::State { path: "config.json".into(), source })?;
    host.write_file(&format!("{bundle}/config.json"), &config, 0o644)?;
    make_network(host, spec)
}

fn run(host: &Host, spec: &ContainerSpec) -> Result<(), LabError> {
    prepare(host, spec)?;
    let bundle = spec.bundle();
    // runc's own complaints go to its log: its standard error would become the container's.
    let script = "runc --log \"$1/runc.log\" run --detach --bundle \"$1\" \"$2\" </dev/null >/dev/null 2>&1 \
                  || { cat \"$1/runc.log\" >&2; exit 1; }";
    host.exec(&["sh", "-c", script, "run", &bundle, spec.id.as_str()])?;
    Ok(())
}

/// Kills and removes a container with all that [`run`] made. What is not there is not an error.
fn delete(host: &Host, id: &ContainerId) -> Result<(), LabError> {
    let bundle = bundle(id);
    let script = "runc delete --force \"$2\" >/dev/null 2>&1 || true\n\
                  ! mountpoint -q \"$1/rootfs\" || umount \"$1/rootfs\"\n\
                  rm -rf \"$1\"";
    host.exec(&["sh", "-ec", script, "delete", &bundle, id.as_str()])?;
    remove_network(host, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_one_that_criu_can_dump() {
        let id = ContainerId::try_from("redis-1").unwrap();
        let spec = ContainerSpec::redis(id.clone(), Ipv4Addr::new(10, 77, 0, 50)).tmpfs("/scratch");
        let config = spec.config_json();
        assert!(config["linux"].get("seccomp").is_none() && config["process"].get("rlimits").is_none());
        let at =
            |d: &str| config["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == d).cloned();
        assert!(at("/sys/fs/cgroup").is_none());
        assert_eq!(at("/data").unwrap()["source"], "/var/lib/decamp-lab-containers/redis-1/volumes/data");
        assert_eq!(at("/scratch").unwrap()["type"], "tmpfs");
        assert_eq!(spec.mac().unwrap(), "02:00:0a:4d:00:32");
        assert!(veth(&id).len() <= 15);
    }
}
