//! The runtime and CRIU, started before the images are there. Starting takes as long as a small restore itself, and nothing of it
//! depends on the container's state: it happens while the source dumps.
//!
//! ```text
//! Prewarm ─▶ config.json, descriptors.json ─▶ runc ─▶ CRIU ─▶ reads the inventory: waits at the gate
//! images, pages, files complete ─▶ overlay mounted, put under the runtime's root ─▶ gate open ─▶ CRIU restores
//! ```
//! The runtime begins with a bare root file system: an overlay must not be mounted while files are still received into its
//! layer (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems"). A root file system that is a plain
//! tree is received where the runtime would make mount points in it, so such a container's restore is not started early.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::gate::{Gate, INVENTORY};
use super::super::scratch::Setup;
use super::super::{Host, MigrationError};
use super::preflight::Plan;
use super::restore::{Arriving, Restoring};
use crate::criu::{Lock, TcpPolicy};
use crate::images::inventory::without_network_lock;
use crate::journal::Record;
use crate::rpc::v1::Prewarm;
use crate::runtime::{Bundle, OverlayMount, Restore, Rewrite, mount_overlay, replace_bind};

/// What the runtime reads before it starts CRIU (libcontainer/criu_linux.go): what the standard streams were.
const DESCRIPTORS: &str = "descriptors.json";
/// Standard streams of a container.
const STREAMS: usize = 3;
/// Longest name of one, as readlink(2) gives it.
const NAME_BYTES_MAX: usize = 4096;
/// Where the runtime binds the root file system for CRIU, below its state folder (libcontainer/criu_linux.go).
const CRIU_ROOT: &str = "criu-root";
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Is this file kept out of the images folder until the restore may begin?
pub(super) fn comes_early(name: &str) -> bool {
    name == INVENTORY || name == DESCRIPTORS
}

/// A restore that waits for its images.
pub(super) struct Warm {
    gate: Gate,
    descriptors: Vec<String>,
    /// The bare root file system that the runtime began with.
    bare: (u64, u64),
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Arriving {
    /// Starts the runtime now, if that is possible for this container.
    pub(super) fn prewarm(
        &mut self,
        host: &Host,
        record: &Record,
        plan: &Plan,
        with: &Prewarm,
    ) -> Result<(), MigrationError> {
        let good = with.descriptors.len() == STREAMS
            && with.descriptors.iter().all(|name| name.len() <= NAME_BYTES_MAX);
        if !good || plan.overlay.is_none() || self.restoring.is_some() {
            return Ok(());
        }
        let bare =
            identity(&self.home.rootfs()).map_err(MigrationError::io("look at", &self.home.rootfs()))?;
        let path = self.scratch.images().join(DESCRIPTORS);
        let text = serde_json::to_vec(&with.descriptors).map_err(std::io::Error::other);
        text.and_then(|text| std::fs::write(&path, text)).map_err(MigrationError::io("write", &path))?;
        let gate = Gate::close(&self.scratch.images())?;
        self.warm = Some(Warm { gate, descriptors: with.descriptors.clone(), bare });
        self.write_config(plan)?;
        self.start_runtime(host, record, plan)
    }

    /// Everything is received and assembled: CRIU restores.
    pub(super) async fn let_restore(
        &mut self,
        host: &Host,
        record: &Record,
        plan: &Plan,
    ) -> Result<(), MigrationError> {
        let kept = self.scratch.kept().join(INVENTORY);
        let mut inventory = std::fs::read(&kept).map_err(MigrationError::io("read", &kept))?;
        if self.network.is_some() {
            // Behind a closed gate nothing has to be locked.
            inventory = without_network_lock(&inventory)
                .map_err(|bad| MigrationError::io("understand", &kept)(std::io::Error::other(bad)))?;
        }
        let Some(warm) = self.warm.take() else {
            let path = self.scratch.images().join(INVENTORY);
            std::fs::write(&path, inventory).map_err(MigrationError::io("write", &path))?;
            let (from, to) = (self.scratch.kept().join(DESCRIPTORS), self.scratch.images().join(DESCRIPTORS));
            std::fs::rename(&from, &to).map_err(MigrationError::io("move", &from))?;
            self.mount_root(plan)?;
            self.write_config(plan)?;
            return self.start_runtime(host, record, plan);
        };
        self.check_descriptors(&warm)?;
        let bound = host.runc.root.join(record.container.as_str()).join(CRIU_ROOT);
        self.until_bound(&bound, warm.bare).await;
        self.mount_root(plan)?;
        if identity(&bound).is_ok_and(|found| found == warm.bare) {
            replace_bind(&bound, &self.home.rootfs())?;
        }
        warm.gate.open(&inventory)
    }

    /// The runtime was started with what the source said; its images must say the same.
    fn check_descriptors(&self, warm: &Warm) -> Result<(), MigrationError> {
        let path = self.scratch.kept().join(DESCRIPTORS);
        let text = std::fs::read(&path).map_err(MigrationError::io("read", &path))?;
        let arrived: Vec<String> = serde_json::from_slice(&text)
            .map_err(|bad| MigrationError::io("understand", &path)(bad.into()))?;
        if arrived == warm.descriptors {
            return Ok(());
        }
        let what = format!("standard streams {arrived:?}, announced as {:?}", warm.descriptors);
        Err(MigrationError::io("understand", &path)(std::io::Error::other(what)))
    }

    /// Until the runtime has bound the bare root file system, or has ended: then waiting for the hold says why.
    async fn until_bound(&mut self, bound: &Path, bare: (u64, u64)) {
        let Some(Restoring { run, .. }) = &mut self.restoring else { return };
        let looks = async {
            while identity(bound).map_or(true, |found| found != bare) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            () = looks => {}
            _ended = run.wait() => {}
            () = tokio::time::sleep(self.within) => {}
        }
    }

    fn start_runtime(&mut self, host: &Host, record: &Record, plan: &Plan) -> Result<(), MigrationError> {
        let waiter = host.hooks.register();
        let environment = self.scratch.criu_environment(&Setup {
            program: &host.program,
            tcp: plan.tcp,
            lock: Lock::Usual,
            hook_socket: host.hooks.path(),
            token: waiter.token(),
        })?;
        let run = host.runc.restore(&Restore {
            id: &record.container,
            bundle: &self.home.bundle(),
            images: &self.scratch.images(),
            work: &self.scratch.work(),
            lazy_pages: self.pager.is_some(),
            tcp_established: plan.tcp == TcpPolicy::Keep,
            environment: &environment,
        })?;
        self.restoring = Some(Restoring { run, waiter, hold: None });
        Ok(())
    }

    fn mount_root(&self, plan: &Plan) -> Result<(), MigrationError> {
        let Some(overlay) = &plan.overlay else { return Ok(()) };
        let overlay = OverlayMount { upper: self.home.upper(), ..overlay.clone() };
        Ok(mount_overlay(&overlay, &self.home.work(), &self.home.rootfs())?)
    }

    fn write_config(&self, plan: &Plan) -> Result<(), MigrationError> {
        let mut bind_sources: BTreeMap<String, PathBuf> = plan.fixed_sources.clone();
        for mount in &plan.copied {
            bind_sources.insert(mount.destination.clone(), self.home.volume(mount.index));
        }
        let network_namespace =
            self.network.as_ref().map(|prepared| Path::new("/run/netns").join(prepared.name()));
        let bundle: Bundle = plan.bundle.clone().rewrite(&Rewrite { bind_sources, network_namespace })?;
        let path = self.home.bundle().join("config.json");
        std::fs::write(&path, bundle.to_bytes()?).map_err(MigrationError::io("write", &path))
    }
}
