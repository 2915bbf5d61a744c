/*
 * The least that reading /proc costs: open, read and close /proc/PID/stat of every process,
 * without parsing it.  Prints "nanoseconds cpu-nanoseconds files bytes".
 *
 * With an argument, it writes what it read to standard output instead, for a check: a line
 * "PID LENGTH" and as many bytes, for every process.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "clock.h"

int main(int argc, char **argv)
{
	static char buffer[1 << 16];
	char path[300];
	long files = 0, bytes = 0;
	long long start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	(void)argv;
	if (!proc)
		return 1;
	/* Relative paths save the kernel the lookup of /proc. */
	while ((entry = readdir(proc))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		stpcpy(stpcpy(path, entry->d_name), "/stat");
		int fd = openat(dirfd(proc), path, O_RDONLY);
		if (fd < 0)
			continue;
		ssize_t got = read(fd, buffer, sizeof buffer);
		close(fd);
		if (got <= 0)
			continue;
		files++;
		bytes += got;
		if (argc > 1) {
			printf("%s %zd\n", entry->d_name, got);
			fwrite(buffer, 1, got, stdout);
		}
	}
	if (argc == 1)
		printf("%lld %lld %ld %ld\n", now(CLOCK_MONOTONIC) - start,
		       now(CLOCK_PROCESS_CPUTIME_ID) - cpu, files, bytes);
	return 0;
}
