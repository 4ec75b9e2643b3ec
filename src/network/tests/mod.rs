//! Tests of this room in namespaces of their own: two hosts and a client, joined by a switch. Every place is a thread with its own network
//! and mount namespace and its own `/run`, so the machine's network is never touched and nothing survives the threads.

mod capture;
mod moves;
mod plan;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;

use super::netns;

pub(super) const V4: &str = "10.99.0.50";
pub(super) const V6: &str = "fd99::50";
pub(super) const MAC: &str = "02:00:0a:63:00:32";
pub(super) const PORT: u16 = 7777;

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// A thread with a network and a `/run` of its own.
pub(super) struct Place {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Where other processes find its network namespace.
    pub(super) netns: String,
}

impl Place {
    pub(super) fn new() -> Self {
        let (jobs, queue) = sync_channel::<Job>(1);
        let (tell, told) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("tests of this room run as root");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            while let Ok(job) = queue.recv() {
                job(&runtime);
            }
        });
        let tid = told.recv().expect("the place opens");
        let netns = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        let place = Self { jobs: Some(jobs), thread: Some(thread), netns };
        place.sh("ip link set lo up");
        place
    }

    /// Runs `work` there and waits.
    pub(super) fn run<T: Send + 'static>(&self, work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = sync_channel(1);
        let job: Job = Box::new(move |runtime| sender.send(runtime.block_on(work())).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        receiver.recv().expect("the work did not panic")
    }

    /// Runs a shell script there; gives its output, panics on failure.
    pub(super) fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(async move || {
            let output = Command::new("sh").args(["-euc", &script]).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{script}\n{errors}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Opens a namespace by its name there.
    pub(super) fn open(&self, name: &str) -> Arc<File> {
        let path = netns::path_of(name);
        self.run(async move || netns::open(&path).unwrap())
    }

    /// Asks the server at `address` who it is.
    pub(super) fn ask(&self, address: &str, timeout_ms: u64) -> io::Result<String> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(async move || {
            let timeout = Duration::from_millis(timeout_ms);
            let mut stream = TcpStream::connect_timeout(&address, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `work` on a thread inside a namespace and waits.
pub(super) fn inside<T: Send + 'static>(netns: &Arc<File>, work: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = netns.clone();
    let thread = std::thread::spawn(move || {
        netns::enter(&netns).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Tells everybody who connects who it is, on both families.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn new(netns: &Arc<File>, name: &'static str) -> Self {
        let listener = inside(netns, || TcpListener::bind(("::", PORT)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => drop(stream.write_all(name.as_bytes())),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Two hosts and a client on one switch. Hosts have a bridge `br0` with the uplink in it.
pub(super) struct World {
    pub(super) switch: Place,
    pub(super) a: Place,
    pub(super) b: Place,
    pub(super) client: Place,
}

impl World {
    pub(super) fn new() -> Self {
        let world = Self { switch: Place::new(), a: Place::new(), b: Place::new(), client: Place::new() };
        world.switch.sh("ip link add switch type bridge; ip link set switch up");
        for (name, place) in [("a", &world.a), ("b", &world.b), ("client", &world.client)] {
            world.switch.sh(&format!(
                "ip link add to-{name} type veth peer name up0 netns {}; ip link set to-{name} master switch up",
                place.netns
            ));
        }
        for (number, host) in [(1, &world.a), (2, &world.b)] {
            host.sh(&format!(
                "ip link add br0 type bridge; ip link set up0 master br0 up; ip link set br0 up
                 ip addr add 10.99.0.{number}/24 dev br0; ip addr add fd99::{number}/64 dev br0 nodad"
            ));
        }
        world
            .client
            .sh("ip link set up0 up; ip addr add 10.99.0.9/24 dev up0; ip addr add fd99::9/64 dev up0 nodad
             echo 0 > /proc/sys/net/ipv4/tcp_timestamps; echo 0 > /proc/sys/net/ipv4/tcp_window_scaling");
        world
    }

    /// Makes the container's network on host A the way an operator would, with ip(8).
    pub(super) fn container_on_a(&self) {
        self.a.sh(&format!(
            "ip netns add ct; ip link add veth-ct type veth peer name eth0 netns ct
             ip -n ct link set lo up; ip -n ct link set eth0 address {MAC} mtu 1400
             ip -n ct addr add {V4}/24 dev eth0; ip -n ct addr add 10.99.0.51/24 dev eth0
             ip -n ct addr add fd99::51/64 dev eth0 nodad; ip -n ct addr add {V6}/64 dev eth0 nodad
             ip -n ct link set eth0 up; ip link set veth-ct master br0 up
             ip -n ct route add default via 10.99.0.1; ip -n ct route add 192.0.2.0/24 via 10.99.0.2 dev eth0
             ip -n ct route add 198.51.100.7/32 dev eth0
             ip -n ct -6 route add default via fd99::1; ip -n ct -6 route add 2001:db8::/32 via fe80::1 dev eth0"
        ));
    }
}
