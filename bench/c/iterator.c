/*
 * Load a BPF iterator of iterator.bpf.o and read from it.
 *
 *     iterator OBJECT PROGRAM
 *
 * Every line on standard input starts a run.  After an empty line it is measured, and
 * "nanoseconds cpu-nanoseconds bytes" is printed; any other line is the name of a file that
 * the answer is written to.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "clock.h"

static char buffer[1 << 16];

int main(int argc, char **argv)
{
	struct bpf_object *object;
	struct bpf_program *program;
	char line[4096];

	if (argc != 3)
		return 2;
	object = bpf_object__open_file(argv[1], NULL);
	program = object ? bpf_object__find_program_by_name(object, argv[2]) : NULL;
	if (!program || bpf_object__load(object)) {
		fprintf(stderr, "iterator: cannot load %s\n", argv[2]);
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int out = -1;
		ssize_t got;
		long bytes = 0;

		line[strcspn(line, "\n")] = 0;
		if (*line && (out = open(line, O_WRONLY | O_CREAT | O_TRUNC, 0600)) < 0)
			return 1;
		long long start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
		struct bpf_link *link = bpf_program__attach_iter(program, NULL);
		int fd = link ? bpf_iter_create(bpf_link__fd(link)) : -1;
		if (fd < 0)
			return 1;
		while ((got = read(fd, buffer, sizeof buffer)) > 0) {
			bytes += got;
			if (out >= 0 && write(out, buffer, got) != got)
				return 1;
		}
		close(fd);
		bpf_link__destroy(link);
		printf("%lld %lld %ld\n", now(CLOCK_MONOTONIC) - start,
		       now(CLOCK_PROCESS_CPUTIME_ID) - cpu, bytes);
		fflush(stdout);
		if (out >= 0)
			close(out);
	}
	return 0;
}
