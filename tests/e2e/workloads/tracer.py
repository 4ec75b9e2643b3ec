"""Traces a child that runs on, until it is told to let it go.

    tracer.py [--volume /vol]

VOLUME/traced   appears when the child is traced; VOLUME/let-go, when it is there, ends that; VOLUME/free says so.
"""

import argparse
import ctypes
import os
import time

from common import write_whole

# sys/ptrace.h, of Linux
PTRACE_SEIZE, PTRACE_DETACH, PTRACE_INTERRUPT = 0x4206, 17, 0x4207

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, pid):
    if libc.ptrace(request, pid, None, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace {request:#x}: {os.strerror(error)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volume", default="/vol")
    args = parser.parse_args()
    at = lambda name: os.path.join(args.volume, name)
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(0.01)
    ptrace(PTRACE_SEIZE, child)
    write_whole(at("traced"), str(child))
    while not os.path.exists(at("let-go")):
        time.sleep(0.02)
    # Only a stopped task can be let go.
    ptrace(PTRACE_INTERRUPT, child)
    os.waitpid(child, 0)
    ptrace(PTRACE_DETACH, child)
    write_whole(at("free"), str(child))
    while True:
        time.sleep(1)


main()
