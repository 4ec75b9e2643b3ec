"""Plays a restored task: memory registered with a userfaultfd as CRIU's restorer does it, and CRIU's side of the socket.

Every page with content holds one 64-bit word, repeated, that names the page; every other page is zero. Commands come in lines on
standard input, answers go out in lines.
"""
import ctypes
import fcntl
import mmap
import os
import random
import socket
import struct
import sys
import threading
import time

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.memcmp.argtypes = libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PRIVATE_ANONYMOUS, FIXED = 0x22, 0x10
ZERO = bytes(PAGE)


def have_content(page):
    return page % 64 < 60


def expected(page):
    return struct.pack("<Q", (page + 1) * 0x100000001) * 512 if have_content(page) else ZERO


def map_at(address, pages, flags=0):
    got = libc.mmap(address, pages * PAGE, 3, PRIVATE_ANONYMOUS | flags, -1, 0)
    if got in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return got


class Memory:
    def __init__(self, pages):
        # Aligned and without huge pages, so that the kernel gives exactly the pages that are asked for.
        self.pages, self.base = pages, map_at(None, pages)
        libc.madvise(self.base, pages * PAGE, 15)

    def address(self, page):
        return self.base + page * PAGE

    def check_at(self, address, want, what):
        # memcmp without the interpreter's lock: the other threads run on while this one waits for its page.
        if libc.memcmp(address, want, PAGE) != 0:
            got = ctypes.string_at(address, 16).hex()
            raise AssertionError(f"{what} at {address:x} holds {got}, not {want[:8].hex()}")

    def check(self, page):
        self.check_at(self.address(page), expected(page), f"page {page}")

    def check_all(self, step=1):
        for page in range(self.pages)[::step]:
            self.check(page)


def lend(memory, vpid, connect):
    """What CRIU and its restorer do: register, hand over, close."""
    uffd = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    assert uffd >= 0, os.strerror(ctypes.get_errno())
    features = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
    fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("<QQQ", 0xAA, features, 0))
    fcntl.ioctl(uffd, 0xC020AA00, struct.pack("<QQQQ", memory.base, memory.pages * PAGE, 1, 0))
    criu = connect()
    criu.send(struct.pack("<i", vpid))
    socket.send_fds(criu, [b"\0"], [uffd])
    os.close(uffd)
    return criu


def connection(folder):
    criu = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = os.open(folder, os.O_RDONLY)
    criu.connect(f"/proc/self/fd/{here}/lazy-pages.socket")
    os.close(here)
    # A zombie, first of all.
    criu.send(struct.pack("<i", -7))
    return criu


def connection_of(pid):
    """The connection that another process has made: CRIU's processes inherit it."""
    pidfd = os.pidfd_open(pid)
    for number in os.listdir(f"/proc/{pid}/fd"):
        if int(number) > 2:
            fd = libc.syscall(438, pidfd, int(number), 0)
            if fd >= 0 and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                return socket.socket(fileno=fd)
    raise OSError("no connection")


def touch(memory, seed, count):
    numbers = random.Random(seed)
    for _ in range(count):
        memory.check(numbers.randrange(memory.pages))


def fork(memory, depth):
    """Parent and child read everything, in opposite directions; the child forks once more."""
    child = os.fork()
    if child == 0:
        try:
            if depth > 1:
                fork(memory, depth - 1)
            memory.check_all(-1)
            os._exit(0)
        except BaseException as error:
            print(f"child: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    memory.check_all()
    assert os.waitpid(child, 0)[1] == 0, "the child saw wrong memory"


def remap(memory):
    half = memory.pages // 2
    for step in range(8):
        # Pieces of 1/16 of the memory, from the end, each to a place of its own.
        size = memory.pages // 16
        first = memory.pages - (step + 1) * size
        assert first >= half
        target = map_at(None, size)
        moved = libc.mremap(memory.address(first), size * PAGE, size * PAGE, 3, target)
        assert moved == target, os.strerror(ctypes.get_errno())
        for page in range(first, first + size, 7):
            memory.check_at(target + (page - first) * PAGE, expected(page), f"moved page {page}")
        # What is mapped anew at the old place is empty and stays so.
        assert map_at(memory.address(first), size, FIXED) == memory.address(first)
        memory.check_at(memory.address(first), ZERO, "the old place")
    for page in range(half):
        memory.check(page)


def dontneed(memory, seed, loops):
    """One thread gives pages back while another one reads: what was given back is zero, or what was written since."""
    half = memory.pages // 2
    stop = threading.Event()
    failure = []

    def reader():
        numbers = random.Random(seed + 1)
        try:
            while not stop.is_set():
                memory.check(half + numbers.randrange(memory.pages - half))
        except AssertionError as error:
            failure.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    numbers, written = random.Random(seed), {}
    for _ in range(loops):
        first = numbers.randrange(half - 64)
        count = numbers.randrange(1, 64)
        assert libc.madvise(memory.address(first), count * PAGE, 4) == 0
        for page in range(first, first + count):
            written[page] = ZERO
        for page in range(first, first + count, 5):
            memory.check_at(memory.address(page), ZERO, "given back page")
            if page % 2:
                written[page] = bytes([page % 255 + 1]) * PAGE
                libc.memcpy(memory.address(page), written[page], PAGE)
    for _ in range(2):
        for page in range(half):
            memory.check_at(memory.address(page), written.get(page, expected(page)), f"page {page}")
        time.sleep(0.05)
    stop.set()
    thread.join()
    if failure:
        raise failure[0]


def unmap(memory):
    for first in range(0, memory.pages - 128, 512):
        assert libc.munmap(memory.address(first), 64 * PAGE) == 0
        assert map_at(memory.address(first), 64, FIXED) == memory.address(first)
        memory.check_at(memory.address(first + 3), ZERO, "a new mapping")
        memory.check(first + 100)
    for page in range(memory.pages):
        fresh = page < memory.pages - 128 and page % 512 < 64
        memory.check_at(memory.address(page), ZERO if fresh else expected(page), f"page {page}")


def write(memory, seed):
    """Pages that are written, wholly or in part, keep what was written."""
    numbers, pages = random.Random(seed), {}
    for _ in range(2000):
        page = numbers.randrange(memory.pages)
        want = bytearray(pages.get(page, expected(page)))
        want[100:108] = b"written!"
        libc.memcpy(memory.address(page) + 100, b"written!", 8)
        pages[page] = bytes(want)
    for _ in range(2):
        for page in range(memory.pages):
            memory.check_at(memory.address(page), pages.get(page, expected(page)), f"page {page}")
        time.sleep(0.05)


def spin(memory, bad):
    """Reads until it is killed; a wrong page is written down first. Several processes, so that several wait at once."""
    for number in range(3):
        if os.fork() == 0:
            numbers = random.Random(number)
            while True:
                page = numbers.randrange(memory.pages)
                try:
                    memory.check(page)
                except AssertionError as error:
                    with open(bad, "a") as file:
                        file.write(f"{error}\n")
                    os._exit(1)


def bulk(pages):
    """MiB per second of one thread that does nothing but install pages it has at hand."""
    memory, source = Memory(pages), ctypes.create_string_buffer(1 << 20)
    ctypes.memset(source, 7, len(source))
    uffd = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("<QQQ", 0xAA, 0, 0))
    fcntl.ioctl(uffd, 0xC020AA00, struct.pack("<QQQQ", memory.base, pages * PAGE, 1, 0))
    start = time.perf_counter()
    for offset in range(0, pages * PAGE, len(source)):
        copy = struct.pack("<QQQQQ", memory.base + offset, ctypes.addressof(source), len(source), 0, 0)
        fcntl.ioctl(uffd, 0xC028AA03, copy)
    seconds = time.perf_counter() - start
    os.close(uffd)
    libc.munmap(memory.base, pages * PAGE)
    return f"{pages / 256 / seconds:.0f}"


def latency(memory, count):
    """Microseconds of single touches, median and 99th of a hundred."""
    numbers, times = random.Random(5), []
    word = ctypes.create_string_buffer(8)
    for _ in range(count):
        address = memory.address(numbers.randrange(memory.pages))
        start = time.perf_counter_ns()
        libc.memcpy(word, address, 8)
        times.append(time.perf_counter_ns() - start)
    # A touch of a page that is there takes less than this.
    faults = sorted(t for t in times if t > 4000) or [0]
    return f"{len(faults)} of {count} touches waited, p50 {faults[len(faults) // 2] / 1000:.0f} us, p99 {faults[len(faults) * 99 // 100] / 1000:.0f} us"


def main():
    vpid, pages, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    memory, criu = Memory(pages), None
    print(memory.base, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        try:
            said = "ok"
            if word == "lend":
                criu = lend(memory, vpid, lambda: connection(folder))
            elif word == "lend-through":
                lend(memory, vpid, lambda: connection_of(int(rest[0]))).close()
            elif word == "restored":
                criu.send(struct.pack("<I", 0x52535446))
            elif word == "hangup":
                criu.close()
            elif word == "touch":
                touch(memory, int(rest[0]), int(rest[1]))
            elif word == "all":
                memory.check_all()
            elif word == "fork":
                fork(memory, 3)
            elif word == "remap":
                remap(memory)
            elif word == "dontneed":
                dontneed(memory, int(rest[0]), int(rest[1]))
            elif word == "unmap":
                unmap(memory)
            elif word == "write":
                write(memory, int(rest[0]))
            elif word == "spin":
                spin(memory, rest[0])
            elif word == "bulk":
                said = bulk(int(rest[0]))
            elif word == "latency":
                said = latency(memory, int(rest[0]))
            else:
                said = f"no such command: {word}"
            print(said, flush=True)
        except Exception as error:
            print(f"bad: {error}", flush=True)


main()
