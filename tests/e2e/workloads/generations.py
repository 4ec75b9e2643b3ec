"""A process tree that forks and executes itself all the time, and carries its state from process to process.

    generations.py [--lines 3] [--pause-ms 60] [--status /vol/generations.json]

Each line is one process at a time, with memory that follows from its state. It forks: the child compares what it has
inherited, goes to the next state and becomes a new program (exec) that makes its memory from that; the parent goes on
changing its own copy meanwhile, compares it and ends. A state is a number and a digest of all states before, so a
generation that is lost, run twice or run with a wrong state is noticed by the first process, which follows every line.

The state is carried in a memfd.
"""

import argparse
import hashlib
import mmap
import os
import struct
import sys
import time

from common import Broken, write_json

STATE = struct.Struct("<Q32s")
BLOCK = 256 << 10
BLOCKS = 36  # 9 MiB


def first_state(line):
    return 0, hashlib.sha256(b"line %d" % line).digest()


def next_state(number, digest):
    return number + 1, hashlib.sha256(digest + struct.pack("<Q", number)).digest()


def content(digest, at):
    block = hashlib.shake_128(digest).digest(BLOCK)
    return lambda number: struct.pack("<QQ", number, at) + block[16:]


def compare(memory, expected, who):
    for number in range(BLOCKS):
        if memory[number * BLOCK:(number + 1) * BLOCK] != expected(number):
            raise Broken(f"{who}: block {number} of its memory does not follow from its state")


def fill(memory, expected):
    for number in range(BLOCKS):
        memory[number * BLOCK:(number + 1) * BLOCK] = expected(number)


def generation(args):
    """One process of a line; never returns."""
    number, digest = STATE.unpack(os.pread(args.state, STATE.size, 0))
    memory = mmap.mmap(-1, BLOCKS * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before, after = content(digest, 0), content(digest, 1)
    fill(memory, before)
    time.sleep(args.pause_ms / 1e3)
    if os.fork() == 0:
        compare(memory, before, f"line {args.line}, the child of generation {number}")
        os.pwrite(args.state, STATE.pack(*next_state(number, digest)), 0)
        os.execv(sys.executable, [sys.executable, "-u", *sys.argv])
    fill(memory, after)
    time.sleep(args.pause_ms / 1e3)
    compare(memory, after, f"line {args.line}, generation {number}")
    os._exit(0)


def start(args, line):
    state = os.memfd_create(f"line {line}", 0)
    os.pwrite(state, STATE.pack(*first_state(line)), 0)
    if os.fork() == 0:
        more = ["--line", str(line), "--state", str(state)]
        os.execv(sys.executable, [sys.executable, "-u", *sys.argv, *more])
    return state


def follow(args, states):
    """The first process: inherits all that end, and follows every line."""
    known = [first_state(line) for line in range(args.lines)]
    ended, said = 0, 0.0
    while True:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended += 1
            if status != 0:
                raise Broken(f"process {pid} ended with status {status}")
        for line, state in enumerate(states):
            number, digest = STATE.unpack(os.pread(state, STATE.size, 0))
            while known[line][0] < number:
                known[line] = next_state(*known[line])
            if known[line] != (number, digest):
                raise Broken(f"line {line} is at {number}, but its first process is at {known[line][0]} with another digest")
        if time.monotonic() - said > 0.1:
            said = time.monotonic()
            write_json(args.status, {"ok": True, "generations": [number for number, _ in known], "ended": ended,
                                     "unix_ms": time.time() * 1e3})
        time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=3)
    parser.add_argument("--pause-ms", type=float, default=60)
    parser.add_argument("--status", default="/vol/generations.json")
    parser.add_argument("--line", type=int)
    parser.add_argument("--state", type=int)
    args = parser.parse_args()
    try:
        if args.line is not None:
            generation(args)
        follow(args, [start(args, line) for line in range(args.lines)])
    except Exception as error:  # whatever it is: a workload that stopped checking must not look healthy
        reason = f"{type(error).__name__}: {error}"
        try:
            with open(os.path.join(os.path.dirname(args.status), "failure.json"), "x") as file:
                file.write('{"ok": false, "reason": "%s"}\n' % reason.replace('"', "'"))
        except FileExistsError:
            pass
        print(reason, file=sys.stderr)
        os._exit(1)


main()
