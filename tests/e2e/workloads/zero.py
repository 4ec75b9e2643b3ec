"""Holds memory that is all zero and really there, and checks that it stays so.

    zero.py [--mib 1024] [--status /vol/zero.json]
"""

import argparse
import mmap
import time

from common import Broken, run_checked, write_json

PIECE = 1 << 20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--status", default="/vol/zero.json")
    args = parser.parse_args()

    def work():
        memory = mmap.mmap(-1, args.mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        zeros = bytes(PIECE)
        for at in range(0, len(memory), PIECE):
            memory[at:at + PIECE] = zeros
        rounds = 0
        while True:
            write_json(args.status, {"ok": True, "mib": args.mib, "rounds": rounds, "unix_ms": time.time() * 1e3})
            for at in range(0, len(memory), PIECE):
                if memory[at:at + PIECE] != zeros:
                    raise Broken(f"the piece at {at} is not zero any more")
                time.sleep(0.005)
            rounds += 1

    run_checked(args.status, work)


main()
