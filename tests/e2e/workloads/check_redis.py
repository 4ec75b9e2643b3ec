"""Checks every key that fill_redis.py wrote, and that there are no others.

    check_redis.py HOST --mib 200 [--value-bytes 16384] [--seed 1] [--other-keys 1] [--digest HEX]

`--other-keys`: how many keys there may be beside them (the counter of incr.py). `--digest`: what DEBUG DIGEST must say;
only for a database that nobody writes to. Prints one JSON line; exit code 1 when anything differs.
"""

import argparse
import json
import sys

from common import Broken, Redis, key_and_value


def check(args):
    redis = Redis(args.host)
    keys = -(-args.mib * (1 << 20) // args.value_bytes)
    step = 32
    for first in range(0, keys, step):
        numbers = range(first, min(first + step, keys))
        pairs = [key_and_value(args.seed, n, args.value_bytes) for n in numbers]
        redis.socket.sendall(b"".join(redis.encode("GET", key) for key, _ in pairs))
        for key, value in pairs:
            got = redis.reply()
            if got is None:
                raise Broken(f"key {key.decode()} is lost")
            if got != value:
                raise Broken(f"key {key.decode()} has another value: {len(got)} bytes, beginning with {got[:16].hex()}")
    size = redis.call("DBSIZE")
    if size != keys + args.other_keys:
        raise Broken(f"the database has {size} keys instead of {keys + args.other_keys}")
    try:
        digest = redis.call("DEBUG", "DIGEST")
    except Broken:
        digest = None
    if args.digest and digest != args.digest:
        raise Broken(f"the database's digest is {digest} instead of {args.digest}")
    return {"ok": True, "keys": keys, "bytes": keys * args.value_bytes, "dbsize": size, "digest": digest}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--value-bytes", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--other-keys", type=int, default=0)
    parser.add_argument("--digest")
    args = parser.parse_args()
    try:
        print(json.dumps(check(args)))
    except (Broken, OSError) as error:
        print(json.dumps({"ok": False, "reason": str(error)}))
        sys.exit(1)


main()
