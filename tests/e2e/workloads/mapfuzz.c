/* The mapping fuzzer: threads that map, unmap, map over, move, grow, protect, advise and fork without end, and know at every
 * moment what each of their pages must hold.
 *
 *     mapfuzz [--seed N] [--threads N] [--pause-us N] [--refused 0|1] [--dir /vol]
 *
 * Each thread has regions of its own. The shadow of a region has one word per page: 0, it reads as zeros; a key, it holds the
 * words that follow from the key; a key with MAYBE, it was freed lazily and holds either. Contents travel with the key when a
 * region moves, so a page of another place, another time or no place at all is noticed.
 *
 * Writes DIR/mapfuzz.json several times a second. DIR/failure.json: {"ok": false, "reason": ...}, and the end. A
 * word in DIR/verify makes every thread compare all it has; DIR/report.json then has that word as its token. DIR/spoil makes one
 * thread change a word behind the shadow's back, to see that this is noticed.
 *
 * After the start nothing here uses malloc: the heap's end (brk) is one of the things that are fuzzed. */

#include "mapfuzz.h"

static struct region *add(struct thread *t, void *at, uint64_t *shadow, size_t pages, int prot, int whole)
{
    struct region *r = &t->regions[t->count++];
    *r = (struct region){at, shadow, pages, prot, whole};
    t->pages += pages;
    return r;
}

static void forget(struct thread *t, struct region *r)
{
    drop_shadow(r->shadow, r->pages);
    t->pages -= r->pages;
    *r = t->regions[--t->count];
}

static void new_region(struct thread *t, size_t pages)
{
    if (t->count == REGIONS || t->pages + pages > PAGES_MAX)
        return;
    int flags = below(t, 4) == 0 ? MAP_NORESERVE : 0;
    struct region *r = add(t, map(NULL, pages, PROT_READ | PROT_WRITE, flags), shadow_of(pages), pages, PROT_READ | PROT_WRITE, 1);
    size_t every = 1 + below(t, 4);
    for (size_t n = below(t, every); n < pages; n += every)
        write_page(t, r, n);
}

/* Cuts pages [first, first + count) out: what is left may be two regions. */
static void cut(struct thread *t, struct region *r, size_t first, size_t count)
{
    if (first > 0 && first + count < r->pages && t->count == REGIONS)
        return;
    unmap(r->at + first * PAGE, count);
    struct region old = *r;
    size_t tail = old.pages - first - count;
    if (tail) {
        uint64_t *shadow = shadow_of(tail);
        memcpy(shadow, old.shadow + first + count, tail * 8);
        if (first == 0) {
            t->pages -= old.pages - tail;
            *r = (struct region){old.at + count * PAGE, shadow, tail, old.prot, old.whole};
            drop_shadow(old.shadow, old.pages);
            return;
        }
        add(t, old.at + (first + count) * PAGE, shadow, tail, old.prot, old.whole);
    }
    if (first == 0) {
        forget(t, r);
        return;
    }
    uint64_t *shadow = shadow_of(first);
    memcpy(shadow, old.shadow, first * 8);
    t->pages -= old.pages - first;
    *r = (struct region){old.at, shadow, first, old.prot, old.whole};
    drop_shadow(old.shadow, old.pages);
}

static void resize_shadow(struct thread *t, struct region *r, size_t pages)
{
    uint64_t *shadow = shadow_of(pages);
    memcpy(shadow, r->shadow, 8 * (pages < r->pages ? pages : r->pages));
    drop_shadow(r->shadow, r->pages);
    t->pages += pages - r->pages;
    r->shadow = shadow;
    r->pages = pages;
}

/* A remapping was refused. Fatal, with the mappings that the kernel sees where this one should be; or, with --refused 1 and when
 * those are several of which one is watched by a userfaultfd (EFAULT, mm/mremap.c), counted: what was asked for goes away. */
static void refused(struct thread *t, struct region *r, const char *what, void *to)
{
    int error = errno, used = 0, inside = 0, mappings = 0;
    char line[512], seen[400] = "";
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (smaps && fgets(line, sizeof line, smaps)) {
        unsigned long from, to_end;
        char flags[64];
        if (sscanf(line, "%lx-%lx", &from, &to_end) == 2) {
            inside = from < (uintptr_t)r->at + r->pages * PAGE && to_end > (uintptr_t)r->at;
            mappings += inside;
            if (inside && used < 300)
                used += snprintf(seen + used, sizeof seen - used, " %lx-%lx", from, to_end);
        } else if (inside && sscanf(line, "VmFlags: %63[^\n]", flags) == 1 && used < 300) {
            used += snprintf(seen + used, sizeof seen - used, " (%s)", flags);
        }
    }
    if (smaps)
        fclose(smaps);
    if (!may_be_refused || error != EFAULT || mappings < 2)
        die("%s: %s: %p has %zu pages, the kernel has%s", what, strerror(error), (void *)r->at, r->pages, seen);
    atomic_fetch_add(&refusals, 1);
    munmap(r->at, r->pages * PAGE);
    if (to)
        unmap(to, r->pages);
    forget(t, r);
}

static void move(struct thread *t, struct region *r)
{
    /* A reserved place that mremap maps over. */
    void *to = map(NULL, r->pages, PROT_NONE, MAP_NORESERVE);
    void *got = mremap(r->at, r->pages * PAGE, r->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (got == MAP_FAILED)
        refused(t, r, "mremap to another place", to);
    else
        r->at = got;
}

static void grow(struct thread *t, struct region *r)
{
    size_t pages = r->pages + 1 + below(t, r->pages / 2 + 1);
    if (t->pages + pages - r->pages > PAGES_MAX)
        return;
    void *got = mremap(r->at, r->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
    if (got == MAP_FAILED) {
        refused(t, r, "mremap to more pages", NULL);
        return;
    }
    r->at = got;
    resize_shadow(t, r, pages);
}

static void shrink(struct thread *t, struct region *r)
{
    size_t pages = 1 + below(t, r->pages);
    if (mremap(r->at, r->pages * PAGE, pages * PAGE, 0) == MAP_FAILED) {
        refused(t, r, "mremap to fewer pages", NULL);
        return;
    }
    resize_shadow(t, r, pages);
}

/* The pages go to a new place, and the old one stays, empty. */
static void leave(struct thread *t, struct region *r)
{
    if (t->count == REGIONS || t->pages + r->pages > PAGES_MAX)
        return;
    void *got = mremap(r->at, r->pages * PAGE, r->pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    if (got == MAP_FAILED) {
        refused(t, r, "mremap without unmapping", NULL);
        return;
    }
    struct region *there = add(t, got, shadow_of(r->pages), r->pages, r->prot, 1);
    memcpy(there->shadow, r->shadow, r->pages * 8);
    memset(r->shadow, 0, r->pages * 8);
}

/* Thread 0 owns the end of the heap, unless somebody else has moved it. */
static void heap(struct thread *t)
{
    struct region *h = &t->heap;
    unsigned char *end = sbrk(0);
    if (t->number != 0 || (h->pages && h->at + h->pages * PAGE != end))
        return;
    size_t pages = below(t, 3000);
    if (h->at == NULL) {
        unsigned char *aligned = (unsigned char *)(((uintptr_t)end + PAGE - 1) & ~(PAGE - 1));
        if (brk(aligned) != 0)
            return;
        *h = (struct region){aligned, shadow_of(3000), 0, PROT_READ | PROT_WRITE, 0};
    }
    if (brk(h->at + pages * PAGE) != 0)
        die("brk: %s", strerror(errno));
    for (size_t n = h->pages; n < pages; n++)
        h->shadow[n] = 0;
    h->pages = pages;
    for (size_t n = 0; n < pages; n += 1 + below(t, 5))
        write_page(t, h, n);
}

static void protect(struct thread *t, struct region *r)
{
    static const int prots[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE};
    int prot = prots[below(t, 4)];
    if (mprotect(r->at, r->pages * PAGE, prot) != 0)
        die("mprotect: %s", strerror(errno));
    r->prot = prot;
}

static void writable(struct region *r)
{
    if (r->prot != (PROT_READ | PROT_WRITE) && mprotect(r->at, r->pages * PAGE, PROT_READ | PROT_WRITE) != 0)
        die("mprotect to writable: %s", strerror(errno));
    r->prot = PROT_READ | PROT_WRITE;
}

static void child(struct thread *t)
{
    for (int round = 0; round < 3; round++) {
        check_all(t, "a child");
        for (int i = 0; i < t->count; i++) {
            struct region *r = &t->regions[i];
            if (r->prot == (PROT_READ | PROT_WRITE))
                for (size_t n = below(t, 8); n < r->pages; n += 64)
                    write_page(t, r, n);
        }
        usleep(20000 + below(t, 60000));
    }
    _exit(0);
}

static void reap(struct thread *t)
{
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        if (t->children[i] > 0 && waitpid(t->children[i], &status, WNOHANG) == t->children[i]) {
            t->children[i] = 0;
            if (status != 0)
                die("a child ended with status %#x", status);
        }
    }
}

static void fork_child(struct thread *t)
{
    for (int i = 0; i < CHILDREN; i++)
        if (t->children[i] == 0) {
            pid_t pid = fork();
            if (pid < 0)
                die("fork: %s", strerror(errno));
            if (pid == 0)
                child(t);
            t->children[i] = pid;
            return;
        }
}

static void in_range(struct thread *t, struct region *r, int op)
{
    size_t first = below(t, r->pages), count = 1 + below(t, r->pages - first);
    unsigned char *at = r->at + first * PAGE;
    if (op == UNMAP) {
        cut(t, r, first, count);
        return;
    }
    if (op == OVER) {
        writable(r);
        map(at, count, PROT_READ | PROT_WRITE, MAP_FIXED);
        r->whole = 0;
    } else if (op == HUGE) {
        r->whole = r->whole && count == r->pages;
        if (madvise(at, count * PAGE, below(t, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
            die("madvise for huge pages: %s", strerror(errno));
        return;
    } else if (madvise(at, count * PAGE, op == LAZYFREE ? MADV_FREE : MADV_DONTNEED) != 0) {
        die("madvise: %s", strerror(errno));
    }
    for (size_t n = first; n < first + count; n++)
        r->shadow[n] = op == LAZYFREE ? r->shadow[n] | (r->shadow[n] ? MAYBE : 0) : 0;
}

static void on_region(struct thread *t, struct region *r, int op)
{
    switch (op) {
    case MOVE: case GROW: case SHRINK: case LEAVE:
        if (!r->whole)
            return;
        if (op == MOVE)
            move(t, r);
        else
            (op == GROW ? grow : op == SHRINK ? shrink : leave)(t, r);
        return;
    case PROTECT:
        protect(t, r);
        return;
    case WRITE:
        writable(r);
        for (size_t i = 0; i < 8; i++)
            write_page(t, r, below(t, r->pages));
        return;
    case CHECK:
        if (r->prot != PROT_NONE)
            for (size_t i = 0; i < 16; i++)
                check_page(t, r, below(t, r->pages), "a look");
        return;
    default:
        in_range(t, r, op);
    }
}

static void step(struct thread *t)
{
    int sum = 0, op = 0;
    for (int i = 0; i < OPS; i++)
        sum += WEIGHTS[i];
    for (int left = below(t, sum); left >= WEIGHTS[op]; op++)
        left -= WEIGHTS[op];
    size_t big = 0;
    for (int i = 0; i < t->count; i++)
        big += t->regions[i].pages >= BIG - 256;
    if (big < 2 && t->pages + BIG < PAGES_MAX)
        new_region(t, BIG + below(t, 512));
    reap(t);
    if (op == MAP || t->count == 0)
        new_region(t, 1 + below(t, 64));
    else if (op == BRK)
        heap(t);
    else if (op == FORK)
        fork_child(t);
    else
        on_region(t, &t->regions[below(t, t->count)], op);
    /* Too full to map a big region again: something goes. */
    if (t->pages + BIG >= PAGES_MAX || t->count == REGIONS)
        cut(t, &t->regions[0], 0, t->regions[0].pages);
    atomic_fetch_add(&t->done[op], 1);
}

static void *work(void *argument)
{
    struct thread *t = argument;
    for (;;) {
        step(t);
        if (atomic_load(&wanted) != atomic_load(&t->verified)) {
            check_all(t, "a full comparison");
            atomic_store(&t->verified, atomic_load(&wanted));
        }
        if (t->number == 0 && t->count && atomic_exchange(&spoil, 0)) {
            writable(&t->regions[0]);
            t->regions[0].at[100] ^= 1;
            check_all(t, "after the spoiling");
            die("a spoilt page was not noticed");
        }
        if (pause_us)
            usleep(pause_us);
    }
    return NULL;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    die("signal %d at %p", number, info->si_addr);
}

static void status(const char *name, const char *token)
{
    char counts[512];
    int used = 0;
    unsigned long checked = 0, ops = 0;
    for (int op = 0; op < OPS; op++) {
        unsigned long done = 0;
        for (int i = 0; i < thread_count; i++)
            done += atomic_load(&threads[i].done[op]);
        ops += done;
        used += snprintf(counts + used, sizeof counts - used, ", \"%s\": %lu", NAMES[op], done);
    }
    for (int i = 0; i < thread_count; i++)
        checked += atomic_load(&threads[i].checked);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (!atomic_load(&failed))
        write_file(name, "{\"ok\": true, \"token\": \"%s\", \"seed\": %lu, \"unix_ms\": %.3f, \"ops\": %lu, \"pages_checked\": %lu, \"refused\": %d%s}\n",
                   token, seed, now.tv_sec * 1e3 + now.tv_nsec / 1e6, ops, checked, atomic_load(&refusals), counts);
}

/* The word in DIR/verify; false when there is none or it is the last one. */
static int asked(char *token, size_t size)
{
    char path[256], word[64] = "";
    snprintf(path, sizeof path, "%s/verify", dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, word, sizeof word - 1);
    close(fd);
    word[length > 0 ? strcspn(word, "\n") : 0] = 0;
    if (!word[0] || strcmp(word, token) == 0)
        return 0;
    snprintf(token, size, "%s", word);
    return 1;
}

static void look_after(void)
{
    char token[64] = "", path[256];
    int pending = 0;
    for (;;) {
        usleep(100000);
        status("mapfuzz.json", token);
        snprintf(path, sizeof path, "%s/spoil", dir);
        if (unlink(path) == 0)
            atomic_store(&spoil, 1);
        if (!pending && asked(token, sizeof token)) {
            atomic_fetch_add(&wanted, 1);
            pending = 1;
        }
        int behind = 0;
        for (int i = 0; i < thread_count; i++)
            behind |= atomic_load(&threads[i].verified) != atomic_load(&wanted);
        if (pending && !behind) {
            status("report.json", token);
            pending = 0;
        }
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--seed"))
            seed = strtoul(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--threads"))
            thread_count = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--pause-us"))
            pause_us = atol(argv[i + 1]);
        else if (!strcmp(argv[i], "--refused"))
            may_be_refused = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--dir"))
            dir = argv[i + 1];
    }
    if (thread_count < 1 || thread_count > THREADS_MAX)
        return 2;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    threads = map(NULL, (thread_count * sizeof *threads + PAGE - 1) / PAGE, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; i < thread_count; i++) {
        threads[i].number = i;
        threads[i].state = seed * 1000003 + i;
        if (pthread_create(&threads[i].id, NULL, work, &threads[i]) != 0)
            return 3;
    }
    look_after();
}
