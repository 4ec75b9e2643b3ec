//! The object that hides big private mappings from CRIU: `object.rs` is the root of a tiny shared library of its own, built by
//! proto/build.rs and embedded here; `plan.rs` is the file both sides read, compiled into the library and into decamp.
//!
//! Two of CRIU's questions about a frozen process cost time in proportion to its memory. The object answers them from what was
//! found out before the freeze, inside the CRIU process, through `LD_PRELOAD`:
//!
//! ```text
//! ioctl(PAGEMAP_SCAN) over one whole mapping ─┬─ marked in the plan, /proc/PID/maps still shows its very line,
//!   (criu/pagemap-cache.c, pmc_fill)          │  and it is noted in the report ──▶ "no pages", walked to the end
//!                                             └─ anything else ──▶ the kernel
//! openat(/proc/PID, "smaps") ─────────────────┬─ each line of /proc/PID/maps is in the plan ──▶ a memfd: those lines,
//!   (criu/proc_parse.c, parse_smaps)          │  each with the plan's VmFlags
//!                                             └─ one is not ──▶ the kernel's smaps
//! ```
//! A third one costs time in every freeze: CRIU looks whether a freezer is done, and again only a tenth of a second later; nanosleep
//! of exactly that length is shortened (`nap.rs`). And its connection to the page server is not corked (`object.rs`, `setsockopt`).
//!
//! What CRIU makes of it (v4.2): of smaps it reads the line of the range and `VmFlags:`, nothing else. Pages under guard markers
//! (`MADV_GUARD_INSTALL`) are skipped in the query that is answered here and come from another one, over the whole address space
//! (criu/mem.c, `collect_madv_guards`), which always reaches the kernel: hidden mappings keep their guards. Queries of 2 MiB
//! windows (small mappings) and those that go on inside a mapping never equal a mapping of the plan.
//!
//! A seccomp filter with user notification could answer the same calls without a library, in a statically linked CRIU too. It was
//! measured and not taken. On a two-core machine (medians): a hidden query takes 13 µs here, its line in the report included, and
//! 17 to 20 µs there; a query that passes takes 1.8 µs with the library as without. A filter cannot read a path, so each `openat`
//! of the runtime, CRIU and everything they start goes to the supervisor: 17 µs instead of 4. The answer to PAGEMAP_SCAN lies in
//! CRIU's memory, which the supervisor must write (`process_vm_writev`). And a filter is inherited for good: its supervisor may not
//! die before the last process that has it, or their calls fail with ENOSYS.
//!
//! The library is loaded into everything the runtime starts (the runtime itself, tar, ip, iptables, hooks). It does something only
//! where the executable is named criu and the plan is there. It must never crash or fail a call that would have succeeded, must
//! not allocate (no allocator: memory comes from mmap and is checked), and calls nothing of libc that could be missing in another
//! version: `getenv` and `__errno_location` only, everything else is a system call.

pub mod nap;
pub mod plan;

/// The shared library, to be written beside the plan.
pub const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libdecamp_hide.so"));
