//! The check that makes every shortcut safe: at the hold, the pages that a process has must be those that CRIU delivered and those
//! that the destination has acknowledged, and no others. Made in every migration; a difference is sent, counted and told.

use super::mapping::{Backing, address_space, shared_memory_device};
use super::process::Process;
use super::{hidden_pass::difference, tracker::MappedPages, tracker::Survey};
use crate::memory::MemoryError;
use crate::model::page::PageRange;
use crate::sys::pagemap::{Method, Pagemap};

/// Pages of a stopped process outside `hidden` that are not among `delivered` (both ascending, disjoint). What CRIU does not dump
/// is not asked for: pages that still belong to a file, the shared zero page, guards (criu/pagemap-cache.c, `pmc_fill`), vdso and
/// vvar, devices, shared memory.
pub(super) fn missed(
    process: Process,
    hidden: &[PageRange],
    delivered: &[PageRange],
    method: Method,
) -> Result<Survey, MemoryError> {
    let failed = |source| MemoryError::Process { pid: process.pid, action: "checked", source };
    let space = address_space(process.pid, shared_memory_device().map_err(failed)?).map_err(failed)?;
    let mut survey = Survey { task: space.task, mappings: Vec::new() };
    if space.lines.is_empty() || method != Method::Scan {
        return Ok(survey);
    }
    let pagemap = Pagemap::open(space.task, method).map_err(failed)?;
    for line in space.lines {
        if matches!(line.mapping.backing, Backing::Shared { .. }) {
            continue;
        }
        for part in difference(&[line.mapping.pages], hidden) {
            let mut own = Vec::new();
            pagemap.own(part, &mut own).map_err(failed)?;
            let missed = difference(&own, delivered);
            if !missed.is_empty() {
                survey.mappings.push(MappedPages {
                    mapping: line.mapping,
                    populated: missed,
                    candidates: Some(Vec::new()),
                });
            }
        }
    }
    Ok(survey)
}
