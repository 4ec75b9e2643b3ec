/* What mapfuzz.c stands on: threads and their regions, shadows, contents that follow from a key, and how a failure is told. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define MAYBE (1ull << 63)
#define REGIONS 40
#define PAGES_MAX 12000ul /* of one thread */
#define BIG 2304ul        /* pages of a big region: 9 MiB */
#define THREADS_MAX 8
#define CHILDREN 2

enum { MAP, UNMAP, OVER, MOVE, GROW, SHRINK, LEAVE, BRK, PROTECT, DONTNEED, LAZYFREE, HUGE, WRITE, CHECK, FORK, OPS };
static const char *const NAMES[OPS] = {"mmap", "munmap", "fixed", "move", "grow", "shrink", "dontunmap", "brk", "mprotect",
                                       "dontneed", "free", "hugepage", "write", "check", "fork"};
static const int WEIGHTS[OPS] = {6, 4, 4, 5, 4, 3, 2, 4, 6, 5, 3, 3, 40, 40, 2};

struct region {
    unsigned char *at;
    uint64_t *shadow;
    size_t pages;
    int prot;
    int whole; /* one mapping as far as we know: may be moved and resized */
};

struct thread {
    pthread_t id;
    int number;
    uint64_t state;
    uint64_t keys;
    struct region regions[REGIONS];
    int count;
    size_t pages;
    pid_t children[CHILDREN];
    struct region heap;
    atomic_ulong done[OPS];
    atomic_ulong checked;
    atomic_int verified;
};

static struct thread *threads;
static int thread_count = 3;
static long pause_us = 300;
static const char *dir = "/vol";
static uint64_t seed = 1;
static atomic_int wanted; /* verification that threads are asked for */
static atomic_int spoil;
static atomic_int failed;
static int may_be_refused;
static atomic_int refusals;

static void write_file(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void write_file(const char *name, const char *format, ...)
{
    char text[2048], path[256], fresh[260];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    snprintf(fresh, sizeof fresh, "%s.%d", path, getpid());
    int fd = open(fresh, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, length) != length || rename(fresh, path) != 0)
        _exit(3);
    close(fd);
}

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *format, ...)
{
    char why[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    /* The first reason stays: a parent only knows that its child has ended. */
    char first[256];
    snprintf(first, sizeof first, "%s/failure.json", dir);
    if (!atomic_exchange(&failed, 1) && access(first, F_OK) != 0)
        write_file("failure.json", "{\"ok\": false, \"reason\": \"%s\", \"seed\": %lu}\n", why, seed);
    _exit(1);
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t next(struct thread *t)
{
    return mix(t->state += 0x9e3779b97f4a7c15ull);
}

static size_t below(struct thread *t, size_t n)
{
    return next(t) % n;
}

static void *map(void *at, size_t pages, int prot, int flags)
{
    void *got = mmap(at, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (got == MAP_FAILED)
        die("mmap of %zu pages: %s", pages, strerror(errno));
    return got;
}

static void unmap(void *at, size_t pages)
{
    if (munmap(at, pages * PAGE) != 0)
        die("munmap: %s", strerror(errno));
}

static uint64_t *shadow_of(size_t pages)
{
    return map(NULL, (pages * 8 + PAGE - 1) / PAGE, PROT_READ | PROT_WRITE, 0);
}

static void drop_shadow(uint64_t *shadow, size_t pages)
{
    unmap(shadow, (pages * 8 + PAGE - 1) / PAGE);
}

static void put(unsigned char *page, uint64_t key)
{
    uint64_t *words = (uint64_t *)page;
    for (size_t i = 0; i < WORDS; i++)
        words[i] = mix(key + i * 0x9e3779b97f4a7c15ull);
}

static int holds(const unsigned char *page, uint64_t key)
{
    const uint64_t *words = (const uint64_t *)page;
    for (size_t i = 0; i < WORDS; i++)
        if (words[i] != (key ? mix(key + i * 0x9e3779b97f4a7c15ull) : 0))
            return 0;
    return 1;
}

static void write_page(struct thread *t, struct region *r, size_t n)
{
    uint64_t key = mix(((uint64_t)(t->number + 1) << 48) + ++t->keys + seed * 0x100000001ull) & ~MAYBE;
    r->shadow[n] = key | (key == 0);
    put(r->at + n * PAGE, r->shadow[n]);
}

static void check_page(struct thread *t, struct region *r, size_t n, const char *who)
{
    uint64_t is = r->shadow[n], key = is & ~MAYBE;
    const unsigned char *page = r->at + n * PAGE;
    if (holds(page, key)) {
        atomic_fetch_add(&t->checked, 1);
        return;
    }
    if ((is & MAYBE) && holds(page, 0)) {
        r->shadow[n] = 0;
        atomic_fetch_add(&t->checked, 1);
        return;
    }
    const uint64_t *words = (const uint64_t *)page;
    die("%s of thread %d: page %zu of %zu at %p should be %s %#lx, but begins with %#lx, ends with %#lx%s", who, t->number, n,
        r->pages, (const void *)page, is & MAYBE ? "zeros or" : key ? "from" : "zeros,", key, words[0], words[WORDS - 1],
        holds(page, 0) ? ": all zeros" : "");
}

static void check_region(struct thread *t, struct region *r, const char *who)
{
    if (r->prot == PROT_NONE && mprotect(r->at, r->pages * PAGE, PROT_READ) != 0)
        die("mprotect for a check: %s", strerror(errno));
    for (size_t n = 0; n < r->pages; n++)
        check_page(t, r, n, who);
    if (r->prot == PROT_NONE)
        mprotect(r->at, r->pages * PAGE, PROT_NONE);
}

static void check_all(struct thread *t, const char *who)
{
    for (int i = 0; i < t->count; i++)
        check_region(t, &t->regions[i], who);
    if (t->heap.pages)
        check_region(t, &t->heap, who);
}
