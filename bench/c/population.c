/*
 * Make many sleeping processes quickly, and end them together.
 *
 *     population PARENT WORKERS THREADS 0000000
 *
 * A line "N" on standard input makes the population grow to N processes of THREADS threads
 * each.  The answer is any number of lines "made N", followed by "ready N" or "error ...".
 * At the end of standard input, all are killed and reaped.  Every process is killed when its
 * parent ends, so nothing is left behind even if this process or PARENT is killed.
 *
 * Every process has a name and a last argument of its own: bench-7 and 0000007.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_WORKERS 64
#define STACK (64 << 10)

static struct {
	atomic_int wanted;  /* how many there are to be */
	atomic_int claimed; /* numbers given to processes under way */
	atomic_int ready;
	atomic_int error;
} *shared;

static int threads;
static char *title;

static void die_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void live(pid_t parent, int number)
{
	char name[16];
	pthread_attr_t attr;
	pthread_t thread;
	int error = 0;

	die_with(parent);
	syscall(SYS_close_range, 0, ~0U, 0);
	snprintf(name, sizeof name, "bench-%d", number);
	prctl(PR_SET_NAME, name);
	for (char *digit = title + strlen(title); digit-- > title; number /= 10)
		*digit = '0' + number % 10;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	for (int i = 1; i < threads && !error; i++)
		error = pthread_create(&thread, &attr, sleeper, NULL);
	if (error)
		atomic_store(&shared->error, error);
	else
		atomic_fetch_add(&shared->ready, 1);
	munmap(shared, sizeof *shared);
	sleeper(NULL);
}

static void work(pid_t parent, int commands)
{
	char byte;
	pid_t self = getpid();

	setpgid(0, 0);
	die_with(parent);
	while (read(commands, &byte, 1) == 1) {
		while (!atomic_load(&shared->error)) {
			int number = atomic_fetch_add(&shared->claimed, 1);
			if (number >= atomic_load(&shared->wanted)) {
				atomic_fetch_sub(&shared->claimed, 1);
				break;
			}
			pid_t pid = fork();
			if (!pid)
				live(self, number);
			if (pid < 0)
				atomic_store(&shared->error, errno);
		}
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t self, worker[MOST_WORKERS];
	int commands[MOST_WORKERS][2], workers;
	char line[64];

	if (argc != 5)
		return 2;
	die_with(atoi(argv[1]));
	workers = atoi(argv[2]);
	threads = atoi(argv[3]);
	title = argv[4];
	if (workers < 1 || workers > MOST_WORKERS)
		return 2;
	setsid();
	/* Members whose worker has died become our children, and are reaped by the kernel. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	self = getpid();
	for (int i = 0; i < workers; i++) {
		if (pipe(commands[i]) || (worker[i] = fork()) < 0) {
			printf("error %s\n", strerror(errno));
			workers = i;
			break;
		}
		if (!worker[i])
			work(self, commands[i][0]);
		close(commands[i][0]);
		setpgid(worker[i], worker[i]);
	}
	while (fgets(line, sizeof line, stdin)) {
		int wanted = atoi(line), told = -1;
		atomic_store(&shared->wanted, wanted);
		for (int i = 0; i < workers; i++)
			if (write(commands[i][1], "", 1) != 1)
				printf("error a worker is gone\n");
		for (;;) {
			int ready = atomic_load(&shared->ready), error = atomic_load(&shared->error);
			if (error) {
				printf("error %s\n", strerror(error));
				break;
			}
			if (ready >= wanted) {
				printf("ready %d\n", ready);
				break;
			}
			if (ready != told)
				printf("made %d\n", told = ready);
			usleep(20000);
		}
	}
	for (int i = 0; i < workers; i++)
		kill(-worker[i], SIGKILL);
	while (waitpid(-1, NULL, 0) > 0 || errno != ECHILD)
		;
	return 0;
}
