"""Changes pages at a given rate, each to a new pattern, and checks what it finds before changing it.

    dirty.py RATE_MIB_PER_S SIZE_MIB [--status /vol/dirty.json]
"""

import argparse
import mmap
import os
import time

from common import PAGE, Pages, run_checked, write_json


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rate_mib", type=float)
    parser.add_argument("size_mib", type=int)
    parser.add_argument("--status", default="/vol/dirty.json")
    args = parser.parse_args()

    def work():
        count = (args.size_mib << 20) // PAGE
        memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages = Pages(memory, os.getpid(), count, "dirtied memory")
        pages.fill()
        per_s = args.rate_mib * (1 << 20) / PAGE
        at, owed, last, said = 0, 0.0, time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            # A frozen second is not made up for.
            owed = min(owed + (now - last) * per_s, per_s / 10 + 1)
            last = now
            while owed >= 1:
                pages.check(at)
                pages.bump(at)
                at, owed = (at + 1) % count, owed - 1
            if now - said > 0.2:
                said = now
                write_json(args.status, {"ok": True, "changed": pages.changed, "checked": pages.checked,
                                         "unix_ms": time.time() * 1e3})
            time.sleep(0.002)

    run_checked(args.status, work)


main()
