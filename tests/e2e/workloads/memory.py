"""Holds memory that cannot be compressed, knows what every page must contain, and measures its own gaps.

    memory.py --mib 1024 [--rate 0] [--port 6379] [--status /vol/memory.json] [--hugetlb]

One process with one loop, so that a container with this program and no memory costs a migration as little as possible. It
wakes every millisecond, writes `--rate` pages a second (round and round through all of them, each with a new sequence
number), and speaks RESP, so redis-cli and incr.py are its clients:

    INCR key      a counter; there is only one
    GAP           the longest times during which it did not run, as JSON
    VERIFY        compares every page with what was written last, as JSON
    RATE n        changes the writer's rate
    SPOIL n       changes one byte of page n behind the bookkeeping's back: the next VERIFY must notice
"""

import argparse
import array
import hashlib
import json
import mmap
import os
import select
import socket
import time

from common import HEAD, PAGE, Ticker, run_checked, write_json

# asm-generic/hugetlb_encode.h, asm-generic/mman.h
MAP_HUGETLB = 0x40000
# Pages in the pool that contents are cut from: longer than what a compressor looks back over.
POOL_PAGES = 2048
# A new version takes its body from that far away in the pool.
STRIDE = 777
# Pages written or checked before the loop looks after everything else.
STEP = 64


class Memory:
    def __init__(self, mib, hugetlb):
        self.count = (mib << 20) // PAGE
        # A container without memory has none for contents either.
        self.pool = os.urandom(POOL_PAGES * PAGE) if self.count else b""
        self.pool_digest = hashlib.sha256(self.pool).hexdigest()
        self.seen = array.array("I", bytes(4 * self.count))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_HUGETLB if hugetlb else 0)
        self.map = mmap.mmap(-1, max(self.count, 1) * PAGE, flags=flags)
        self.written = 0
        for number in range(self.count):
            self.write(number)

    def content(self, number, version):
        at = (number + version * STRIDE) % POOL_PAGES * PAGE
        head = HEAD.pack(version, number)
        return head + self.pool[at + HEAD.size:at + PAGE - HEAD.size] + head

    def write(self, number):
        version = self.seen[number] + 1
        self.map[number * PAGE:(number + 1) * PAGE] = self.content(number, version)
        self.seen[number] = version
        self.written += 1

    def right(self, number):
        return self.map[number * PAGE:(number + 1) * PAGE] == self.content(number, self.seen[number])

    def describe(self, number):
        page = self.map[number * PAGE:(number + 1) * PAGE]
        version, found = HEAD.unpack_from(page)
        return (f"page {number} of {self.count} is not version {self.seen[number]}: it says page {found}, version {version}, "
                f"{'all zero' if not any(page) else page[:16].hex()}")

    def spoil(self, number):
        at = number * PAGE + PAGE // 2
        self.map[at] = self.map[at] ^ 1

    def verify(self):
        """Yields now and then; returns the verdict."""
        wrong, first = 0, None
        if hashlib.sha256(self.pool).hexdigest() != self.pool_digest:
            wrong, first = 1, "the pool of contents has changed"
        for number in range(self.count):
            if not self.right(number):
                wrong += 1
                first = first or self.describe(number)
            if number % STEP == 0:
                yield None
        yield {"ok": wrong == 0, "pages": self.count, "wrong": wrong, "reason": first, "written": self.written}


class Server:
    def __init__(self, args):
        self.memory = Memory(args.mib, args.hugetlb)
        self.rate = args.rate
        self.ticker = Ticker()
        self.counter = 0
        self.verification = None
        self.asking = []
        self.at, self.owed = 0, 0.0
        self.listener = socket.create_server(("0.0.0.0", args.port), backlog=16)
        self.listener.setblocking(False)
        self.poll = select.poll()
        self.poll.register(self.listener, select.POLLIN)
        self.clients = {}

    def bulk(self, value):
        text = json.dumps(value).encode()
        return b"$%d\r\n%s\r\n" % (len(text), text)

    def answer(self, client, words):
        command = words[0].upper()
        if command == b"INCR":
            self.counter += 1
            return b":%d\r\n" % self.counter
        if command == b"GAP":
            return self.bulk({"ok": True, "unix_ms": time.time() * 1e3, "written": self.memory.written, **self.ticker.report()})
        if command == b"VERIFY":
            self.asking.append(client)
            self.verification = self.verification or self.memory.verify()
            return b""
        if command == b"RATE":
            self.rate = float(words[1])
            return b"+OK\r\n"
        if command == b"SPOIL":
            self.memory.spoil(int(words[1]))
            return b"+OK\r\n"
        return b"-ERR unknown command\r\n"

    def requests(self, text):
        """Whole requests at the beginning of `text`, and what is left. No argument has a line feed in it."""
        found = []
        while text.startswith(b"*"):
            count = int(text[1:text.find(b"\r\n")]) if b"\r\n" in text else 0
            lines = text.split(b"\r\n", 2 * count + 1)
            if not count or len(lines) < 2 * count + 2:
                break
            found.append(lines[2:2 * count + 1:2])
            text = lines[-1]
        return found, text

    def serve(self, fd):
        if fd == self.listener.fileno():
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clients[connection.fileno()] = [connection, b""]
            self.poll.register(connection, select.POLLIN)
            return
        client = self.clients[fd]
        try:
            more = client[0].recv(1 << 16)
            if more:
                found, client[1] = self.requests(client[1] + more)
                client[0].sendall(b"".join(self.answer(client, words) for words in found))
                return
        except OSError:
            pass
        self.poll.unregister(fd)
        del self.clients[fd]
        client[0].close()

    def write_some(self, last):
        # A frozen second is not made up for.
        self.owed = min(self.owed + (time.monotonic() - last) * self.rate, self.rate / 20 + 1)
        for _ in range(min(int(self.owed), STEP)):
            self.memory.write(self.at)
            self.at, self.owed = (self.at + 1) % self.memory.count, self.owed - 1

    def verify_some(self):
        verdict = next(self.verification)
        if verdict:
            asking, self.asking, self.verification = self.asking, [], None
            for client in asking:
                try:
                    client[0].sendall(self.bulk(verdict))
                except OSError:
                    pass

    def run(self):
        while True:
            busy = self.verification or (self.rate and self.owed >= STEP)
            last = time.monotonic()
            ready = self.poll.poll(0 if busy else 1)
            self.ticker.note()
            for fd, _ in ready:
                self.serve(fd)
            if self.rate and self.memory.count and not self.verification:
                self.write_some(last)
            if self.verification:
                self.verify_some()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--status", default="/vol/memory.json")
    parser.add_argument("--hugetlb", action="store_true", help="memory of huge pages from the kernel's pool")
    args = parser.parse_args()

    def work():
        server = Server(args)
        write_json(args.status, {"ok": True, "mib": args.mib, "unix_ms": time.time() * 1e3})
        server.ticker = Ticker()
        server.run()

    run_checked(args.status, work)


main()
