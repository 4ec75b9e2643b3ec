"""Fills Redis with values that cannot be compressed and can be made again.

    fill_redis.py HOST --mib 200 [--value-bytes 16384] [--seed 1]

Prints one JSON line: keys, bytes, digest of the whole database if Redis tells it.
"""

import argparse
import json

from common import Broken, Redis, key_and_value


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--value-bytes", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    redis = Redis(args.host)
    keys = -(-args.mib * (1 << 20) // args.value_bytes)
    waiting = 0
    for number in range(keys):
        redis.socket.sendall(redis.encode("SET", *key_and_value(args.seed, number, args.value_bytes)))
        waiting += 1
        if waiting == 32 or number == keys - 1:
            for _ in range(waiting):
                if redis.reply() != "OK":
                    raise Broken("a SET was not answered with OK")
            waiting = 0
    try:
        digest = redis.call("DEBUG", "DIGEST")
    except Broken:
        digest = None
    print(json.dumps({"ok": True, "keys": keys, "bytes": keys * args.value_bytes, "dbsize": redis.call("DBSIZE"),
                      "digest": digest}))


main()
