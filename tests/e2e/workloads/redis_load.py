"""An outside client that says how Redis serves over time: commands a second, and how long requests of a fixed rate take.

    redis_load.py HOST --report FILE [--rate 1000] [--keys 10000] [--value-bytes 256] [--sample-ms 20]

`--rate` requests a second are sent over one connection whether or not the last answer is there (open loop); a latency counts
from the moment at which the request was due. SETs and GETs of `load:NUMBER` take turns, and every GET must answer what was
set last. `--rate 0`: only Redis's own count of commands is sampled, for a load that comes from elsewhere.

SIGTERM ends it; the report has samples [unix ms, commands so far] and latencies [unix ms when due, microseconds].
"""

import argparse
import collections
import random
import select
import signal
import threading
import time

from common import Broken, Redis, write_json

# Answers that are due may take so long at the end.
DRAIN_S = 30


def key(number):
    return b"load:%012d" % number


class Load:
    def __init__(self, args):
        self.args = args
        self.stop = False
        self.reason = None
        self.samples, self.latencies = [], []
        self.sent = 0
        self.random = random.Random(1)
        self.body = bytes(self.random.randrange(33, 127) for _ in range(args.value_bytes))
        self.values = [self.value(number, 0) for number in range(args.keys)]
        redis = Redis(args.host)
        for first in range(0, args.keys, 500):
            numbers = range(first, min(first + 500, args.keys))
            redis.socket.sendall(b"".join(Redis.encode("SET", key(n), self.values[n]) for n in numbers))
            for _ in numbers:
                if redis.reply() != "OK":
                    raise Broken("a SET was not answered with OK")
        redis.socket.close()

    def value(self, number, version):
        return b"%d:%d:" % (number, version) + self.body

    def sample(self):
        try:
            redis = Redis(self.args.host, timeout=120)
            while not self.stop:
                info = redis.call("INFO", "stats").decode()
                commands = next(line for line in info.splitlines() if line.startswith("total_commands_processed:"))
                self.samples.append((time.time() * 1e3, int(commands.split(":")[1])))
                time.sleep(self.args.sample_ms / 1e3)
        except (OSError, Broken) as error:
            self.fail(f"the sampling connection: {error}")

    def fail(self, reason):
        self.reason = self.reason or reason
        self.stop = True

    def request(self):
        """The next request, and the answer that it must get."""
        number = self.random.randrange(self.args.keys)
        self.sent += 1
        if self.sent % 2:
            value = self.values[number] = self.value(number, self.sent)
            return Redis.encode("SET", key(number), value), b"+OK\r\n"
        value = self.values[number]
        return Redis.encode("GET", key(number)), b"$%d\r\n%s\r\n" % (len(value), value)

    def run(self):
        connection = Redis(self.args.host).socket
        connection.setblocking(False)
        poll = select.poll()
        interval = 1 / self.args.rate
        # What Python's clocks differ by; the wall clock of one machine does not jump in a benchmark.
        wall = time.time() - time.monotonic()
        due, until = time.monotonic() + interval, None
        out, answers, waiting = b"", b"", collections.deque()
        while not self.reason:
            now = time.monotonic()
            if self.stop:
                until = until or now + DRAIN_S
                if not waiting:
                    return
                if now > until:
                    return self.fail(f"{len(waiting)} requests were not answered within {DRAIN_S} s")
            while due <= now and not self.stop:
                request, expected = self.request()
                out += request
                waiting.append((due, expected))
                due += interval
            poll.register(connection, select.POLLIN | (select.POLLOUT if out else 0))
            poll.poll(max(0.0, min(due - time.monotonic(), 0.05)) * 1e3)
            try:
                if out:
                    out = out[connection.send(out):]
            except BlockingIOError:
                pass
            try:
                more = connection.recv(1 << 18)
                if not more:
                    return self.fail("the server closed the connection")
                answers += more
            except BlockingIOError:
                continue
            now = time.monotonic()
            while waiting and len(answers) >= len(waiting[0][1]):
                was_due, expected = waiting.popleft()
                if not answers.startswith(expected):
                    return self.fail(f"the answer was {answers[:60]!r} and not {expected[:60]!r}")
                answers = answers[len(expected):]
                self.latencies.append(((was_due + wall) * 1e3, round((now - was_due) * 1e6)))

    def report(self):
        write_json(self.args.report, {
            "ok": self.reason is None and len(self.samples) > 1, "reason": self.reason, "sent": self.sent,
            "replies": len(self.latencies), "samples": self.samples, "latencies": self.latencies})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("--report", required=True)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--keys", type=int, default=10000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--sample-ms", type=float, default=20)
    load = Load(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: setattr(load, "stop", True))
    sampler = threading.Thread(target=load.sample, daemon=True)
    sampler.start()
    print("ready", flush=True)
    if load.args.rate:
        try:
            load.run()
        except OSError as error:
            load.fail(f"the connection broke: {error}")
    else:
        while not load.stop:
            time.sleep(0.05)
    sampler.join(10)
    load.report()


main()
