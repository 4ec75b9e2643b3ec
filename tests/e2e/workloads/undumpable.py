"""Holds a descriptor that CRIU cannot dump, and counts on.

    undumpable.py userfaultfd | io_uring [--status /vol/undumpable.json]

Numbers of the system calls are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
"""

import argparse
import ctypes
import os
import time

from common import run_checked, write_json

SYS_USERFAULTFD, SYS_IO_URING_SETUP = 323, 425
UFFD_USER_MODE_ONLY = 1


def open_descriptor(kind):
    libc = ctypes.CDLL(None, use_errno=True)
    if kind == "userfaultfd":
        fd = libc.syscall(SYS_USERFAULTFD, UFFD_USER_MODE_ONLY)
    else:
        # struct io_uring_params is 120 bytes, all zero for the defaults (include/uapi/linux/io_uring.h).
        params = ctypes.create_string_buffer(120)
        fd = libc.syscall(SYS_IO_URING_SETUP, 8, params)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{kind}: {os.strerror(error)}")
    return fd


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["userfaultfd", "io_uring"])
    parser.add_argument("--status", default="/vol/undumpable.json")
    args = parser.parse_args()

    def work():
        fd, count = open_descriptor(args.kind), 0
        while True:
            os.fstat(fd)
            count += 1
            write_json(args.status, {"ok": True, "count": count, "fd": fd, "unix_ms": time.time() * 1e3})
            time.sleep(0.02)

    run_checked(args.status, work)


main()
