"""Forks and executes programs all the time; what is counted goes through pipes, memory and a file from one to the next.

    forker.py [--mib 32] [--volume /vol]

    main ──fork── child that looks at memory it inherited, answers through a pipe, ends
      └───exec── sh, which starts cat, which sends a number on

VOLUME/verify        write a word into it: every line of the file and all memory are checked, and
VOLUME/report.json   says {"ok": true, "token": the word, "rounds": …}, or {"ok": false, "reason": …}.
"""

import argparse
import mmap
import os
import subprocess
import sys
import time

from common import PAGE, Broken, Pages, pattern, write_json


class Forker:
    def __init__(self, args):
        self.volume, self.count = args.volume, (args.mib << 20) // PAGE
        self.memory = mmap.mmap(-1, args.mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.pages = Pages(self.memory, 41, self.count, "memory of all generations")
        self.pages.fill()
        self.rounds = 0
        self.lines = open(os.path.join(self.volume, "lines"), "w")

    def executed(self):
        """Another program, and one that it starts, add one to a number."""
        script = "read n; echo $((n + 1)) | cat"
        done = subprocess.run(["sh", "-c", script], input=f"{self.rounds}\n", stdout=subprocess.PIPE, text=True, check=True)
        if done.stdout != f"{self.rounds + 1}\n":
            raise Broken(f"{self.rounds} came back as {done.stdout!r}")

    def forked(self):
        """A child writes into memory that it shares until then, and answers; the parent changes the same page meanwhile."""
        at = self.rounds % self.count
        inherited = self.pages.seen[at]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                time.sleep(0.02)
                self.pages.check(at)
                self.pages.write(at, inherited + 1000)
                self.pages.check(at)
                for other in range(at, self.count, 97):
                    self.pages.check(other)
                os.write(writer, pattern(42, self.rounds, 0, 4000))
                os._exit(0)
            except Broken as error:
                print(error, file=sys.stderr)
                os.write(writer, str(error).encode())
                os._exit(1)
        os.close(writer)
        self.pages.write(at, inherited + 1)
        said = b""
        while more := os.read(reader, 65536):
            said += more
        os.close(reader)
        _, status = os.waitpid(child, 0)
        if status or said != pattern(42, self.rounds, 0, 4000):
            raise Broken(f"round {self.rounds}: the child ended with {status} and said {said[:200]!r}")
        self.pages.check(at)

    def step(self):
        self.executed()
        self.forked()
        self.rounds += 1
        self.lines.write(f"{self.rounds}\n")
        self.lines.flush()

    def check_all(self):
        self.pages.check_all()
        with open(os.path.join(self.volume, "lines")) as file:
            found = [int(line) for line in file]
        if found != list(range(1, self.rounds + 1)):
            raise Broken(f"of {self.rounds} lines {len(found)} are there, or not in order")


def asked(volume):
    try:
        with open(os.path.join(volume, "verify")) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--volume", default="/vol")
    args = parser.parse_args()
    report, said = os.path.join(args.volume, "report.json"), ""
    forker = Forker(args)
    try:
        while True:
            forker.step()
            token = asked(args.volume)
            if token != said:
                forker.check_all()
                said = token
                write_json(report, {"ok": True, "token": token, "rounds": forker.rounds, "checked": forker.pages.checked})
            time.sleep(0.005)
    except (Broken, OSError, subprocess.SubprocessError) as error:
        reason = f"{type(error).__name__}: {error}"
    while True:
        write_json(report, {"ok": False, "token": asked(args.volume), "reason": reason})
        time.sleep(0.1)


main()
