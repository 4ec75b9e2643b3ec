/* Waits in one system call and says whether it ended as it should: "0", or a line with what was wrong. Usage: wait KIND MILLISECONDS. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void on_signal(int number)
{
	(void)number;
	signals++;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int count, char **words)
{
	const char *kind = count > 1 ? words[1] : "";
	long patience = count > 2 ? atol(words[2]) : 1000, start, took;
	struct timespec time = { patience / 1000, patience % 1000 * 1000000 };
	struct timeval same = { patience / 1000, patience % 1000 * 1000 };
	int answer = -1, expected = 0, expected_errno = 0, empty[2], word = 0, timed = 1;
	char byte;

	signal(SIGUSR1, on_signal);
	if (pipe(empty))
		return 1;
	printf("0\n");
	fflush(stdout);
	start = now_ms();
	errno = 0;
	if (!strcmp(kind, "nanosleep")) {
		answer = nanosleep(&time, 0);
	} else if (!strcmp(kind, "poll")) {
		struct pollfd waiting = { empty[0], POLLIN, 0 };

		answer = poll(&waiting, 1, patience);
	} else if (!strcmp(kind, "select")) {
		fd_set set;

		FD_ZERO(&set);
		FD_SET(empty[0], &set);
		answer = select(empty[0] + 1, &set, 0, 0, &same);
	} else if (!strcmp(kind, "futex")) {
		answer = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, 0, 0);
		expected = -1, expected_errno = ETIMEDOUT;
	} else if (!strcmp(kind, "epoll")) {
		int set = epoll_create1(0);
		struct epoll_event event;

		answer = epoll_wait(set, &event, 1, patience);
	} else if (!strcmp(kind, "read")) {
		answer = read(0, &byte, 1);
		expected = 1, timed = 0;
	} else if (!strcmp(kind, "pause")) {
		answer = pause();
		expected = -1, expected_errno = EINTR, timed = 0;
	}
	word = errno;
	took = now_ms() - start;
	if (answer != expected || (answer < 0 && word != expected_errno))
		printf("%s: %d, errno %d\n", kind, answer, word);
	else if (timed && took + 1 < patience)
		printf("%s: %ld ms instead of %ld\n", kind, took, patience);
	else if (!strcmp(kind, "pause") && signals != 1)
		printf("pause: %d signals\n", (int)signals);
	else
		printf("0\n");
	return 0;
}
