"""An outside client: INCRs one key every millisecond over one connection, whether or not the last answer is there.

    incr.py HOST --report FILE [--key counter] [--interval-ms 1] [--allow-reconnect] [--latencies FILE]

Every answer must be the one before plus one. SIGUSR1 writes the report and goes on; SIGTERM stops sending, waits for the
answers that are due, writes the report and ends. Exit code 1 when an answer was wrong, missing, or the connection broke.

A latency counts from the moment at which the request was due, not from when it could be sent, so a stall is seen by every
request that it delayed. A gap is the time between two answers.
"""

import argparse
import collections
import os
import select
import signal
import socket
import sys
import threading
import time

from common import Broken, Redis, write_json

DRAIN_S = 30
GAPS_KEPT = 20


class Client:
    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.due = collections.deque()
        self.latencies_us = []
        self.gaps = []
        self.last_value = None
        self.last_reply = None
        self.first_value = None
        self.replies = self.sent = self.reconnects = self.lost = 0
        self.reason = None
        self.stop = self.sender_done = False
        self.redis = None
        self.started = time.time()

    def fail(self, reason):
        self.reason = self.reason or reason
        self.stop = True

    def connect(self):
        self.redis = Redis(self.args.host, timeout=10)
        # Nothing but the loops below may decide that the server is too slow.
        self.redis.socket.settimeout(None)
        return self.redis

    def send_until_stopped(self):
        try:
            self.send_forever()
        finally:
            self.sender_done = True

    def send_forever(self):
        request = Redis.encode("INCR", self.args.key)
        interval = self.args.interval_ms / 1e3
        due = time.monotonic()
        while not self.stop:
            due += interval
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            redis = self.redis
            if redis is None:
                # Reconnecting: requests that would have been due are not made up for.
                due = time.monotonic()
                time.sleep(0.001)
                continue
            with self.lock:
                self.due.append(due)
            try:
                redis.socket.sendall(request)
                self.sent += 1
            except OSError:
                # The receiver sees the same and decides.
                with self.lock:
                    if self.due:
                        self.due.pop()
                time.sleep(0.01)

    def took(self, value):
        now, wall = time.monotonic(), time.time()
        with self.lock:
            due = self.due.popleft()
        if self.last_value is not None and value != self.last_value + 1:
            self.fail(f"the answer after {self.last_value} was {value}")
        if self.first_value is None:
            self.first_value = value
        if self.last_reply is not None:
            gap = now - self.last_reply
            if len(self.gaps) < GAPS_KEPT or gap > self.gaps[-1][0]:
                self.gaps.append((gap, wall - gap))
                self.gaps.sort(reverse=True)
                del self.gaps[GAPS_KEPT:]
        self.last_value, self.last_reply = value, now
        self.latencies_us.append(round((now - due) * 1e6))
        self.replies += 1

    def receive_forever(self):
        stopped = None
        while True:
            if self.stop:
                stopped = stopped or time.monotonic()
                # The sender may be between looking at `stop` and sending.
                if self.reason or (self.sender_done and not self.due):
                    return
                if time.monotonic() - stopped > DRAIN_S:
                    return self.fail(f"{len(self.due)} requests were not answered within {DRAIN_S} s")
            try:
                # A reply is short: once its first byte is here the rest follows.
                if not self.redis.file.peek_ready(0.05):
                    continue
                self.took(self.redis.reply())
            except (ConnectionError, TimeoutError, OSError) as error:
                self.reconnects += 1
                if not self.args.allow_reconnect:
                    return self.fail(f"the connection broke: {error}")
                self.again()
            except Broken as error:
                return self.fail(str(error))

    def again(self):
        """A new connection: what was under way may or may not have been done."""
        self.redis = None
        with self.lock:
            self.lost += len(self.due)
            self.due.clear()
        self.last_value = None
        while not self.stop:
            try:
                redis = Redis(self.args.host, timeout=1)
                redis.socket.settimeout(None)
                self.prepare(redis)
                self.redis = redis
                return
            except OSError:
                time.sleep(0.01)

    @staticmethod
    def prepare(redis):
        """Lets the receiver wait for an answer without giving up the right to stop."""
        redis.file = Reader(redis.socket)

    def report(self):
        latencies = sorted(self.latencies_us)
        at = lambda share: latencies[min(len(latencies) - 1, int(len(latencies) * share))] if latencies else None
        gaps = [{"ms": gap * 1e3, "from_unix_ms": wall * 1e3, "to_unix_ms": (wall + gap) * 1e3} for gap, wall in self.gaps]
        ok = self.reason is None and self.replies > 0 and (self.args.allow_reconnect or self.reconnects == 0)
        write_json(self.args.report, {
            "ok": ok, "reason": self.reason, "sent": self.sent, "replies": self.replies, "waiting": len(self.due),
            "first_value": self.first_value, "last_value": self.last_value, "reconnects": self.reconnects,
            "lost": self.lost, "seconds": time.time() - self.started,
            "latency_us": {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)},
            "worst_gap_ms": gaps[0]["ms"] if gaps else None, "gaps": gaps,
        })
        if self.args.latencies:
            with open(self.args.latencies, "w") as file:
                file.writelines(f"{us}\n" for us in list(self.latencies_us))
        return ok


class Reader:
    """Buffered lines from a socket, with a wait that ends."""

    def __init__(self, connection):
        self.socket, self.buffer = connection, b""

    def peek_ready(self, seconds):
        return b"\n" in self.buffer or bool(select.select([self.socket], [], [], seconds)[0])

    def readline(self):
        while b"\n" not in self.buffer:
            more = self.socket.recv(1 << 16)
            if not more:
                return b""
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line + b"\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("--report", required=True)
    parser.add_argument("--key", default="counter")
    parser.add_argument("--interval-ms", type=float, default=1)
    parser.add_argument("--allow-reconnect", action="store_true")
    parser.add_argument("--latencies")
    client = Client(parser.parse_args())
    # The two threads hand the interpreter to each other every millisecond; the default is five.
    sys.setswitchinterval(0.0002)
    client.prepare(client.connect())
    signal.signal(signal.SIGTERM, lambda *_: setattr(client, "stop", True))
    signal.signal(signal.SIGUSR1, lambda *_: client.report())
    sender = threading.Thread(target=client.send_until_stopped, daemon=True)
    sender.start()
    client.receive_forever()
    client.stop = True
    sender.join(1)
    ok = client.report()
    os._exit(0 if ok else 1)


main()
