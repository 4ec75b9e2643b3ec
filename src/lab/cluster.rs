//! A lab whose hosts each run an agent, with certificates of one throw-away CA: what the demo, the end-to-end tests and the
//! benchmarks start from.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{CONFIG_IN_HOST, Host, Lab, LabError, LabOptions, Output};
use crate::model::HostId;
use crate::pki::{self, Validity};

/// Port of every agent.
const PORT: u16 = 7626;
/// Folder of certificates in a host.
const TLS_DIR: &str = "/etc/decamp/tls";

/// Hosts with agents. Dropping it closes the lab.
#[derive(Debug)]
pub struct Cluster {
    /// The lab.
    pub lab: Lab,
    _pki: tempfile::TempDir,
}

impl Cluster {
    /// Opens the lab, issues certificates, starts an agent in every host; each may send to each.
    ///
    /// # Errors
    /// The lab's, the certificates', an agent that does not start.
    pub fn open(options: &LabOptions, progress: &mut dyn FnMut(&str)) -> Result<Self, LabError> {
        Self::open_with(options, progress, |_| String::new())
    }

    /// The same with more configuration for each host (TOML, whole tables).
    ///
    /// # Errors
    /// As [`Cluster::open`].
    pub fn open_with(
        options: &LabOptions,
        progress: &mut dyn FnMut(&str),
        more: impl Fn(&str) -> String,
    ) -> Result<Self, LabError> {
        let mut lab = Lab::open(options, progress)?;
        let io = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| LabError::BadInput { what, why: error.to_string() }
        };
        let dir = tempfile::tempdir().map_err(io("a folder for certificates"))?;
        let bad = |error: pki::PkiError| LabError::BadInput {
            what: "certificates".to_owned(),
            why: error.to_string(),
        };
        let folder: PathBuf = dir.path().to_owned();
        pki::init(&folder, Validity::default(), false).map_err(bad)?;
        let peers: Vec<(String, Ipv4Addr)> = lab
            .hosts()
            .iter()
            .filter(|h| options.hosts.iter().any(|n| n == h.name()))
            .map(|h| (h.name().to_owned(), h.address()))
            .collect();
        for (name, _) in &peers {
            let host: HostId = name.as_str().try_into().map_err(|error: crate::model::id::BadName| {
                LabError::BadInput { what: format!("host name {name:?}"), why: error.to_string() }
            })?;
            let issued = pki::issue_host(&folder, &host, &[], Validity::default(), false).map_err(bad)?;
            for (from, to) in
                [(folder.join("ca.crt"), "ca.crt"), (issued.cert, "host.crt"), (issued.key, "host.key")]
            {
                let bytes = std::fs::read(&from).map_err(io("a certificate"))?;
                lab.write_file(name, &format!("{TLS_DIR}/{to}"), &bytes, 0o600)?;
            }
            let config = config(name, &peers) + &more(name);
            lab.start_agent(name, &config)?;
        }
        Ok(Self { lab, _pki: dir })
    }

    /// A host by name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        self.lab.host(name)
    }

    /// Runs `decamp ARGS` on a host.
    ///
    /// # Errors
    /// It cannot be run; its exit code is in the output.
    pub fn decamp(&self, host: &str, args: &[&str], deadline: Duration) -> Result<Output, LabError> {
        let argv: Vec<&str> = [super::BINARY_IN_HOST].into_iter().chain(args.iter().copied()).collect();
        self.lab.host(host)?.exec_with(&argv, b"", deadline)
    }

    /// The agent's log of a host.
    #[must_use]
    pub fn agent_log(&self, host: &str) -> String {
        let path = self.lab.state_dir().join(format!("agent-{host}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Where the configuration of an agent is, in its host.
    #[must_use]
    pub fn config_path(&self) -> &'static str {
        CONFIG_IN_HOST
    }
}

fn config(name: &str, all: &[(String, Ipv4Addr)]) -> String {
    let mut text = format!("host = {name:?}\n[network]\nbridge = \"br0\"\n");
    for (peer, address) in all.iter().filter(|(peer, _)| peer != name) {
        let address = SocketAddr::from((*address, PORT));
        text += &format!("[peers.{peer}]\naddress = \"{address}\"\nreceive = true\n");
    }
    text
}
