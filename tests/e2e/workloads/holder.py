"""Holds memory that checks itself, of the kind that is asked for, changes some of it all the time, and checks all of it on request.

    holder.py plain|thp|cow|seccomp|hidden|threads|direct [--mib 64] [--volume /vol]

VOLUME/verify        write a word into it: everything is checked, and
VOLUME/report.json   says {"ok": true, "token": the word, "checked": …, "note": …}, or {"ok": false, "reason": …}.
"""

import argparse
import ctypes
import mmap
import os
import random
import struct
import sys
import threading
import time

from common import PAGE, Broken, Pages, pattern, write_json

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
SECCOMP_MODE_FILTER = 2
SYS_USERFAULTFD = 323
MADV_HUGEPAGE = 14

libc = ctypes.CDLL(None, use_errno=True)


def prctl(*arguments):
    if libc.prctl(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {arguments[0]}: {os.strerror(error)}")


class Memory:
    """Pages in one mapping; a few change with every step."""

    def __init__(self, memory, name, seed):
        self.memory = memory
        self.pages = Pages(memory, seed, len(memory) // PAGE, name)
        self.random = random.Random(seed)

    def fill(self, share=1.0):
        for number in range(self.pages.count):
            if self.random.random() < share:
                self.pages.write(number, 1)

    def step(self):
        for _ in range(8):
            self.check(self.random.randrange(self.pages.count))
        number = self.random.randrange(self.pages.count)
        self.pages.write(number, self.pages.seen[number] + 1)

    def check(self, number):
        self.pages.check(number)

    def check_all(self):
        for number in range(self.pages.count):
            self.check(number)

    def checked(self):
        return self.pages.checked


def anonymous(mib, name, seed, huge=False):
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        memory.madvise(MADV_HUGEPAGE)
    held = Memory(memory, name, seed)
    held.fill()
    return held


class Copied(Memory):
    """A private mapping of a file, of which every other page was changed in memory: the file itself must stay as it is."""

    def __init__(self, path, mib):
        self.path, count = path, (mib << 20) // PAGE
        with open(path, "wb") as file:
            for number in range(count):
                file.write(self.original(number))
        file = open(path, "r+b")
        super().__init__(mmap.mmap(file.fileno(), mib << 20, flags=mmap.MAP_PRIVATE), "private file mapping", 21)
        for number in range(0, count, 2):
            self.pages.write(number, 1)

    def original(self, number):
        return pattern(20, number, 0, PAGE)

    def check(self, number):
        if self.pages.seen[number]:
            return self.pages.check(number)
        if self.memory[number * PAGE:(number + 1) * PAGE] != self.original(number):
            raise Broken(f"page {number} of the private file mapping, never written, is not the file's")
        self.pages.checked += 1

    def check_all(self):
        super().check_all()
        with open(self.path, "rb") as file:
            for number in range(self.pages.count):
                if file.read(PAGE) != self.original(number):
                    raise Broken(f"page {number} of the file was changed by a private mapping")


class Stacks:
    """Threads with stacks of 8 MiB that go down in steps, keep a pattern on every level, wait, and check it on the way up."""

    DEPTH = 60

    def __init__(self, count):
        sys.setrecursionlimit(100_000)
        threading.stack_size(8 << 20)
        self.count, self.round, self.done = count, 0, [0] * count
        self.broken = []
        self.turn = threading.Condition()
        for number in range(count):
            threading.Thread(target=self.live, args=[number], daemon=True).start()

    def live(self, number):
        try:
            while True:
                seen = self.round
                self.descend(number, seen, self.DEPTH)
                self.done[number] += 1
        except Broken as error:
            self.broken.append(error)

    def descend(self, number, seen, depth):
        mine = pattern(number, seen, depth, 512)
        # A buffer in this frame, between frames of C: the interpreter's own recursion does not use the thread's stack.
        native = ctypes.create_string_buffer(mine, 512)
        if depth == 0:
            with self.turn:
                self.turn.wait_for(lambda: self.round != seen)
        else:
            sorted([0], key=lambda _: self.descend(number, seen, depth - 1) or 0)
        if mine != pattern(number, seen, depth, 512) or native.raw != mine:
            raise Broken(f"thread {number}: level {depth} of its stack is not what it was")

    def step(self):
        with self.turn:
            self.round += 1
            self.turn.notify_all()

    def check_all(self):
        before = list(self.done)
        while any(now <= was for now, was in zip(self.done, before)) and not self.broken:
            self.step()
            time.sleep(0.01)
        if self.broken:
            raise self.broken[0]

    def checked(self):
        return sum(self.done)


class Direct:
    """Threads that read a file past the page cache, right into a large buffer, and compare what arrived."""

    def __init__(self, path, mib, count):
        self.blocks, self.reads, self.broken = (mib << 20) // PAGE, 0, []
        with open(path, "wb") as file:
            for block in range(self.blocks):
                file.write(pattern(31, block, 0, PAGE))
            file.flush()
            os.fsync(file.fileno())
        self.file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.held = [None] * self.blocks
        for number in range(count):
            threading.Thread(target=self.read, args=[number, count], daemon=True).start()

    def read(self, number, count):
        choose = random.Random(number)
        mine = range(number, self.blocks, count)
        view = memoryview(self.buffer)
        try:
            while True:
                at, block = choose.choice(mine), choose.randrange(self.blocks)
                self.check(at)
                self.held[at] = None
                if os.preadv(self.file, [view[at * PAGE:(at + 1) * PAGE]], block * PAGE) != PAGE:
                    raise Broken(f"a direct read of block {block} was short")
                self.held[at] = block
                self.check(at)
                self.reads += 1
                time.sleep(0.001)
        except (Broken, OSError) as error:
            self.broken.append(error)

    def check(self, at):
        block = self.held[at]
        if block is not None and self.buffer[at * PAGE:(at + 1) * PAGE] != pattern(31, block, 0, PAGE):
            if self.held[at] == block:
                raise Broken(f"page {at}, read directly from block {block}, does not hold it")

    def step(self):
        if self.broken:
            raise Broken(str(self.broken[0]))

    def check_all(self):
        self.step()
        for at in range(self.blocks):
            self.check(at)
        before = self.reads
        while self.reads < before + 50:
            self.step()
            time.sleep(0.01)

    def checked(self):
        return self.reads


def filter_userfaultfd():
    """A filter that ends the process when it, or somebody in its name, makes a userfaultfd (linux/filter.h, linux/seccomp.h)."""
    load, equal, ret = 0x20, 0x15, 0x06
    kill, allow = 0x80000000, 0x7FFF0000
    program = b"".join(struct.pack("<HBBI", *step) for step in [
        (load, 0, 0, 0), (equal, 0, 1, SYS_USERFAULTFD), (ret, 0, 0, kill), (ret, 0, 0, allow)])
    steps = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(steps)), 16)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0)


def still_filtered():
    with open("/proc/self/status") as file:
        if "Seccomp:\t2" not in file.read():
            raise Broken("the seccomp filter is gone")


def not_dumpable():
    if libc.prctl(3, 0, 0, 0, 0) != 0:  # PR_GET_DUMPABLE
        raise Broken("it can be dumped again")


def build(args):
    """What is held, what else must be true, and a word about it."""
    at = lambda name: os.path.join(args.volume, name)
    held, also, note = [anonymous(args.mib, "memory", 1, args.kind == "thp")], lambda: None, ""
    if args.kind == "thp":
        with open("/proc/self/smaps") as file:
            huge = sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))
        note = f"{huge} KiB in huge pages"
    elif args.kind == "cow":
        held.append(Copied(at("copied"), 24))
    elif args.kind == "seccomp":
        filter_userfaultfd()
        also = still_filtered
    elif args.kind == "hidden":
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        also = not_dumpable
    elif args.kind == "threads":
        held.append(Stacks(48))
    elif args.kind == "direct":
        held.append(Direct(at("direct"), 16, 4))
    return held, also, note


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["plain", "thp", "cow", "seccomp", "hidden", "threads", "direct"])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--volume", default="/vol")
    args = parser.parse_args()
    report = os.path.join(args.volume, "report.json")
    token, said = "", ""
    try:
        held, also, note = build(args)
        while True:
            for one in held:
                one.step()
            try:
                with open(os.path.join(args.volume, "verify")) as file:
                    token = file.read().strip()
            except FileNotFoundError:
                pass
            if token != said:
                also()
                for one in held:
                    one.check_all()
                said = token
                write_json(report, {"ok": True, "token": token, "kind": args.kind, "note": note,
                                    "checked": sum(one.checked() for one in held)})
            time.sleep(0.005)
    except (Broken, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
    while True:
        # Whoever asks next is told.
        try:
            with open(os.path.join(args.volume, "verify")) as file:
                token = file.read().strip()
        except FileNotFoundError:
            pass
        write_json(report, {"ok": False, "token": token, "kind": args.kind, "reason": reason})
        time.sleep(0.1)


main()
