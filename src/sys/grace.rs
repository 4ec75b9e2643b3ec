//! Grace periods of the kernel's RCU. Taking down rules, mounts and namespaces waits for one, 10 to 30 ms of doing nothing; with
//! `/sys/kernel/rcu_expedited` set every processor is asked at once and it takes a few (Documentation/admin-guide/
//! kernel-parameters.txt, `rcupdate.rcu_expedited`). It is a switch of the whole host and disturbs whoever computes there, so it
//! is set only for moments, and put back by who set it.
//!
//! ```text
//! 0 ── hurry ──▶ mark written, 1 ── relax ──▶ 0, mark removed
//! 1 (somebody else's wish) ── hurry, relax ──▶ 1
//! agent died ──▶ 1, mark ── next start ──▶ 0, mark removed
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The switch, and whether it is ours to put back.
#[derive(Debug)]
pub struct GracePeriods {
    switch: PathBuf,
    mark: PathBuf,
    ours: bool,
}

impl GracePeriods {
    /// The kernel's switch; `folder` remembers across a crash that it was set here. What an earlier run left set is put back.
    #[must_use]
    pub fn of_kernel(folder: &Path) -> Self {
        Self::at(SWITCH.into(), folder)
    }

    fn at(switch: PathBuf, folder: &Path) -> Self {
        let mark = folder.join("rcu-expedited");
        let mut found = Self { ours: mark.exists(), switch, mark };
        found.relax();
        found
    }

    /// Makes them short, if that is possible. Doing without is no failure, only slower.
    pub fn hurry(&mut self) {
        let set = || -> io::Result<bool> {
            if fs::read_to_string(&self.switch)?.trim() != "0" {
                return Ok(false);
            }
            // The mark first: a crash in between must not leave the switch set and unknown.
            fs::write(&self.mark, b"")?;
            fs::write(&self.switch, b"1")?;
            Ok(true)
        };
        if self.ours {
            return;
        }
        match set() {
            Ok(ours) => self.ours = ours,
            Err(error) => tracing::debug!(%error, switch = %self.switch.display(), "grace periods stay long"),
        }
    }

    /// Puts it back, if it was set here.
    pub fn relax(&mut self) {
        if !std::mem::take(&mut self.ours) {
            return;
        }
        let put_back = fs::write(&self.switch, b"0").and_then(|()| fs::remove_file(&self.mark));
        if let Err(error) = put_back {
            tracing::warn!(%error, switch = %self.switch.display(), "grace periods stay short");
        }
    }
}

impl Drop for GracePeriods {
    fn drop(&mut self) {
        self.relax();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(dir: &Path) -> String {
        fs::read_to_string(dir.join("switch")).unwrap().trim().to_owned()
    }

    #[test]
    fn it_is_put_back_also_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let at = || GracePeriods::at(dir.path().join("switch"), dir.path());
        fs::write(dir.path().join("switch"), "0\n").unwrap();
        let mut periods = at();
        periods.hurry();
        periods.hurry();
        assert_eq!(value(dir.path()), "1");
        periods.relax();
        assert_eq!(value(dir.path()), "0");
        periods.hurry();
        std::mem::forget(periods);
        assert_eq!(value(dir.path()), "1");
        drop(at());
        assert_eq!(value(dir.path()), "0");
        assert!(!dir.path().join("rcu-expedited").exists());
    }

    #[test]
    fn somebody_elses_wish_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("switch"), "1\n").unwrap();
        let mut periods = GracePeriods::at(dir.path().join("switch"), dir.path());
        periods.hurry();
        periods.relax();
        assert_eq!(value(dir.path()), "1");
    }

    #[test]
    fn a_host_without_the_switch_does_without() {
        let dir = tempfile::tempdir().unwrap();
        let mut periods = GracePeriods::at(dir.path().join("none/switch"), dir.path());
        periods.hurry();
        periods.relax();
        assert!(!dir.path().join("none").exists());
    }
}
