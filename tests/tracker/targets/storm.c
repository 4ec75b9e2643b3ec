/* Threads that map, unmap, move, grow, shrink, drop, protect and write their memory without a pause. Usage: storm THREADS SEED. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define AREAS 16
#define LARGEST 400

struct area {
	char *start;
	size_t pages;
};

struct storm {
	uint64_t state;
	int number;
	struct area areas[AREAS];
};

static uint64_t next(struct storm *storm, uint64_t below)
{
	uint64_t x = storm->state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	storm->state = x;
	return (x >> 11) % below;
}

static void write_page(struct storm *storm, char *page)
{
	volatile uint64_t *words = (uint64_t *)page;

	words[next(storm, 512)] = storm->state;
	words[next(storm, 512)] = ~storm->state;
}

static void *fresh(size_t pages)
{
	return mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void renew(struct storm *storm, struct area *area)
{
	if (area->start)
		munmap(area->start, area->pages * PAGE);
	area->pages = 1 + next(storm, LARGEST);
	area->start = fresh(area->pages);
	if (next(storm, 4) == 0)
		madvise(area->start, area->pages * PAGE, MADV_HUGEPAGE);
	for (size_t page = 0; page < area->pages; page++)
		if (next(storm, 3))
			write_page(storm, area->start + page * PAGE);
}

static void resize(struct storm *storm, struct area *area)
{
	size_t pages = 1 + next(storm, LARGEST);
	char *start = mremap(area->start, area->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);

	if (start == MAP_FAILED)
		return;
	for (size_t page = area->pages; page < pages; page += 2)
		write_page(storm, start + page * PAGE);
	*area = (struct area){ start, pages };
}

static void forget(struct area *area)
{
	munmap(area->start, area->pages * PAGE);
	area->start = 0;
}

static void exchange(struct area *one, struct area *other)
{
	char *place = fresh(one->pages);
	char *moved;

	if (mremap(one->start, one->pages * PAGE, one->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) {
		/* Several mappings do not always move as one, and then a part of them may have moved. */
		forget(one);
		one->start = place;
		forget(one);
		return;
	}
	one->start = place;
	moved = mremap(other->start, other->pages * PAGE, other->pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	if (moved != MAP_FAILED) {
		munmap(other->start, other->pages * PAGE);
		other->start = moved;
	}
}

static void part(struct storm *storm, struct area *area, int what)
{
	size_t first = next(storm, area->pages), pages = 1 + next(storm, area->pages - first);
	char *start = area->start + first * PAGE;

	if (what == 0) {
		madvise(start, pages * PAGE, MADV_DONTNEED);
	} else if (what == 1) {
		mmap(start, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	} else {
		mprotect(start, pages * PAGE, what == 2 ? PROT_READ : PROT_NONE);
		mprotect(start, pages * PAGE, PROT_READ | PROT_WRITE);
	}
}

static void step(struct storm *storm)
{
	struct area *area = &storm->areas[next(storm, AREAS)], *other = &storm->areas[next(storm, AREAS)];
	uint64_t what = next(storm, 16);

	if (!area->start || what == 0)
		renew(storm, area);
	else if (what == 1)
		resize(storm, area);
	else if (what == 2 && other->start && other != area)
		exchange(area, other);
	else if (what >= 3 && what <= 6)
		part(storm, area, (int)what - 3);
	else if (what == 7 && storm->number == 0 && next(storm, 40) == 0)
		write_page(storm, sbrk(PAGE * 8));
	else if (what == 8 && next(storm, 100) == 0) {
		pid_t child = fork();

		if (child == 0) {
			write_page(storm, area->start);
			_exit(0);
		}
		waitpid(child, 0, 0);
	} else
		for (int count = 0; count < 20; count++)
			write_page(storm, area->start + next(storm, area->pages) * PAGE);
}

static void *run(void *argument)
{
	for (unsigned count = 0;; count++) {
		step(argument);
		if (count % 64 == 0)
			usleep(100);
	}
	return 0;
}

int main(int count, char **words)
{
	int threads = count > 1 ? atoi(words[1]) : 2;
	uint64_t seed = count > 2 ? strtoull(words[2], 0, 10) : 1;

	for (int number = 0; number < threads; number++) {
		struct storm *storm = calloc(1, sizeof *storm);
		pthread_t thread;

		storm->state = (seed + number + 1) * 0x9E3779B97F4A7C15UL;
		storm->number = number;
		pthread_create(&thread, 0, run, storm);
	}
	printf("0\n");
	fflush(stdout);
	for (;;)
		pause();
}
