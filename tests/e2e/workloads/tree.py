"""A process tree that uses most of what a container can hold, and checks all of it all the time.

    tree.py [--volume /vol] [--tmpfs /scratch] [--pages 4096] [--periodic-timerfd]

    main ──fork── worker     memory shared copy-on-write, MAP_SHARED memory, pipes, TCP and UNIX sockets on localhost
      ├───fork── ticker      wakes every millisecond, measures how long it did not run
      └───exec── sleep       another program in the tree

VOLUME/status.json   one line, five times a second: {"ok": true, counters…} or {"ok": false, "reason": …}
VOLUME/verify        write a word into it (or send SIGUSR1 to the first process): everything is checked, including every
                     line of the appended files and all file attributes, and
VOLUME/report.json   says {"ok": true, "token": the word, …}
Exit code 1 as soon as a check fails.
"""

import argparse
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

from common import PAGE, Broken, Pages, Ticker, pattern, write_json

MESSAGE = struct.Struct("<8sQI12x")
MAGIC = b"decamp-1"
# Words of the shared control page.
VERIFY, WORKER_DONE, PIPE, TCP, UNIX, TIMERFD, WORKER_PAGES, TICKS, GAP_MONO, GAP_REAL, GAP_FROM, STOP = range(12)


def message(seq):
    return MESSAGE.pack(MAGIC, seq, zlib.crc32(seq.to_bytes(8, "little")))


def sequence(data, last, where):
    magic, seq, crc = MESSAGE.unpack(data)
    if magic != MAGIC or crc != zlib.crc32(seq.to_bytes(8, "little")):
        raise Broken(f"{where}: a message is damaged: {data.hex()}")
    if seq != last + 1:
        raise Broken(f"{where}: message {seq} came after {last}")
    return seq


def read_exactly(fd, size, where):
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise Broken(f"{where}: the other end closed")
        data += more
    return data


class Appender:
    """A file that grows by lines with a checksum; read through a second descriptor that follows, and as a whole."""

    def __init__(self, path):
        self.path, self.lines, self.followed, self.rest = path, 0, 0, b""
        self.out = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o640)
        self.tail = os.open(path, os.O_RDONLY)

    def append(self):
        self.lines += 1
        os.write(self.out, self.line(self.lines))

    @staticmethod
    def line(number):
        text = b"%d %s" % (number, pattern(7, number, 0, 40).hex().encode())
        return b"%s %08x\n" % (text, zlib.crc32(text))

    def follow(self):
        self.rest += os.read(self.tail, 1 << 16)
        while b"\n" in self.rest:
            line, _, self.rest = self.rest.partition(b"\n")
            self.followed += 1
            if line + b"\n" != self.line(self.followed):
                raise Broken(f"{self.path}: line {self.followed} is {line[:120]!r}")

    def check_all(self):
        with open(self.path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        if len(lines) != self.lines:
            raise Broken(f"{self.path} has {len(lines)} lines, {self.lines} were written")
        for number, line in enumerate(lines, 1):
            if line != self.line(number):
                raise Broken(f"{self.path}: line {number} is {line[:120]!r}")


class Deleted:
    """A file without a name: only its descriptor holds it. Stays below CRIU's default limit for such files."""

    BLOCKS = 64

    def __init__(self, directory):
        path = os.path.join(directory, "deleted")
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
        os.unlink(path)
        self.versions = [0] * self.BLOCKS
        for block in range(self.BLOCKS):
            self.write(block)

    def write(self, block):
        self.versions[block] += 1
        os.pwrite(self.fd, pattern(11, block, self.versions[block], PAGE), block * PAGE)

    def check_all(self):
        for block, version in enumerate(self.versions):
            if os.pread(self.fd, PAGE, block * PAGE) != pattern(11, block, version, PAGE):
                raise Broken(f"the deleted file's block {block} is not version {version}")
        if os.fstat(self.fd).st_nlink != 0:
            raise Broken("the deleted file has a name again")


class Attributes:
    """Files that are more than their bytes: what is found at the end must be what was made at the start."""

    def __init__(self, directory):
        self.root = os.path.join(directory, "attributes")
        os.mkdir(self.root, 0o750)
        at = lambda name: os.path.join(self.root, name)
        with open(at("plain"), "wb") as file:
            file.write(pattern(13, 1, 1, 300_000))
        os.chmod(at("plain"), 0o4711)
        os.chown(at("plain"), 1234, 4321)
        os.setxattr(at("plain"), "user.decamp", b"\x00\xffvalue")
        # Changing owner or attributes changes the mode; last comes the time.
        os.chmod(at("plain"), 0o4711)
        os.link(at("plain"), at("hard"))
        os.symlink("../attributes/plain", at("soft"))
        os.symlink("/no/such/target", at("dangling"))
        os.mkfifo(at("fifo"), 0o604)
        with open(at("sparse"), "wb") as file:
            file.write(b"begin")
            file.seek(16 << 20)
            file.write(b"end")
        with open(at("empty"), "wb"):
            pass
        os.mkdir(at("dir"), 0o2770)
        os.chmod(at("dir"), 0o2770)
        with open(at("name with \xe4 and\nnewline".encode("latin-1").decode("utf-8", "surrogateescape")), "wb") as file:
            file.write(b"odd name")
        for name in os.listdir(self.root):
            os.utime(at(name), ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321), follow_symlinks=False)
        self.made = self.look()

    def look(self):
        found = {}
        for name in sorted(os.listdir(self.root)):
            path = os.path.join(self.root, name)
            stat = os.lstat(path)
            entry = [oct(stat.st_mode), stat.st_uid, stat.st_gid, stat.st_mtime_ns]
            if os.path.islink(path):
                entry.append(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    entry += [stat.st_size, stat.st_nlink, zlib.crc32(file.read())]
                entry += [(n, os.getxattr(path, n).hex()) for n in sorted(os.listxattr(path)) if n.startswith("user.")]
                entry.append("sparse" if stat.st_blocks * 512 < stat.st_size // 2 else "solid")
            found[name] = entry
        hard = [os.lstat(os.path.join(self.root, name)).st_ino for name in ("plain", "hard")]
        found["/same inode"] = hard[0] == hard[1]
        return found

    def check_all(self):
        now = self.look()
        if now != self.made:
            names = [n for n in self.made.keys() | now.keys() if self.made.get(n) != now.get(n)]
            raise Broken(f"{self.root}: " + "; ".join(f"{n!r}: {self.made.get(n)} became {now.get(n)}" for n in names))


class RootChanges:
    """Changes of the image's own files: one removed, one replaced, one folder emptied and made anew."""

    def __init__(self):
        os.unlink("/usr/bin/redis-benchmark")
        with open("/etc/issue", "w") as file:
            file.write("changed by tree.py\n")
        subprocess.run(["rm", "-rf", "/etc/redis"], check=True)
        os.mkdir("/etc/redis")
        with open("/etc/redis/new", "w") as file:
            file.write("new\n")

    def check_all(self):
        if os.path.lexists("/usr/bin/redis-benchmark"):
            raise Broken("a file of the image that was removed is there again")
        if os.listdir("/etc/redis") != ["new"]:
            raise Broken(f"the folder that was made anew holds {os.listdir('/etc/redis')}")
        with open("/etc/issue") as file:
            if file.read() != "changed by tree.py\n":
                raise Broken("the image's file that was changed has its old content")


class Tree:
    def __init__(self, args):
        self.args = args
        self.first = os.getpid()
        self.failure = os.path.join(args.volume, "failure")
        self.control_map = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self.control = memoryview(self.control_map).cast("Q")
        count = args.pages
        private = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.private = Pages(private, 1, count, "copy-on-write memory")
        self.private.fill()
        self.shared_map = mmap.mmap(-1, 256 * PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self.shared = self.shared_pages(0)
        Pages(self.shared_map, 2, 256, "shared memory").fill()
        self.shared.seen = [1] * 256
        self.tmpfs = self.file_pages(os.path.join(args.tmpfs, "mapped"), 3)
        self.volume = self.file_pages(os.path.join(args.volume, "mapped"), 4)
        self.appended = [Appender(os.path.join(args.volume, "append.log")), Appender("/var/tmp/append.log")]
        self.deleted = Deleted("/var/tmp")
        self.files = [Attributes(args.volume), Attributes("/var/tmp"), RootChanges()]
        # Write end first, then read end.
        self.to_worker = os.pipe()[::-1]
        self.to_main = os.pipe()
        self.counters = dict.fromkeys(["pipe", "tcp", "unix", "alarm", "verifications"], 0)
        self.token = self.asked = None

    def shared_pages(self, parity):
        return Pages(self.shared_map, 2, 256, "shared memory", lambda number: number % 2 == parity)

    @staticmethod
    def file_pages(path, seed):
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.ftruncate(fd, 64 * PAGE)
        pages = Pages(mmap.mmap(fd, 64 * PAGE, flags=mmap.MAP_SHARED), seed, 64, path)
        os.close(fd)
        pages.fill()
        return pages

    def guard(self, where, work):
        """Any failed check ends the whole tree, with its reason in a file."""
        try:
            work()
        except Exception as error:  # whatever it is, a workload that stopped checking must not look healthy
            reason = f"{where}: {type(error).__name__}: {error}"
            try:
                with open(self.failure, "x") as file:
                    file.write(reason)
            except FileExistsError:
                pass
            if os.getpid() == self.first:
                self.die()
            os._exit(1)

    def die(self):
        try:
            with open(self.failure) as file:
                reason = file.read()
        except OSError:
            reason = "a process of the tree ended"
        write_json(os.path.join(self.args.volume, "status.json"),
                   {"ok": False, "reason": reason, "unix_ms": time.time() * 1e3})
        os._exit(1)

    # The worker: a process of its own.

    def worker(self, listener, local):
        self.shared = self.shared_pages(1)
        self.shared.seen = [1] * 256
        threading.Thread(target=self.guard, args=("worker memory", self.worker_memory), daemon=True).start()
        self.guard("worker", lambda: self.serve(listener, local))

    def worker_memory(self):
        at = 0
        while True:
            # A third of the pages get a content of the worker's own, the rest stays shared with the parent.
            for number in range(at, at + 16):
                number %= self.private.count
                self.private.check(number)
                if number % 3 == 0:
                    self.private.bump(number)
            for number in range(256):
                if number % 16 == at // 16 % 16:
                    self.shared.check(number)
                    self.shared.bump(number)
            at += 16
            self.control[WORKER_PAGES] = self.private.checked + self.shared.checked
            asked = self.control[VERIFY]
            if asked != self.control[WORKER_DONE]:
                self.private.check_all()
                self.shared.check_all()
                self.control[WORKER_DONE] = asked
            time.sleep(0.01)

    def serve(self, listener, local):
        timer = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK)
        # CRIU 4.2.1 restores a periodic timerfd that expired while it was frozen without its next expiry (/proc/PID/fdinfo
        # says it_value 0), so it never fires again. One that is armed after each expiry is restored as it was.
        interval = 0.01 if self.args.periodic_timerfd else 0
        os.timerfd_settime(timer, initial=0.01, interval=interval)
        poll = select.epoll()
        inbox = self.to_worker[1]
        for fd in (timer, inbox, listener.fileno(), local.fileno()):
            poll.register(fd, select.EPOLLIN)
        last = {inbox: 0}
        connections = {}
        while True:
            for fd, _ in poll.poll():
                if fd == timer:
                    self.control[TIMERFD] += int.from_bytes(os.read(timer, 8), sys.byteorder)
                    if not interval:
                        os.timerfd_settime(timer, initial=0.01)
                elif fd == inbox:
                    data = read_exactly(inbox, MESSAGE.size, "pipe")
                    last[fd] = self.control[PIPE] = sequence(data, last[fd], "pipe")
                    os.write(self.to_main[1], data)
                elif fd in (listener.fileno(), local.fileno()):
                    server, word = (listener, TCP) if fd == listener.fileno() else (local, UNIX)
                    connection, _ = server.accept()
                    connections[connection.fileno()] = (connection, word)
                    last[connection.fileno()] = 0
                    poll.register(connection.fileno(), select.EPOLLIN)
                else:
                    connection, word = connections[fd]
                    data = read_exactly(fd, MESSAGE.size, "socket")
                    last[fd] = self.control[word] = sequence(data, last[fd], "socket")
                    connection.sendall(data)

    def ticker(self):
        ticker = Ticker()
        while True:
            ticker.tick()
            worst = ticker.gaps[0]
            self.control[TICKS] = ticker.ticks
            self.control[GAP_MONO], self.control[GAP_REAL] = max(worst[1], 0), max(worst[2], 0)
            self.control[GAP_FROM] = worst[3]

    # The first process.

    def echo(self, name, send, receive):
        """Numbers the messages from one on; each comes back before the next goes out."""
        seq = 0
        while True:
            send(message(seq + 1))
            seq = sequence(receive(), seq, name)
            self.counters[name] = seq
            time.sleep(0.003)

    def memory(self):
        at = 0
        while True:
            for number in range(at, at + 16):
                number %= self.private.count
                self.private.check(number)
                if number % 5 == 0:
                    self.private.bump(number)
            for pages in (self.shared, self.tmpfs, self.volume):
                for number in range(at % pages.count, at % pages.count + 4):
                    pages.check(number % pages.count)
                    pages.bump(number % pages.count)
            at += 16
            time.sleep(0.01)

    def start_thread(self, name, work):
        threading.Thread(target=self.guard, args=(name, work), daemon=True).start()

    def connect(self, listener, local):
        tcp = socket.create_connection(listener.getsockname())
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unix.connect(local.getsockname())
        for name, peer in (("tcp", tcp), ("unix", unix)):
            receive = lambda peer=peer, name=name: read_exactly(peer.fileno(), MESSAGE.size, name)
            self.start_thread(name, lambda name=name, peer=peer, receive=receive: self.echo(name, peer.sendall, receive))
        pipe_in = lambda: read_exactly(self.to_main[0], MESSAGE.size, "pipe")
        self.start_thread("pipe", lambda: self.echo("pipe", lambda data: os.write(self.to_worker[0], data), pipe_in))
        self.start_thread("memory", self.memory)

    def ask(self):
        """SIGUSR1: a word that was not used yet."""
        self.token = f"signal {self.counters['verifications'] + 1}"

    def count(self, what):
        self.counters[what] += 1

    def watch(self):
        verified = None
        said = 0.0
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] != 0:
                self.die()
            for file in self.appended:
                file.append()
                file.follow()
            self.deleted.write(self.appended[0].lines % Deleted.BLOCKS)
            try:
                with open(os.path.join(self.args.volume, "verify")) as file:
                    asked = file.read().strip()
                if asked and asked != self.asked:
                    self.token = self.asked = asked
            except FileNotFoundError:
                pass
            if self.token is not None and self.token != verified:
                self.verify(self.token)
                verified = self.token
            if time.monotonic() - said > 0.2:
                said = time.monotonic()
                write_json(os.path.join(self.args.volume, "status.json"), self.status())
            time.sleep(0.01)

    def status(self):
        checked = self.private.checked + self.shared.checked + self.tmpfs.checked + self.volume.checked
        return {"ok": True, "unix_ms": time.time() * 1e3, **self.counters, "appended": self.appended[0].lines,
                "timerfd": self.control[TIMERFD], "pages_checked": checked + self.control[WORKER_PAGES],
                "ticks": self.control[TICKS], "worst_gap_mono_ms": self.control[GAP_MONO] / 1e6,
                "worst_gap_real_ms": self.control[GAP_REAL] / 1e6, "worst_gap_from_unix_ms": self.control[GAP_FROM] / 1e6}

    def verify(self, token):
        """Everything once, and that everything that shall go on does go on."""
        before = self.status()
        self.control[VERIFY] += 1
        for part in [*self.appended, self.deleted, *self.files]:
            part.check_all()
        for attempt in range(3000):
            after = self.status()
            moving = [n for n in ("pipe", "tcp", "unix", "alarm", "timerfd", "ticks", "pages_checked") if after[n] <= before[n]]
            if not moving and self.control[WORKER_DONE] == self.control[VERIFY]:
                break
            time.sleep(0.01)
        else:
            raise Broken(f"no progress for 30 s: {moving or 'the worker'}")
        self.count("verifications")
        write_json(os.path.join(self.args.volume, "report.json"), {**self.status(), "token": token})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volume", default="/vol")
    parser.add_argument("--tmpfs", default="/scratch")
    parser.add_argument("--pages", type=int, default=4096)
    parser.add_argument("--periodic-timerfd", action="store_true")
    tree = Tree(parser.parse_args())
    sys.setswitchinterval(0.001)
    tree.guard("first process", lambda: serve(tree))


def serve(tree):
    listener = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    local.bind("/var/tmp/tree.sock")
    local.listen()
    for child in (lambda: tree.worker(listener, local), lambda: tree.guard("ticker", tree.ticker)):
        if os.fork() == 0:
            child()
            os._exit(1)
    sleeper = subprocess.Popen(["sleep", "infinity"])
    signal.signal(signal.SIGALRM, lambda *_: tree.count("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    signal.signal(signal.SIGUSR1, lambda *_: tree.ask())
    tree.connect(listener, local)
    tree.watch()
    del sleeper


main()
