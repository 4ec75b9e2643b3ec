/* Threads that read a file past the page cache into one buffer, over and over. Usage: direct FILE PAGES THREADS. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096L

static int file;
static long pages;
static char *buffer;

static void *run(void *argument)
{
	uint64_t x = (uint64_t)argument * 0x9E3779B97F4A7C15UL + 1;

	for (;;) {
		x = x * 6364136223846793005UL + 1442695040888963407UL;
		long to = (x >> 20) % pages, from = (x >> 40) % pages;

		if (pread(file, buffer + to * PAGE, PAGE, from * PAGE) != PAGE)
			_exit(2);
	}
	return 0;
}

int main(int count, char **words)
{
	if (count < 4)
		return 1;
	file = open(words[1], O_RDONLY | O_DIRECT);
	pages = atol(words[2]);
	buffer = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* Not every file system reads past the cache. */
	if (file < 0 || pread(file, buffer, PAGE, 0) != PAGE) {
		printf("-1\n");
		return 0;
	}
	for (long thread = 1; thread <= atol(words[3]); thread++) {
		pthread_t made;

		pthread_create(&made, 0, run, (void *)thread);
	}
	printf("0\n");
	fflush(stdout);
	for (;;)
		pause();
}
