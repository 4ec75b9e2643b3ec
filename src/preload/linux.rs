//! System calls of the object, without libc: a symbol version that another system's libc lacks would keep the object from being
//! loaded there.

use core::arch::asm;
use core::ffi::{CStr, c_int, c_void};

unsafe extern "C" {
    /// libc's: where this thread's errno is.
    fn __errno_location() -> *mut c_int;
    /// libc's.
    fn getenv(name: *const core::ffi::c_char) -> *const core::ffi::c_char;
}

const READ: usize = 0;
const WRITE: usize = 1;
const CLOSE: usize = 3;
const LSEEK: usize = 8;
const MMAP: usize = 9;
const MUNMAP: usize = 11;
const IOCTL: usize = 16;
const MREMAP: usize = 25;
const NANOSLEEP: usize = 35;
const GETPID: usize = 39;
const SETSOCKOPT: usize = 54;
const OPENAT: usize = 257;
const READLINKAT: usize = 267;
const MEMFD_CREATE: usize = 319;

/// `AT_FDCWD`.
pub const HERE: c_int = -100;
/// `O_RDONLY | O_CLOEXEC`.
pub const READ_ONLY: c_int = 0o2_000_000;
/// `O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC`.
pub const APPEND: c_int = 0o1 | 0o100 | 0o2_000 | 0o2_000_000;
/// Anonymous memory is asked for in steps of this.
const STEP: usize = 1 << 20;

/// One system call; a negative result is an error number.
///
/// # Safety
/// As the call itself: pointers are valid for what the kernel does with them.
unsafe fn call(number: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention on x86-64; rcx and r11 are overwritten by the instruction itself.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// A result as libc gives it: -1 and errno.
fn as_libc(result: isize) -> c_int {
    if (-4095..0).contains(&result) {
        // SAFETY: libc's own place for this thread's errno; it is always valid.
        unsafe { *__errno_location() = -result as c_int };
        return -1;
    }
    result as c_int
}

/// ioctl(2) as libc offers it.
///
/// # Safety
/// `argument` is what the request wants.
pub unsafe fn ioctl(fd: c_int, request: usize, argument: *mut c_void) -> c_int {
    // SAFETY: passed on from a caller who promises the same.
    as_libc(unsafe { call(IOCTL, [fd as usize, request, argument as usize, 0, 0, 0]) })
}

/// openat(2) as libc offers it.
///
/// # Safety
/// `path` is a C string, or what the caller would have given the kernel anyway.
pub unsafe fn openat(folder: c_int, path: *const core::ffi::c_char, flags: c_int, mode: u32) -> c_int {
    // SAFETY: the kernel checks the pointer itself.
    as_libc(unsafe { call(OPENAT, [folder as usize, path as usize, flags as usize, mode as usize, 0, 0]) })
}

/// `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: i64,
}

/// nanosleep(2) as libc offers it.
///
/// # Safety
/// Both pointers are what the caller would have given the kernel anyway.
pub unsafe fn nanosleep(request: *const Time, left: *mut Time) -> c_int {
    // SAFETY: the kernel checks the pointers itself.
    as_libc(unsafe { call(NANOSLEEP, [request as usize, left as usize, 0, 0, 0, 0]) })
}

/// setsockopt(2) as libc offers it.
///
/// # Safety
/// `value` is what the caller would have given the kernel anyway.
pub unsafe fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const core::ffi::c_void, length: u32) -> c_int {
    // SAFETY: the kernel checks the pointer itself.
    as_libc(unsafe {
        call(SETSOCKOPT, [fd as usize, level as usize, name as usize, value as usize, length as usize, 0])
    })
}

/// An open file, closed when it goes out of scope.
pub struct Fd(c_int);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: ours, and closed once.
        unsafe { call(CLOSE, [self.0 as usize, 0, 0, 0, 0, 0]) };
    }
}

impl Fd {
    /// Opens a file; errno is left alone.
    pub fn open(folder: c_int, path: &CStr, flags: c_int) -> Option<Self> {
        // SAFETY: a C string that lives through the call.
        let fd =
            unsafe { call(OPENAT, [folder as usize, path.as_ptr() as usize, flags as usize, 0o600, 0, 0]) };
        (fd >= 0).then_some(Self(fd as c_int))
    }

    /// An anonymous file in memory.
    pub fn memory(name: &CStr) -> Option<Self> {
        // SAFETY: a C string that lives through the call; 1 is MFD_CLOEXEC.
        let fd = unsafe { call(MEMFD_CREATE, [name.as_ptr() as usize, 1, 0, 0, 0, 0]) };
        (fd >= 0).then_some(Self(fd as c_int))
    }

    /// Writes all, or says that it could not.
    pub fn write(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            // SAFETY: pointer and length of a slice that lives through the call.
            let got =
                unsafe { call(WRITE, [self.0 as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) };
            if got <= 0 {
                return false;
            }
            let Some(rest) = bytes.get(got as usize..) else { return false };
            bytes = rest;
        }
        true
    }

    /// Back to the beginning, and no longer ours to close.
    pub fn hand_over(self) -> Option<c_int> {
        // SAFETY: no pointers.
        if unsafe { call(LSEEK, [self.0 as usize, 0, 0, 0, 0, 0]) } != 0 {
            return None;
        }
        let fd = self.0;
        core::mem::forget(self);
        Some(fd)
    }
}

/// Anonymous memory that holds text; unmapped when it goes out of scope.
pub struct Text {
    start: usize,
    capacity: usize,
    length: usize,
}

impl Drop for Text {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once, and no borrow outlives it.
        unsafe { call(MUNMAP, [self.start, self.capacity, 0, 0, 0, 0]) };
    }
}

impl Text {
    /// Room for at least `bytes`.
    pub fn with_room(bytes: usize) -> Option<Self> {
        let capacity = bytes.checked_next_multiple_of(STEP)?.max(STEP);
        // SAFETY: a fresh private anonymous mapping (flags 0x22) at an address of the kernel's choice, readable and writable.
        let start = unsafe { call(MMAP, [0, capacity, 3, 0x22, usize::MAX, 0]) };
        (start > 0).then_some(Self { start: start as usize, capacity, length: 0 })
    }

    /// All of a file, up to `max` bytes.
    pub fn of_file(file: &Fd, max: usize) -> Option<Self> {
        let mut text = Self::with_room(STEP)?;
        loop {
            if text.length == text.capacity {
                let wider = text.capacity.checked_mul(2).filter(|wider| *wider <= max)?;
                // SAFETY: our own mapping, which may move (flag 1); nothing borrows from it here.
                let start = unsafe { call(MREMAP, [text.start, text.capacity, wider, 1, 0, 0]) };
                text.start = usize::try_from(start).ok()?;
                text.capacity = wider;
            }
            let room = text.capacity - text.length;
            // SAFETY: `room` bytes behind the text belong to our mapping.
            let got = unsafe { call(READ, [file.0 as usize, text.start + text.length, room, 0, 0, 0]) };
            match usize::try_from(got) {
                Ok(0) => return Some(text),
                Ok(got) => text.length += got.min(room),
                Err(_) => return None,
            }
        }
    }

    /// Appends, or says that there is no room.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.capacity - self.length {
            return false;
        }
        // SAFETY: that many bytes behind the text belong to our mapping, which nobody else borrows.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.start + self.length) as *mut u8, bytes.len())
        };
        self.length += bytes.len();
        true
    }

    /// The text.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the first `length` bytes of our mapping were written, and stay while `self` is borrowed.
        unsafe { core::slice::from_raw_parts(self.start as *const u8, self.length) }
    }
}

/// Where a symbolic link leads; at most what fits.
pub fn link<'a>(path: &CStr, room: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: a C string and a slice that live through the call.
    let got = unsafe {
        call(
            READLINKAT,
            [HERE as usize, path.as_ptr() as usize, room.as_mut_ptr() as usize, room.len(), 0, 0],
        )
    };
    usize::try_from(got).ok().filter(|got| *got < room.len()).and_then(|got| room.get(..got))
}

/// This process.
pub fn own_pid() -> u64 {
    // SAFETY: no pointers.
    unsafe { call(GETPID, [0; 6]) as u64 }
}

/// A variable of the environment.
pub fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: libc's; the value lives as long as nobody changes the environment, which CRIU does not do. It is copied by the
    // only caller at once.
    let value = unsafe { getenv(name.as_ptr()) };
    // SAFETY: not null, and a C string by getenv's contract.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
}
