"""subject.py FOLDER: memory of every kind in a parent and a forked child, which check it when they are told to.

USR1: check everything, write ok.VPID or bad.VPID. USR2: change mappings, write changed.VPID."""
import ctypes, os, signal, sys

folder = sys.argv[1]
os.closerange(0, 1024)
for _ in range(3):
    os.open("/dev/null", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, MIB = 4096, 1 << 20
NOHUGEPAGE, GUARD_INSTALL, READ_WRITE, PRIVATE_ANONYMOUS, FIXED, NORESERVE = 15, 102, 3, 0x22, 0x10, 0x4000
# Everything lies apart in one reserved range, because the kernel merges neighbours.
base = libc.mmap(None, 512 * MIB, 0, PRIVATE_ANONYMOUS | NORESERVE, -1, 0)


def place(at_mib, mib):
    address = libc.mmap(base + at_mib * MIB, mib * MIB, READ_WRITE, PRIVATE_ANONYMOUS | FIXED, -1, 0)
    assert address == base + at_mib * MIB
    libc.madvise(address, mib * MIB, NOHUGEPAGE)
    return address


def word(address):
    return (address // PAGE * 2654435761 & 0xFFFFFFFF).to_bytes(4, "little") * 16


def fill(address, mib, step=1):
    for page in range(address, address + mib * MIB, step * PAGE):
        ctypes.memmove(page + 128, word(page), 64)


def wrong(address, mib, step=1):
    pages = range(0, mib * MIB // PAGE)
    content = lambda i: word(address + i * PAGE) if i % step == 0 else bytes(64)
    return sum(ctypes.string_at(address + i * PAGE + 128, 64) != content(i) for i in pages)


big, locked, small, guarded = place(1, 64), place(128, 16), place(160, 4), place(192, 16)
fill(big, 64)
fill(locked, 16)
assert libc.mlock(locked, 16 * MIB) == 0
fill(small, 4, 3)
fill(guarded, 8)
# From Linux 6.13 on.
guards = libc.madvise(guarded + 12 * MIB, 64 * PAGE, GUARD_INSTALL) == 0
parent = os.fork() != 0


def vpid():
    return os.getpid()


def guard_holds():
    """A page under a guard marker cannot be read, not even by the kernel for us."""
    reading, writing = os.pipe()
    got = libc.write(writing, ctypes.c_void_p(guarded + 12 * MIB), 1)
    os.close(reading)
    os.close(writing)
    return got == -1


def say(name, text):
    with open(f"{folder}/{name}.{vpid()}.new", "w") as file:
        file.write(text)
    os.rename(f"{folder}/{name}.{vpid()}.new", f"{folder}/{name}.{vpid()}")


def check(*_):
    bad = {"big": wrong(big, 64), "small": wrong(small, 4, 3), "guarded": wrong(guarded, 8)}
    bad["locked"] = wrong(locked, 16)
    status = open("/proc/self/status").read()
    bad["lock"] = parent and f"VmLck:\t{16384:>8} kB" not in status
    bad["guard"] = guards and not guard_holds()
    say("bad" if any(bad.values()) else "ok", str(bad) + status)


def change(*_):
    libc.munmap(big + 32 * MIB, PAGE)
    fill(place(224, 8), 8)
    say("changed", "")


signal.signal(signal.SIGUSR1, check)
signal.signal(signal.SIGUSR2, change)
say("ready", f"{big:x} {locked:x} {small:x} {guarded:x}")
while True:
    signal.pause()
