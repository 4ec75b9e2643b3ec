//! The self-checking programs that run in containers and beside them, part of the binary: a lab needs no source tree.
//!
//! They are written into the lab's state folder when it opens, and every host sees them at
//! [`WORKLOADS_IN_HOST`](super::WORKLOADS_IN_HOST).

use std::fs;
use std::path::Path;

use super::error::{Doing, LabError};

/// File names and contents.
const FILES: &[(&str, &str)] = &[
    ("common.py", include_str!("../../tests/e2e/workloads/common.py")),
    ("tree.py", include_str!("../../tests/e2e/workloads/tree.py")),
    ("incr.py", include_str!("../../tests/e2e/workloads/incr.py")),
    ("fill_redis.py", include_str!("../../tests/e2e/workloads/fill_redis.py")),
    ("check_redis.py", include_str!("../../tests/e2e/workloads/check_redis.py")),
    ("gap.py", include_str!("../../tests/e2e/workloads/gap.py")),
    ("zero.py", include_str!("../../tests/e2e/workloads/zero.py")),
    ("dirty.py", include_str!("../../tests/e2e/workloads/dirty.py")),
    ("undumpable.py", include_str!("../../tests/e2e/workloads/undumpable.py")),
    ("memory.py", include_str!("../../tests/e2e/workloads/memory.py")),
    ("redis_load.py", include_str!("../../tests/e2e/workloads/redis_load.py")),
    ("mapfuzz.py", include_str!("../../tests/e2e/workloads/mapfuzz.py")),
    ("holder.py", include_str!("../../tests/e2e/workloads/holder.py")),
    ("forker.py", include_str!("../../tests/e2e/workloads/forker.py")),
    ("tracer.py", include_str!("../../tests/e2e/workloads/tracer.py")),
    ("generations.py", include_str!("../../tests/e2e/workloads/generations.py")),
];

/// Writes the programs into a folder, which is made.
pub(super) fn write(dir: &Path) -> Result<(), LabError> {
    fs::create_dir_all(dir).doing(|| format!("make {}", dir.display()))?;
    FILES.iter().try_for_each(|(name, text)| {
        let path = dir.join(name);
        fs::write(&path, text).doing(|| format!("write {}", path.display()))
    })
}
