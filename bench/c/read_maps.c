/*
 * What reading mappings costs at least: open, read to the end and close /proc/PID/maps or
 * /proc/PID/smaps of every process, without looking at what it says.  Prints
 * "nanoseconds cpu-nanoseconds files bytes".
 *
 *     read_maps maps|smaps
 *
 * With a second argument, writes what was read to standard output instead, for a check.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	static char buffer[1 << 16];
	char path[300];
	long files = 0, bytes = 0;
	long long start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	if (argc < 2 || (strcmp(argv[1], "maps") && strcmp(argv[1], "smaps"))) {
		fprintf(stderr, "usage: read_maps maps|smaps [show]\n");
		return 2;
	}
	if (!proc)
		return 1;
	/* Relative paths spare the kernel a lookup of /proc per file. */
	while ((entry = readdir(proc))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		stpcpy(stpcpy(stpcpy(path, entry->d_name), "/"), argv[1]);
		int fd = openat(dirfd(proc), path, O_RDONLY);
		if (fd < 0)
			continue;
		ssize_t got;
		files++;
		/* The kernel hands out about a page at a time, whatever the buffer holds. */
		while ((got = read(fd, buffer, sizeof buffer)) > 0) {
			bytes += got;
			if (argc > 2 && write(1, buffer, got) != got)
				return 1;
		}
		close(fd);
	}
	if (argc == 2)
		printf("%lld %lld %ld %ld\n", now(CLOCK_MONOTONIC) - start,
		       now(CLOCK_PROCESS_CPUTIME_ID) - cpu, files, bytes);
	return 0;
}
