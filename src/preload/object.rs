//! Root of the shared library that is preloaded into CRIU (see mod.rs): the functions of libc that it stands in front of.
//!
//! The functions take the registers that a variable argument would be in; on x86-64 a C caller with `...` passes them the same
//! way. Calls in which nothing is to be done go to the kernel as libc would send them. Must never be linked into decamp itself.

#![no_std]

mod linux;
mod nap;
mod plan;
mod work;

use core::ffi::{CStr, c_char, c_int, c_void};

/// `_IOWR('f', 16, struct pm_scan_arg)`, include/uapi/linux/fs.h.
const PAGEMAP_SCAN: usize = 0xc060_6610;

/// In front of ioctl(3).
///
/// # Safety
/// As ioctl(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: usize, argument: *mut c_void) -> c_int {
    // SAFETY: for this request a caller passes a pm_scan_arg; `scan` reads it only inside CRIU.
    if request & 0xffff_ffff == PAGEMAP_SCAN && unsafe { work::scan(fd, argument.cast()) } {
        return 0;
    }
    // SAFETY: the caller's own promise.
    unsafe { linux::ioctl(fd, request, argument) }
}

/// In front of nanosleep(3).
///
/// # Safety
/// As nanosleep(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nanosleep(request: *const linux::Time, left: *mut linux::Time) -> c_int {
    // SAFETY: not null, so a time by the caller's promise.
    let asked = if request.is_null() { None } else { Some(unsafe { *request }) };
    if let Some(linux::Time { seconds: 0, nanoseconds: nap::ASKED_NS }) = asked
        && let Some(nanoseconds) = work::nap()
    {
        let shorter = linux::Time { seconds: 0, nanoseconds };
        // SAFETY: our own time, and the caller's place for what is left.
        return unsafe { linux::nanosleep(&raw const shorter, left) };
    }
    // SAFETY: the caller's own promise.
    unsafe { linux::nanosleep(request, left) }
}

/// In front of setsockopt(2). CRIU corks its connection to a page server and never uncorks it; the last record waits for the
/// kernel's ceiling of 200 ms (tcp(7), TCP_CORK), with the tasks stopped (criu/page-xfer.c, `disconnect_from_page_server`). It is
/// not corked at all: TCP_NODELAY, which CRIU sets too, sends every record at once.
///
/// # Safety
/// As setsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: u32,
) -> c_int {
    const IPPROTO_TCP: c_int = 6;
    const TCP_CORK: c_int = 3;
    if (level, name) == (IPPROTO_TCP, TCP_CORK) && work::is_criu() {
        return 0;
    }
    // SAFETY: the caller's own promise.
    unsafe { linux::setsockopt(fd, level, name, value, length) }
}

/// The descriptor to give instead of opening, if there is one.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn instead(folder: c_int, path: *const c_char, flags: c_int) -> Option<c_int> {
    // Only O_RDONLY, with or without O_CLOEXEC and O_LARGEFILE.
    if path.is_null() || flags & !(0o2_000_000 | 0o100_000) != 0 {
        return None;
    }
    // SAFETY: not null, so a C string.
    let path = unsafe { CStr::from_ptr(path) };
    if path != c"smaps" { None } else { work::smaps(folder) }
}

macro_rules! stand_in_front_of {
    ($($name:ident)*) => {$(
        /// In front of openat(2).
        ///
        /// # Safety
        /// As openat(2).
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(folder: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
            // SAFETY: the caller's own promise, twice.
            unsafe { instead(folder, path, flags).unwrap_or_else(|| linux::openat(folder, path, flags, mode)) }
        }
    )*};
}
stand_in_front_of!(openat openat64 __openat_2 __openat64_2);

/// Not reached: there is no operation here that can panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// The precompiled core library names it in tables that are never used, because a panic aborts.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
