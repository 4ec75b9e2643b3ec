"""What memory.py can be beside an ordinary process; each kind is hard for those who look at its memory from outside.

    thp         its memory asks for huge pages
    hugetlb     its memory is of huge pages from the pool (MAP_HUGETLB)
    seccomp     a filter that forbids userfaultfd and others with EPERM
    undumpable  prctl(PR_SET_DUMPABLE, 0)
    traced      a child of its own is attached to it with ptrace

Numbers are those of x86-64 and of include/uapi/linux/{prctl,seccomp,filter,ptrace}.h.
"""

import ctypes
import mmap
import os
import struct
import time

from common import Broken

KINDS = ["plain", "thp", "hugetlb", "seccomp", "undumpable", "traced"]

MAP_HUGETLB = 0x40000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_PTRACER = 4, 22, 38, 0x59616D61
PTRACE_SEIZE = 0x4206
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
ALLOW, EPERM = 0x7FFF0000, 0x00050001
FORBIDDEN = [323, 425, 310, 311]  # userfaultfd, io_uring_setup, process_vm_readv, process_vm_writev

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long


def prctl(*arguments):
    if libc.prctl(*[ctypes.c_ulong(argument) for argument in arguments]) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {arguments[0]}: {os.strerror(error)}")


def filter_calls():
    lines = [(LOAD, 0, 0, 0)]
    for at, number in enumerate(FORBIDDEN):
        lines.append((JUMP_EQUAL, len(FORBIDDEN) - at, 0, number))
    lines += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
    head = struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(program))
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    head = ctypes.create_string_buffer(head)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(head), 0, 0)
    if libc.syscall(FORBIDDEN[0], 1) != -1 or ctypes.get_errno() != 1:
        raise Broken("the filter does not filter")


def trace_parent():
    """A child that does nothing but hold on to us."""
    told, tell = os.pipe()
    # A no to this is fine where Yama is not there.
    libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(2**64 - 1), 0, 0, 0)
    if os.fork() == 0:
        ended = libc.ptrace(PTRACE_SEIZE, os.getppid(), None, None)
        os.write(tell, b"y" if ended == 0 else b"n")
        while True:
            time.sleep(1)
    if os.read(told, 1) != b"y":
        raise Broken("the child may not trace its parent")
    os.close(told)
    os.close(tell)


def become(kind):
    if kind == "seccomp":
        filter_calls()
    elif kind == "undumpable":
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    elif kind == "traced":
        trace_parent()


def flags(kind):
    """More flags for mmap."""
    return MAP_HUGETLB if kind == "hugetlb" else 0


def advise(kind, memory):
    if kind == "thp":
        memory.madvise(mmap.MADV_HUGEPAGE)
