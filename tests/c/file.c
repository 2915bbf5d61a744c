/*
 * What programs do with the file, one scenario a run:
 *
 *     file PATH SCENARIO PID [SHOW-FLAGS]
 *
 * PID is a process to ask about.  Prints what came, or what was wrong, with status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct request {
	struct nlmsghdr head;
	__u64 show_flags;
	__u64 dump_strategy;
	__u32 pid, garbage;
};

enum { ALL, ONE };

static char data[1 << 20] __attribute__((aligned(8)));
static const char *path;
static unsigned long long show = 1;
static unsigned int longest;

#define CHECK(what) do { \
	if (!(what)) { \
		printf("line %d: %s (errno: %s)\n", __LINE__, #what, strerror(errno)); \
		exit(1); \
	} \
} while (0)

static int opened(void)
{
	int fd = open(path, O_RDWR);

	CHECK(fd >= 0);
	return fd;
}

static struct request request(int strategy, int pid, unsigned int seq)
{
	return (struct request){
		.head = { .nlmsg_len = 40, .nlmsg_type = 0xa5a5, .nlmsg_seq = seq },
		.show_flags = show, .dump_strategy = strategy, .pid = pid, .garbage = 0xa5a5a5a5,
	};
}

static void ask(int fd, int strategy, int pid, unsigned int seq)
{
	struct request it = request(strategy, pid, seq);

	CHECK(write(fd, &it, sizeof(it)) == sizeof(it));
}

static void refused(int fd, const void *what, size_t size, int code)
{
	errno = 0;
	CHECK(write(fd, what, size) == -1 && errno == code);
}

/* How many messages lie in what one read returned: whole ones, and all of our answer. */
static int parse(ssize_t got, unsigned int seq)
{
	int count = 0;

	CHECK(got >= 0);
	for (ssize_t at = 0; at < got; count++) {
		struct nlmsghdr *head = (void *)(data + at);

		CHECK(got - at >= (ssize_t)sizeof(*head));
		CHECK(head->nlmsg_len >= 28 && head->nlmsg_len <= got - at);
		CHECK(head->nlmsg_type == 0xd101 && head->nlmsg_seq == seq);
		if (head->nlmsg_len > longest)
			longest = head->nlmsg_len;
		at += head->nlmsg_len;
	}
	return count;
}

/* The rest of an answer, by reads of that size. */
static int rest(int fd, size_t size, unsigned int seq)
{
	int count = 0;
	ssize_t got;

	while ((got = read(fd, data, size)) > 0)
		count += parse(got, seq);
	CHECK(got == 0);
	CHECK(read(fd, data, size) == 0);
	return count;
}

static void second_request(int pid)
{
	int fd = opened();

	for (unsigned int seq = 1; seq < 4; seq++) {
		ask(fd, ONE, pid, seq);
		CHECK(rest(fd, 16384, seq) == 1);
		ask(fd, ALL, 0, seq + 10);
		CHECK(rest(fd, 16384, seq + 10) > 1);
	}
}

static void seek(int pid)
{
	int fd = opened(), count;

	(void)pid;
	ask(fd, ALL, 0, 5);
	count = parse(read(fd, data, 200), 5);
	CHECK(count > 0);
	/* As with the reference, there is a position, and it means nothing. */
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	CHECK(parse(read(fd, data, 200), 5) > 0);
	CHECK(lseek(fd, 1000, SEEK_SET) == 1000);
	CHECK(lseek(fd, 0, SEEK_END) >= 0);
	CHECK(parse(pread(fd, data, 200, 12345), 5) > 0);
	CHECK(rest(fd, 16384, 5) >= 0);
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	CHECK(read(fd, data, 16384) == 0);
}

static void writes(int pid)
{
	struct request it = request(ONE, pid, 6), bad = it;
	static char long_one[100000];
	struct iovec halves[2] = { { &it, 20 }, { (char *)&it + 20, sizeof(it) - 20 } };
	int fd = opened();

	/* A request is one write: neither less, nor in pieces. */
	refused(fd, &it, 0 + 1, EINVAL);
	refused(fd, &it, 39, EINVAL);
	refused(fd, &it, 20, EINVAL);
	refused(fd, (char *)&it + 20, 20, EINVAL);
	bad.head.nlmsg_len = 39;
	refused(fd, &bad, sizeof(bad), EINVAL);
	bad.head.nlmsg_len = sizeof(bad) + 1;
	refused(fd, &bad, sizeof(bad), EINVAL);
	bad = it;
	bad.dump_strategy = 5;
	refused(fd, &bad, sizeof(bad), EINVAL);
	CHECK(read(fd, data, 16384) == 0);
	/* Pieces that are written together are one write. */
	CHECK(writev(fd, halves, 2) == sizeof(it));
	refused(fd, &it, sizeof(it), EBUSY);
	refused(fd, &it, 1, EBUSY);
	CHECK(rest(fd, 16384, 6) == 1);
	/* What follows the request does not matter, nor do show flags that nobody knows. */
	memset(long_one, 0xa5, sizeof(long_one));
	it.show_flags |= 1ULL << 20 | 1ULL << 63;
	memcpy(long_one, &it, 40);
	CHECK(write(fd, long_one, sizeof(long_one)) == sizeof(long_one));
	CHECK(rest(fd, 16384, 6) == 1);
	/* Nor is a second one taken in the middle of an answer. */
	ask(fd, ALL, 0, 7);
	CHECK(parse(read(fd, data, 200), 7) > 0);
	refused(fd, &it, sizeof(it), EBUSY);
	CHECK(rest(fd, 16384, 7) > 0);
	ask(fd, ONE, pid, 8);
	CHECK(rest(fd, 16384, 8) == 1);
}

static void two_descriptors(int pid)
{
	int first = opened(), second = opened(), counts[2] = { 0, 0 };
	ssize_t got;

	ask(first, ALL, 0, 11);
	ask(second, ALL, 0, 22);
	do {
		got = read(first, data, 300);
		counts[0] += parse(got, 11);
		counts[1] += parse(read(second, data, 300), 22);
	} while (got > 0);
	counts[1] += rest(second, 300, 22);
	CHECK(counts[0] > 1 && counts[1] > 1);
	ask(first, ONE, pid, 33);
	ask(second, ONE, 4000000, 44);
	CHECK(read(second, data, 16384) == -1 && errno == ESRCH);
	CHECK(rest(first, 16384, 33) == 1);
}

static void stops_half_way(int pid)
{
	int fd = opened();

	ask(fd, ALL, 0, 3);
	CHECK(parse(read(fd, data, 300), 3) > 0);
	CHECK(close(fd) == 0);
	/* One that is left open ends with this process. */
	fd = opened();
	ask(fd, ALL, 0, 4);
	CHECK(parse(read(fd, data, 300), 4) > 0);
	/* And one that was never read from. */
	fd = opened();
	ask(fd, ALL, 0, 5);
	CHECK(close(fd) == 0);
	fd = opened();
	ask(fd, ONE, pid, 6);
	CHECK(rest(fd, 16384, 6) == 1);
}

static void unknown_pid(int pid)
{
	int fd = opened();

	for (int strategy = 1; strategy < 5; strategy++) {
		if (strategy == 2)
			continue;
		for (int bad = 0; bad < 2; bad++) {
			ask(fd, strategy, bad ? 4000000 : 0, 1);
			errno = 0;
			CHECK(read(fd, data, 16384) == -1 && errno == ESRCH);
			CHECK(read(fd, data, 16384) == 0);
		}
	}
	ask(fd, ONE, pid, 2);
	CHECK(rest(fd, 16384, 2) == 1);
}

static void small_buffer(int pid)
{
	int fd = opened();
	ssize_t got;

	ask(fd, ONE, pid, 2);
	for (int times = 0; times < 2; times++) {
		errno = 0;
		CHECK(read(fd, data, 75) == -1 && errno == EMSGSIZE);
		CHECK(read(fd, data, 1) == -1 && errno == EMSGSIZE);
	}
	got = read(fd, data, 76);
	CHECK(got == 76 && parse(got, 2) == 1);
	CHECK(read(fd, data, 1) == 0);
}

static void sizes(int pid)
{
	static const size_t room[] = { 16384, 4096, 100, 1 << 20, 131072, 50000 };
	int fd = opened();

	(void)pid;
	for (size_t index = 0; index < sizeof(room) / sizeof(*room); index++) {
		ask(fd, ALL, 0, 9);
		CHECK(rest(fd, room[index], 9) > 1);
	}
}

/* Any groups: how many messages, and how long the longest is, by reads of 16,384 bytes. */
static void dump(int pid)
{
	int fd = opened();

	ask(fd, ONE, pid, 9);
	printf("%d messages, ", rest(fd, 16384, 9));
	printf("%u bytes\n", longest);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(int pid); } scenarios[] = {
		{ "second request", second_request }, { "lseek", seek }, { "writes", writes },
		{ "two descriptors", two_descriptors }, { "stops half way", stops_half_way },
		{ "unknown pid", unknown_pid }, { "small buffer", small_buffer }, { "sizes", sizes },
		{ "dump", dump },
	};

	CHECK(argc > 3);
	path = argv[1];
	if (argc > 4)
		show = strtoull(argv[4], NULL, 0);
	for (size_t index = 0; index < sizeof(scenarios) / sizeof(*scenarios); index++)
		if (!strcmp(scenarios[index].name, argv[2]))
			return scenarios[index].run(atoi(argv[3])), 0;
	return 2;
}
