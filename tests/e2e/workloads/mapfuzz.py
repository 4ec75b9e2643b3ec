"""Changes its mappings in every way that a program can, all the time, and knows what every page must hold.

    mapfuzz.py [--seed 1] [--threads 3] [--mib 40] [--volume /vol]

    main ──fork── fuzzer    threads that map, unmap, map over, move, grow, protect, advise and fork, each on mappings of its own
      └───fork── breaker    moves the end of the heap (brk)

A page holds one eight-byte stamp over and over, or zeros; no stamp is ever used twice. Every thread keeps a model of its pages
and compares it with what it reads, one mapping after the other. Children compare what they inherited with the model of that
moment while the parent goes on, change some of it, and end.

VOLUME/verify        write a word into it: every page of everything is compared, and
VOLUME/report.json   says {"ok": true, "token": the word, "checks": …}, or {"ok": false, "reason": …} as soon as a page is wrong.
"""

import argparse
import collections
import ctypes
import mmap
import os
import random
import struct
import sys
import threading
import time

from common import PAGE, Broken, write_json

# sys/mman.h and asm-generic/mman-common.h
READ, WRITE, NONE = 1, 2, 0
PRIVATE, FIXED, ANONYMOUS, NORESERVE = 2, 0x10, 0x20, 0x4000
MAYMOVE, MOVE_FIXED, DONTUNMAP = 1, 2, 4
DONTNEED, FREE, HUGEPAGE = 4, 8, 14
FAILED = ctypes.c_void_p(-1).value
ZERO = bytes(PAGE)
# Mappings from this size on are hidden from CRIU and served by the pager.
BIG = (8 << 20) // PAGE

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.mprotect.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_long]


def must(result, what):
    if result in (FAILED, -1):
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


class Region:
    """Pages that were mapped together, and what each must hold: a stamp, 0 for zeros, or -stamp for "this or zeros"."""

    def __init__(self, address, values, protection=READ | WRITE):
        self.address, self.values, self.protection = address, values, protection

    @property
    def end(self):
        return self.address + len(self.values) * PAGE


class Fuzz:
    """One thread's mappings."""

    def __init__(self, name, seed, pages_max, stamps):
        self.name, self.pages_max, self.next_stamp = name, pages_max, stamps
        self.random = random.Random(seed)
        self.regions, self.children = [], []
        self.log = collections.deque(maxlen=400)
        self.checks = self.operations = self.forks = 0

    # What every operation is made of.

    def say(self, what, address, pages):
        self.log.append((self.operations, what, address, address + pages * PAGE))

    def write(self, region, at):
        self.next_stamp += 1
        ctypes.memmove(region.address + at * PAGE, struct.pack("<Q", self.next_stamp) * (PAGE // 8), PAGE)
        region.values[at] = self.next_stamp

    def write_some(self, region, first, count, share):
        if region.protection == READ | WRITE:
            for at in range(first, first + count):
                if share >= 1 or self.random.random() < share:
                    self.write(region, at)
            self.say("write", region.address + first * PAGE, count)

    def check(self, region, at):
        wanted, found = region.values[at], ctypes.string_at(region.address + at * PAGE, PAGE)
        self.checks += 1
        if wanted <= 0 and found == ZERO:
            region.values[at] = 0
            return
        if wanted != 0 and found == struct.pack("<Q", abs(wanted)) * (PAGE // 8):
            return
        address = region.address + at * PAGE
        words = sorted(set(struct.unpack("<512Q", found)))
        past = [entry for entry in self.log if entry[2] <= address < entry[3]]
        story = "; ".join(f"{n} {what} {start:x}-{end:x}" for n, what, start, end in past[-12:])
        raise Broken(f"{self.name}, operation {self.operations}: page {address:x} holds {[hex(w) for w in words[:4]]} "
                     f"({len(words)} different words) instead of {wanted:#x}; its past: {story}")

    def check_region(self, region, count=None):
        if region.protection == NONE:
            return
        size = len(region.values)
        numbers = range(size) if count is None or count >= size else self.random.sample(range(size), count)
        for at in numbers:
            self.check(region, at)

    def check_all(self):
        for region in self.regions:
            self.check_region(region)

    def mapped(self, pages, address=None, protection=READ | WRITE):
        flags = PRIVATE | ANONYMOUS | NORESERVE | (FIXED if address else 0)
        return must(libc.mmap(address, pages * PAGE, protection, flags, -1, 0), "mmap")

    def total(self):
        return sum(len(region.values) for region in self.regions)

    def part(self, region):
        """A range of it."""
        size = len(region.values)
        first = self.random.randrange(size)
        return first, self.random.randint(1, size - first)

    def unmapped(self, region, first, count):
        """Forgets a range of a region."""
        self.regions.remove(region)
        if first:
            self.regions.append(Region(region.address, region.values[:first], region.protection))
        if first + count < len(region.values):
            rest = region.values[first + count:]
            self.regions.append(Region(region.address + (first + count) * PAGE, rest, region.protection))

    # The operations.

    def map(self, _):
        room = self.pages_max - self.total()
        pages = self.random.choice([self.random.randint(1, 64), self.random.randint(65, 1024),
                                    self.random.randint(BIG, 2 * BIG), self.random.randint(BIG, 4 * BIG)])
        if pages > room:
            return
        region = Region(self.mapped(pages), [0] * pages)
        self.say("map", region.address, pages)
        self.regions.append(region)
        if self.random.random() < 0.3:
            # Fails where the kernel has no huge pages; they are only advice.
            libc.madvise(region.address, pages * PAGE, HUGEPAGE)
        self.write_some(region, 0, pages, self.random.choice([0.1, 0.6, 1]))

    def unmap(self, region):
        first, count = self.part(region) if self.random.random() < 0.5 else (0, len(region.values))
        must(libc.munmap(region.address + first * PAGE, count * PAGE), "munmap")
        self.say("unmap", region.address + first * PAGE, count)
        self.unmapped(region, first, count)

    def map_over(self, region):
        first, count = self.part(region)
        address = region.address + first * PAGE
        self.mapped(count, address)
        self.say("map over", address, count)
        self.unmapped(region, first, count)
        new = Region(address, [0] * count)
        self.regions.append(new)
        self.write_some(new, 0, count, self.random.choice([0, 0.3]))

    def resize(self, region):
        old = len(region.values)
        new = max(1, old + self.random.choice([-1, 1]) * self.random.randint(1, old))
        if new - old + self.total() > self.pages_max:
            return
        moved = libc.mremap(region.address, old * PAGE, new * PAGE, MAYMOVE, None)
        if moved == FAILED:
            return  # It is more than one mapping by now.
        self.say(f"resized from {region.address:x}", moved, new)
        region.address = moved
        region.values = region.values[:new] + [0] * (new - old)

    def move(self, region):
        size = len(region.values)
        target = self.mapped(size, protection=NONE)
        moved = libc.mremap(region.address, size * PAGE, size * PAGE, MAYMOVE | MOVE_FIXED, target)
        if moved == FAILED:
            must(libc.munmap(target, size * PAGE), "munmap")
            return
        self.say(f"moved from {region.address:x}", moved, size)
        region.address = moved

    def move_and_keep(self, region):
        size = len(region.values)
        if size + self.total() > self.pages_max:
            return
        moved = libc.mremap(region.address, size * PAGE, size * PAGE, MAYMOVE | DONTUNMAP, None)
        if moved == FAILED:
            return
        self.say(f"moved, and kept empty, {region.address:x}", moved, size)
        self.say("moved away, and kept empty", region.address, size)
        self.regions.append(Region(region.address, [0] * size, region.protection))
        region.address = moved

    def protect(self, region):
        region.protection = READ | WRITE if region.protection != READ | WRITE else self.random.choice([READ, NONE])
        size = len(region.values)
        must(libc.mprotect(region.address, size * PAGE, region.protection), "mprotect")
        self.say(f"protect {region.protection}", region.address, size)

    def drop(self, region):
        first, count = self.part(region)
        must(libc.madvise(region.address + first * PAGE, count * PAGE, DONTNEED), "madvise DONTNEED")
        self.say("drop", region.address + first * PAGE, count)
        region.values[first:first + count] = [0] * count

    def free(self, region):
        first, count = self.part(region)
        must(libc.madvise(region.address + first * PAGE, count * PAGE, FREE), "madvise FREE")
        self.say("free", region.address + first * PAGE, count)
        for at in range(first, first + count):
            region.values[at] = -abs(region.values[at])

    def change(self, region):
        first, count = self.part(region)
        self.write_some(region, first, min(count, 256), 1)

    def look(self, region):
        self.check_region(region, 2048)

    def fork(self, _):
        self.reap()
        if len(self.children) >= 2:
            return
        pid = os.fork()
        if pid == 0:
            self.name += f", child {os.getpid()}"
            guarded(self.child)
            os._exit(0)
        self.forks += 1
        self.children.append(pid)

    def child(self):
        for _ in range(self.random.randint(1, 4)):
            if self.regions:
                self.check_region(self.random.choice(self.regions), 1024)
                region = self.random.choice(self.regions)
                self.random.choice([self.change, self.drop, self.map_over, self.unmap, self.change])(region)
            time.sleep(0.03)
        for region in self.regions:
            self.check_region(region, 1024)

    def reap(self):
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.children.remove(pid)
                if status:
                    raise Broken(f"{self.name}: child {pid} ended with status {status}")

    def step(self):
        self.operations += 1
        acts = [self.map] * 4 + [self.change] * 5 + [self.look] * 5 + [
            self.unmap, self.map_over, self.resize, self.resize, self.move, self.move, self.move_and_keep, self.protect,
            self.protect, self.drop, self.free, self.fork]
        act = self.random.choice(acts)
        if self.regions or act in (self.map, self.fork):
            act(self.random.choice(self.regions) if self.regions else None)


class Break:
    """The heap's end goes up and down, in a process with a single thread and with nobody else who moves it."""

    def __init__(self, name, seed):
        self.fuzz = Fuzz(name, seed, 0, 1 << 60)
        self.sbrk = ctypes.PyDLL(None).sbrk
        self.sbrk.restype, self.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_long]

    def step(self):
        fuzz = self.fuzz
        fuzz.operations += 1
        region = fuzz.regions[-1] if fuzz.regions else None
        if region and fuzz.random.random() < 0.5:
            fuzz.check_region(region)
            # Python's own allocator may have moved it on.
            if self.sbrk(0) == region.end and self.sbrk(-len(region.values) * PAGE) != FAILED:
                fuzz.regions.remove(region)
        elif len(fuzz.regions) < 6:
            now = self.sbrk(0)
            pages = fuzz.random.choice([fuzz.random.randint(2, 200), BIG])
            at = must(self.sbrk(pages * PAGE), "sbrk")
            first = -(-at // PAGE) * PAGE
            new = Region(first, [0] * ((at + pages * PAGE - first) // PAGE))
            fuzz.say(f"brk from {now:x}", first, len(new.values))
            fuzz.regions.append(new)
            fuzz.write_some(new, 0, len(new.values), 0.7)
        else:
            fuzz.change(fuzz.random.choice(fuzz.regions))


VOLUME = "/vol"


def guarded(work):
    """The first thing that goes wrong is told, and ends this process."""
    try:
        work()
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        print(text, file=sys.stderr)
        try:
            with open(os.path.join(VOLUME, "broken"), "x") as file:
                file.write(text)
        except FileExistsError:
            pass
        os._exit(1)


def asked():
    try:
        with open(os.path.join(VOLUME, "verify")) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def run(workers, name):
    """Lets all workers of this process step, and check everything for each new token."""
    token, said = [""], {}
    done = {}

    def loop(worker, fuzz, number):
        while True:
            worker.step()
            if done.get(number) != token[0]:
                fuzz.check_all()
                done[number] = token[0]
            time.sleep(0.004)

    for number, (worker, fuzz) in enumerate(workers):
        threading.Thread(target=guarded, args=[lambda w=worker, f=fuzz, n=number: loop(w, f, n)], daemon=True).start()
    while True:
        new = asked()
        if new != token[0]:
            token[0] = new
        if token[0] and said.get("token") != token[0] and all(done.get(n) == token[0] for n in range(len(workers))):
            count = lambda what: sum(getattr(fuzz, what) for _, fuzz in workers)
            said = {"token": token[0], "checks": count("checks"), "operations": count("operations"), "forks": count("forks"),
                    "pages": sum(f.total() for _, f in workers)}
            write_json(os.path.join(VOLUME, f"part-{name}.json"), said)
        time.sleep(0.02)


def run_alone(worker, name):
    """The same in this thread, for the one that must not have others beside it."""
    said = None
    while True:
        worker.step()
        token = asked()
        if token and token != said:
            worker.fuzz.check_all()
            said = token
            write_json(os.path.join(VOLUME, f"part-{name}.json"),
                       {"token": token, "checks": worker.fuzz.checks, "operations": worker.fuzz.operations})
        time.sleep(0.02)


def part(name):
    import json
    try:
        with open(os.path.join(VOLUME, f"part-{name}.json")) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return {}


def gather(names, seed):
    """Joins the reports of both processes; the first process of the container lives on whatever happens."""
    said = None
    while True:
        time.sleep(0.05)
        broken = os.path.join(VOLUME, "broken")
        done, status = os.waitpid(-1, os.WNOHANG)
        token = asked()
        if os.path.exists(broken) or done:
            with open(broken) if os.path.exists(broken) else open(os.devnull) as file:
                reason = file.read() or f"process {done} ended with status {status}"
            write_json(os.path.join(VOLUME, "report.json"), {"ok": False, "token": token, "seed": seed, "reason": reason})
            while True:
                time.sleep(0.05)
                if asked() != token:
                    token = asked()
                    write_json(os.path.join(VOLUME, "report.json"),
                               {"ok": False, "token": token, "seed": seed, "reason": reason})
        parts = [part(name) for name in names]
        if token and token != said and all(found.get("token") == token for found in parts):
            said = token
            sums = {key: sum(found.get(key, 0) for found in parts) for key in ("checks", "operations", "forks", "pages")}
            write_json(os.path.join(VOLUME, "report.json"), {"ok": True, "token": token, "seed": seed, **sums})


def main():
    global VOLUME
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--mib", type=int, default=40)
    parser.add_argument("--volume", default="/vol")
    args = parser.parse_args()
    VOLUME = args.volume
    print(f"seed {args.seed}", flush=True)
    if os.fork() == 0:
        # Stamps begin where no other thread's can come.
        fuzzes = [Fuzz(f"thread {n}", args.seed * 100 + n, (args.mib << 20) // PAGE, (n + 1) << 48)
                  for n in range(args.threads)]
        guarded(lambda: run([(fuzz, fuzz) for fuzz in fuzzes], "fuzz"))
    if os.fork() == 0:
        guarded(lambda: run_alone(Break("heap", args.seed * 100 + 99), "heap"))
    gather(["fuzz", "heap"], args.seed)


main()
