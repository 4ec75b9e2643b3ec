"""A ticker that measures how long its container did not run.

    gap.py [--status /vol/gap.json]
"""

import argparse
import time

from common import Ticker, write_json


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--status", default="/vol/gap.json")
    args = parser.parse_args()
    ticker = Ticker()
    while True:
        ticker.tick()
        if ticker.ticks % 200 == 0:
            write_json(args.status, {"ok": True, "unix_ms": time.time() * 1e3, **ticker.report()})
            # Writing the file is not a gap of the container.
            ticker.mono, ticker.real = time.monotonic_ns(), time.time_ns()


main()
