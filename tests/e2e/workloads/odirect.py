"""Threads that read a file around the page cache into memory, over and over, and know what must be there.

    odirect.py --file /usr/bin/python3 [--threads 3] [--mib 16] [--status /vol/odirect.json]

The device writes into the memory, not the program: whoever tracks writes through page tables sees the page when the read was
submitted, and the bytes may come later. Every slot of the buffer is compared with the file after each read into it, and all
of them again and again. A word in /vol/verify asks for a full comparison whose report carries it.
"""

import argparse
import mmap
import os
import random
import threading
import time

from common import Broken, write_json

SLOT = 64 << 10


class Reader:
    def __init__(self, args, number, content):
        self.args, self.content = args, content
        self.fd = os.open(args.file, os.O_RDONLY | os.O_DIRECT)
        self.slots = (args.mib << 20) // SLOT
        self.buffer = mmap.mmap(-1, args.mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.buffer)
        self.held = [None] * self.slots
        self.random = random.Random(number)
        self.reads = self.checked = 0
        self.asked = self.done = 0
        self.reason = None

    def expected(self, block):
        return bytes(SLOT) if block is None else self.content[block * SLOT:(block + 1) * SLOT]

    def check(self, slot):
        if self.buffer[slot * SLOT:(slot + 1) * SLOT] != self.expected(self.held[slot]):
            raise Broken(f"slot {slot} does not hold block {self.held[slot]} of the file")
        self.checked += 1

    def work(self):
        while True:
            slot, block = self.random.randrange(self.slots), self.random.randrange(len(self.content) // SLOT)
            got = os.preadv(self.fd, [self.view[slot * SLOT:(slot + 1) * SLOT]], block * SLOT)
            if got != SLOT:
                raise Broken(f"a read of block {block} got {got} bytes")
            self.held[slot] = block
            self.reads += 1
            self.check(slot)
            self.check(self.random.randrange(self.slots))
            asked = self.asked
            if asked != self.done:
                for number in range(self.slots):
                    self.check(number)
                self.done = asked
            time.sleep(0.001)

    def run(self):
        try:
            self.work()
        except Exception as error:  # whatever it is: a reader that stopped must not look healthy
            self.reason = f"{type(error).__name__}: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="/usr/bin/python3")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--status", default="/vol/odirect.json")
    args = parser.parse_args()
    with open(args.file, "rb") as file:
        content = file.read()
    content = content[:len(content) // SLOT * SLOT]
    readers = [Reader(args, number, content) for number in range(args.threads)]
    for reader in readers:
        threading.Thread(target=reader.run, daemon=True).start()
    folder, token = os.path.dirname(args.status), ""
    while True:
        reason = next((reader.reason for reader in readers if reader.reason), None)
        status = {"ok": reason is None, "reason": reason, "reads": sum(r.reads for r in readers),
                  "checked": sum(r.checked for r in readers), "unix_ms": time.time() * 1e3}
        write_json(args.status, status)
        if reason:
            os._exit(1)
        try:
            with open(os.path.join(folder, "verify")) as file:
                asked = file.read().strip()
        except FileNotFoundError:
            asked = token
        if asked != token:
            token = asked
            for reader in readers:
                reader.asked += 1
        elif token and all(reader.done == reader.asked for reader in readers):
            write_json(os.path.join(folder, "report.json"), {**status, "token": token})
        time.sleep(0.1)


main()
