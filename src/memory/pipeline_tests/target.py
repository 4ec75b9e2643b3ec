# A process that owns memory and changes it on command: the target of the page plane's tests. One command a line, one answer a line.
import ctypes, mmap, os, signal, sys

libc = ctypes.CDLL(None)
regions = {}


def address(region):
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def serve():
    for line in sys.stdin:
        word, *args = line.split()
        answer = "ok"
        if word == "map":  # name pages private|shared|droppable
            kind = {"private": mmap.MAP_PRIVATE, "shared": mmap.MAP_SHARED, "droppable": 8}[args[2]]
            try:
                region = regions[args[0]] = mmap.mmap(-1, int(args[1]) * 4096, kind | mmap.MAP_ANONYMOUS)
                answer = str(address(region))
            except OSError:
                answer = "0"
        elif word == "noise":  # name first count
            first, count = int(args[1]) * 4096, int(args[2]) * 4096
            regions[args[0]][first:first + count] = os.urandom(count)
        elif word == "fill":  # name first count byte
            first, count = int(args[1]) * 4096, int(args[2]) * 4096
            regions[args[0]][first:first + count] = bytes([int(args[3])]) * count
        elif word == "text":  # name first count: every page different, all of them compressible
            for page in range(int(args[1]), int(args[1]) + int(args[2])):
                regions[args[0]][page * 4096:page * 4096 + 4096] = (b"page %d of many. " % page * 400)[:4096]
        elif word == "copy":  # from first count to first
            first, count, to = int(args[1]) * 4096, int(args[2]) * 4096, int(args[4]) * 4096
            regions[args[3]][to:to + count] = regions[args[0]][first:first + count]
        elif word == "drop":  # name first count
            regions[args[0]].madvise(mmap.MADV_DONTNEED, int(args[1]) * 4096, int(args[2]) * 4096)
        elif word == "protect":  # name: nobody may read it any more
            region = regions[args[0]]
            assert libc.mprotect(ctypes.c_void_p(address(region)), ctypes.c_size_t(len(region)), 0) == 0
        elif word == "fork":
            pid = os.fork()
            if pid == 0:
                libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                signal.pause()
            answer = str(pid)
        elif word == "kill":
            os.kill(int(args[0]), signal.SIGKILL)
            os.waitpid(int(args[0]), 0)
        elif word == "churn":  # name pages: write random pages for ever, in a thread, while commands go on
            import random, threading

            def churn(region, pages):
                while True:
                    page = random.randrange(pages)
                    region[page * 4096:page * 4096 + 64] = os.urandom(64)

            threading.Thread(target=churn, args=(regions[args[0]], int(args[1])), daemon=True).start()
        elif word == "leave":  # the first thread ends, another lives on
            import threading, time

            threading.Thread(target=time.sleep, args=(60,)).start()
            print("ok", flush=True)
            libc.pthread_exit(None)
        print(answer, flush=True)


serve()
