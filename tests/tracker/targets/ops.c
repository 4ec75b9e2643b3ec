/* Does to its own memory what it is told on standard input, one command a line, and answers each with one number. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096L

static char *self;

static void fill(long address, long pages, unsigned long seed)
{
	for (long page = 0; page < pages; page++) {
		volatile unsigned long *word = (unsigned long *)(address + page * PAGE);
		for (int at = 0; at < 512; at += 64)
			word[at] = (seed + page) * 0x9E3779B97F4A7C15UL + at + 1;
	}
}

static long map(const char *kind, long pages)
{
	int access = strcmp(kind, "none") ? PROT_READ | PROT_WRITE : PROT_NONE;
	size_t length = pages * PAGE;

	if (!strcmp(kind, "thp")) {
		/* Aligned, so that huge pages fit. */
		char *wide = mmap(0, length + (2 << 20), access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		long start = ((long)wide + (2 << 20) - 1) & -(2L << 20);
		madvise((void *)start, length, MADV_HUGEPAGE);
		return start;
	}
	return (long)mmap(0, length, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static long map_file(const char *path, long pages)
{
	int file = open(path, O_RDWR);
	long start = (long)mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);

	close(file);
	return start;
}

static long fork_and_fill(long address, long pages, unsigned long seed)
{
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fill(address, pages, seed);
		for (;;)
			pause();
	}
	return child;
}

/* A filter that kills whoever calls userfaultfd. */
static long forbid_userfaultfd(void)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, rules };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void serve(void);

static void *serve_in_thread(void *unused)
{
	serve();
	exit(0);
	return unused;
}

static long leave_first_thread(void)
{
	pthread_t thread;

	if (pthread_create(&thread, 0, serve_in_thread, 0))
		return -1;
	printf("0\n");
	pthread_exit(0);
}

static long no_more_descriptors(void)
{
	int next = dup(0);
	struct rlimit limit = { next, next };

	close(next);
	return setrlimit(RLIMIT_NOFILE, &limit);
}

static long run(const char *word, const char *text, long a, long b, long c)
{
	if (!strcmp(word, "map"))
		return map(text, a);
	if (!strcmp(word, "mapfile"))
		return map_file(text, a);
	if (!strcmp(word, "fill"))
		return fill(a, b, c), 0;
	if (!strcmp(word, "advise"))
		return madvise((void *)a, b * PAGE, c);
	if (!strcmp(word, "protect"))
		return mprotect((void *)a, b * PAGE, c);
	if (!strcmp(word, "unmap"))
		return munmap((void *)a, b * PAGE);
	if (!strcmp(word, "fixed"))
		return (long)mmap((void *)a, b * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (!strcmp(word, "resize"))
		return (long)mremap((void *)a, b * PAGE, c * PAGE, MREMAP_MAYMOVE);
	if (!strcmp(word, "move"))
		return (long)mremap((void *)a, b * PAGE, b * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)c);
	if (!strcmp(word, "leave"))
		return (long)mremap((void *)a, b * PAGE, b * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	if (!strcmp(word, "brk"))
		return (long)sbrk(a * PAGE);
	if (!strcmp(word, "fork"))
		return fork_and_fill(a, b, c);
	if (!strcmp(word, "exec"))
		return execl(self, self, NULL);
	if (!strcmp(word, "hidden"))
		return prctl(PR_SET_DUMPABLE, 0);
	if (!strcmp(word, "filter"))
		return forbid_userfaultfd();
	if (!strcmp(word, "leaderless"))
		return leave_first_thread();
	if (!strcmp(word, "full"))
		return no_more_descriptors();
	if (!strcmp(word, "userfaultfd"))
		return syscall(SYS_userfaultfd, O_CLOEXEC | 1);
	return -1;
}

static void serve(void)
{
	char line[512];

	while (fgets(line, sizeof line, stdin)) {
		char word[32] = "", text[400] = "";
		long a = 0, b = 0, c = 0;

		/* "word text a" or "word a b c": numbers do not begin with a letter or a slash. */
		sscanf(line, "%31s %399s", word, text);
		if (text[0] == '/' || (text[0] >= 'a' && text[0] <= 'z'))
			sscanf(line, "%*s %*s %ld %ld %ld", &a, &b, &c);
		else
			sscanf(line, "%*s %ld %ld %ld", &a, &b, &c);
		errno = 0;
		printf("%ld\n", run(word, text, a, b, c));
	}
}

int main(int count, char **words)
{
	(void)count;
	self = words[0];
	setvbuf(stdout, 0, _IOLBF, 0);
	/* Input must not be read ahead: it would be lost with an exec. */
	setvbuf(stdin, 0, _IONBF, 0);
	printf("0\n");
	serve();
	return 0;
}
