"""Shared by the workloads: patterns, pages that check themselves, files written whole, RESP.

Python 3 standard library only: these run in containers that have nothing else.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import time

PAGE = 4096
HEAD = struct.Struct("<QQ")  # version, page number


class Broken(Exception):
    """A check failed: something that was written is not what is read."""


def pattern(seed, number, version, size):
    """Bytes that cannot be compressed and can be made again from what names them."""
    return hashlib.shake_128(b"%d:%d:%d" % (seed, number, version)).digest(size)


def write_whole(path, text):
    """A reader sees the old content or the new one, never a part."""
    new = path + ".new"
    with open(new, "w") as file:
        file.write(text)
    os.replace(new, path)


def write_json(path, value):
    write_whole(path, json.dumps(value) + "\n")


class Pages:
    """Memory whose pages hold a version and the pattern that belongs to it.

    `mine` says which pages this process may change. Pages of others may change at any time, also between reading
    their two halves: such a page is read again, and only a page that stays wrong while its version stands still
    is an error.
    """

    def __init__(self, memory, seed, count, name, mine=lambda number: True):
        self.memory, self.seed, self.count, self.name, self.mine = memory, seed, count, name, mine
        self.seen = [0] * count
        self.checked = 0
        self.changed = 0

    def content(self, number, version):
        head = HEAD.pack(version, number)
        return head + pattern(self.seed, number, version, PAGE - 2 * HEAD.size) + head

    def write(self, number, version):
        self.memory[number * PAGE:(number + 1) * PAGE] = self.content(number, version)
        self.seen[number] = version
        self.changed += 1

    def fill(self):
        for number in range(self.count):
            if self.mine(number):
                self.write(number, 1)

    def bump(self, number):
        if self.mine(number):
            self.write(number, self.seen[number] + 1)

    def check(self, number):
        last = None
        for _ in range(200):
            page = bytes(self.memory[number * PAGE:(number + 1) * PAGE])
            version, found = HEAD.unpack_from(page)
            if page == self.content(number, version):
                if self.mine(number) and version != self.seen[number] or version < self.seen[number]:
                    raise Broken(f"{self.name}: page {number} is version {version}, but {self.seen[number]} was written")
                self.seen[number] = version
                self.checked += 1
                return
            if self.mine(number) or page == last:
                break
            last = page
            time.sleep(0.001)
        raise Broken(f"{self.name}: page {number} (says {found}, version {version}) does not hold its pattern; "
                     f"{self.seen[number]} was expected; first bytes {page[:16].hex()}, last {page[-16:].hex()}")

    def check_all(self):
        for number in range(self.count):
            self.check(number)


class Ticker:
    """Wakes every millisecond and remembers the longest times it did not."""

    KEPT = 20

    def __init__(self):
        self.mono, self.real = time.monotonic_ns(), time.time_ns()
        self.ticks = 0
        self.gaps = []

    def tick(self):
        time.sleep(0.001)
        self.note()

    def note(self):
        mono, real = time.monotonic_ns(), time.time_ns()
        gap = mono - self.mono
        # A restored process may keep its old monotonic clock (time namespaces), so real time is looked at too.
        worst = max(gap, real - self.real)
        if len(self.gaps) < self.KEPT or worst > self.gaps[-1][0]:
            self.gaps.append((worst, gap, real - self.real, self.real))
            self.gaps.sort(reverse=True)
            del self.gaps[self.KEPT:]
        self.mono, self.real = mono, real
        self.ticks += 1

    def report(self):
        rows = [{"mono_ms": m / 1e6, "real_ms": r / 1e6, "from_unix_ms": at / 1e6} for _, m, r, at in self.gaps]
        worst = rows[0] if rows else {"mono_ms": 0, "real_ms": 0, "from_unix_ms": 0}
        return {"ticks": self.ticks, "worst_gap_mono_ms": worst["mono_ms"], "worst_gap_real_ms": worst["real_ms"],
                "worst_gap_from_unix_ms": worst["from_unix_ms"], "gaps": rows}


def run_checked(status_path, work):
    """Runs `work`; a failed check ends up in the status file and in the exit code."""
    try:
        work()
    except (Broken, OSError) as error:
        write_json(status_path, {"ok": False, "reason": f"{type(error).__name__}: {error}", "unix_ms": time.time() * 1e3})
        print(error, file=sys.stderr)
        os._exit(1)


class Redis:
    """RESP2 spoken by hand over one connection (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""

    def __init__(self, host, port=6379, timeout=60):
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb", buffering=1 << 20)

    @staticmethod
    def encode(*words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise Broken(f"redis answered {rest.decode()}")
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            body = self.file.read(size + 2)
            if len(body) != size + 2:
                raise ConnectionError("the server closed the connection")
            return body[:-2]
        raise Broken(f"redis answered something that is not RESP: {line[:80]!r}")

    def call(self, *words):
        self.socket.sendall(self.encode(*words))
        return self.reply()


def key_and_value(seed, number, size):
    """The reproducible content of the test database."""
    return b"decamp:%d:%08d" % (seed, number), pattern(seed, number, 0, size)
