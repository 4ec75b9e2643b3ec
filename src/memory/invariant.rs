//! The check that makes every shortcut safe: at the hold, the pages that a process has must be those that CRIU delivered and those
//! that the destination has acknowledged, and no others. Made in every migration; a difference is sent, counted and told.

use super::mapping::{Backing, address_space, droppable, shared_memory_device};
use super::process::Process;
use super::{hidden_pass::difference, tracker::MappedPages, tracker::Survey};
use crate::memory::MemoryError;
use crate::model::page::PageRange;
use crate::sys::pagemap::{Method, Pagemap};

/// Pages of a stopped process outside `known` that are not among `delivered` (both ascending, disjoint). What CRIU does not dump
/// is not asked for: pages that still belong to a file, the shared zero page, guards (criu/pagemap-cache.c, `pmc_fill`), vdso and
/// vvar, devices, shared memory, and mappings whose pages the kernel may drop (criu/mem.c, `generate_vma_iovs`).
pub(super) fn missed(
    process: Process,
    known: &[PageRange],
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
        for part in difference(&[line.mapping.pages], known) {
            let mut own = Vec::new();
            pagemap.own(part, &mut own).map_err(failed)?;
            let missed = difference(&own, delivered);
            if !missed.is_empty() {
                survey.mappings.push(MappedPages {
                    mapping: line.mapping,
                    populated: missed,
                    // What the destination may hold of them is as old as the last round.
                    candidates: None,
                });
            }
        }
    }
    if !survey.mappings.is_empty() {
        // Takes long in a large process, so only now. Whoever calls has named most of them.
        let droppable = droppable(space.task).map_err(failed)?;
        survey.mappings.retain(|missed| !droppable.contains(&missed.mapping.pages));
    }
    Ok(survey)
}
