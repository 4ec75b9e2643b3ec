//! A bundle's config.json (OCI runtime specification), read as far as a migration needs it and kept verbatim otherwise.
//!
//! A configuration that comes from a peer is checked before it is written: it must not name host paths (hooks, namespaces of
//! other processes, exotic mounts) that the operator of this host did not choose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::RuntimeError;
use crate::rpc::v1::Reason;

/// config.json, whole.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
    value: Value,
}

/// One bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Mount point inside the container.
    pub destination: String,
    /// Host path.
    pub source: PathBuf,
    /// As written.
    pub options: Vec<String>,
}

/// What the destination changes in a configuration it received.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// Mount point → host path here. Every bind mount must be in it.
    pub bind_sources: BTreeMap<String, PathBuf>,
    /// Network namespace to join.
    pub network_namespace: Option<PathBuf>,
}

const PLAIN_MOUNTS: [&str; 7] = ["proc", "tmpfs", "devpts", "mqueue", "sysfs", "cgroup", "cgroup2"];

fn is_bind(mount: &Value) -> bool {
    let option = |o: &Value| matches!(o.as_str(), Some("bind" | "rbind"));
    mount["type"] == "bind" || mount["options"].as_array().is_some_and(|options| options.iter().any(option))
}

impl Bundle {
    /// Reads `<bundle>/config.json`.
    ///
    /// # Errors
    /// It cannot be read or is not JSON.
    pub fn read(bundle: &Path) -> Result<Self, RuntimeError> {
        let path = bundle.join("config.json");
        let bytes = std::fs::read(&path).map_err(RuntimeError::io("read", &path))?;
        Self::parse(&bytes, path)
    }

    /// From bytes that a peer sent.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn parse(bytes: &[u8], path: PathBuf) -> Result<Self, RuntimeError> {
        let value = serde_json::from_slice(bytes)
            .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
        Ok(Self { path, value })
    }

    /// As bytes, for the offer and for the destination's bundle.
    ///
    /// # Errors
    /// Never in practice: what was parsed can be printed.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RuntimeError> {
        serde_json::to_vec_pretty(&self.value)
            .map_err(|source| RuntimeError::Json { path: self.path.clone(), source })
    }

    /// Bind mounts in order.
    #[must_use]
    pub fn bind_mounts(&self) -> Vec<BindMount> {
        let mounts = self.value["mounts"].as_array().map_or(&[][..], Vec::as_slice);
        let strings = |v: &Value| {
            v.as_array().into_iter().flatten().filter_map(|o| o.as_str().map(str::to_owned)).collect()
        };
        mounts
            .iter()
            .filter(|mount| is_bind(mount))
            .map(|mount| BindMount {
                destination: mount["destination"].as_str().unwrap_or_default().to_owned(),
                source: PathBuf::from(mount["source"].as_str().unwrap_or_default()),
                options: strings(&mount["options"]),
            })
            .collect()
    }

    fn namespaces(&self) -> &[Value] {
        self.value["linux"]["namespaces"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Path of the network namespace that the container joined; `None` when it has one of its own making or the host's.
    #[must_use]
    pub fn network_namespace(&self) -> Option<PathBuf> {
        let network = self.namespaces().iter().find(|n| n["type"] == "network")?;
        network["path"].as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// Does it use the host's network?
    #[must_use]
    pub fn host_network(&self) -> bool {
        !self.namespaces().iter().any(|n| n["type"] == "network")
    }

    /// Kernel parameters that the container was created with (`linux.sysctl`). The runtime sets them at creation, not at a restore.
    #[must_use]
    pub fn sysctls(&self) -> Vec<(String, String)> {
        let all = self.value["linux"]["sysctl"].as_object().into_iter().flatten();
        all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// Does it have a terminal? CRIU can carry one only together with whoever holds the other end.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.value["process"]["terminal"].as_bool().unwrap_or(false)
    }

    /// Everything in this configuration that a peer must not choose for us.
    #[must_use]
    pub fn hostile(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |code: &str, what: String, remedy: &str| {
            reasons.push(Reason {
                code: code.to_owned(),
                what,
                evidence: "config.json of the offered container".to_owned(),
                remedy: remedy.to_owned(),
            });
        };
        if self.value["hooks"].as_object().is_some_and(|hooks| !hooks.is_empty()) {
            add(
                "config-hooks",
                "the container's configuration names hooks, programs that the runtime would run on this host"
                    .to_owned(),
                "remove \"hooks\" from the bundle, or move the container with the engine that set them",
            );
        }
        for namespace in self.namespaces() {
            let (kind, path) = (&namespace["type"], namespace["path"].as_str().unwrap_or_default());
            if !path.is_empty() && kind != "network" {
                add(
                    "namespace-joined",
                    format!("it joins the {kind} namespace of another process ({path})"),
                    "move the containers that share namespaces together (pods are not supported yet)",
                );
            }
        }
        for mount in self.value["mounts"].as_array().into_iter().flatten().filter(|mount| !is_bind(mount)) {
            let kind = mount["type"].as_str().unwrap_or_default();
            if !PLAIN_MOUNTS.contains(&kind) {
                let at = mount["destination"].as_str().unwrap_or_default();
                add(
                    "mount-type",
                    format!("it mounts a {kind:?} file system at {at}"),
                    "mount the file system on the host and bind it into the container",
                );
            }
        }
        reasons
    }

    /// The configuration for this host: root file system beside it, bind mounts and network from what this host chose.
    ///
    /// # Errors
    /// A bind mount without a choice.
    pub fn rewrite(mut self, rewrite: &Rewrite) -> Result<Self, RuntimeError> {
        let path = self.path.clone();
        let malformed = |what: String| RuntimeError::Malformed { path: path.clone(), what };
        let root = self.value.as_object_mut().ok_or_else(|| malformed("is not an object".to_owned()))?;
        let read_only = root.get("root").and_then(|r| r["readonly"].as_bool()).unwrap_or(false);
        root.insert("root".to_owned(), serde_json::json!({ "path": "rootfs", "readonly": read_only }));
        for mount in root.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
            if !is_bind(mount) {
                continue;
            }
            let at = mount["destination"].as_str().unwrap_or_default().to_owned();
            let source = rewrite
                .bind_sources
                .get(&at)
                .ok_or_else(|| malformed(format!("the bind mount at {at} has no source here")))?;
            mount["source"] = Value::String(source.to_string_lossy().into_owned());
        }
        let namespaces = root.get_mut("linux").and_then(|linux| linux.get_mut("namespaces"));
        for namespace in namespaces.and_then(Value::as_array_mut).into_iter().flatten() {
            if namespace["type"] != "network" {
                continue;
            }
            match (&rewrite.network_namespace, namespace.as_object_mut()) {
                (Some(chosen), Some(entry)) => {
                    entry.insert("path".to_owned(), Value::String(chosen.to_string_lossy().into_owned()));
                }
                (None, Some(entry)) => {
                    entry.remove("path");
                }
                (_, None) => return Err(malformed("a namespace is not an object".to_owned())),
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(text: &str) -> Bundle {
        Bundle::parse(text.as_bytes(), "config.json".into()).unwrap()
    }

    #[test]
    fn a_received_configuration_is_rewritten_for_this_host() {
        let given = bundle(
            r#"{"root":{"path":"/srv/secret","readonly":true},"process":{"args":["x"]},
               "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
                         {"destination":"/data","type":"bind","source":"/etc","options":["rbind"]}],
               "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/proc/1/ns/net"}]}}"#,
        );
        assert_eq!(given.bind_mounts()[0].source, PathBuf::from("/etc"));
        assert!(given.clone().rewrite(&Rewrite::default()).unwrap_err().to_string().contains("/data"));
        let rewrite = Rewrite {
            bind_sources: BTreeMap::from([("/data".to_owned(), "/var/lib/d/volumes/0".into())]),
            network_namespace: Some("/run/netns/ct".into()),
        };
        let new = given.rewrite(&rewrite).unwrap();
        let text = String::from_utf8(new.to_bytes().unwrap()).unwrap();
        assert!(!text.contains("/etc") && !text.contains("/srv") && !text.contains("/proc/1"), "{text}");
        assert_eq!(new.network_namespace(), Some("/run/netns/ct".into()));
        assert_eq!(new.value["root"]["readonly"], true);
        assert_eq!(new.value["process"]["args"][0], "x");
    }

    #[test]
    fn what_a_peer_must_not_choose_is_named() {
        let codes: Vec<String> = bundle(
            r#"{"hooks":{"prestart":[{"path":"/bin/sh"}]},"mounts":[{"destination":"/m","type":"ext4","source":"/dev/sda"}],
               "linux":{"namespaces":[{"type":"ipc","path":"/proc/1/ns/ipc"}]}}"#,
        )
        .hostile()
        .into_iter()
        .map(|reason| reason.code)
        .collect();
        assert_eq!(codes, ["config-hooks", "namespace-joined", "mount-type"]);
    }
}
