/*
 * A program as they were written for the kernel interface of 2016 (/proc/task_diag).  What such
 * programs leave uninitialised is filled with garbage here, as a test that it is ignored.
 *
 *     cc -o reference examples/reference.c && ./reference /run/taskdiag/file [PID...]
 *
 * It parses what each read returns and never joins two reads.  It prints the number of messages
 * and bytes of the answer about all processes, and then of those about each PID.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/netlink.h>
#include <linux/types.h>

struct task_diag_pid {
	__u64 show_flags;
	__u64 dump_strategy;
	__u32 pid;
};

static int transaction(int fd, __u64 strategy, __u32 pid)
{
	struct { struct nlmsghdr head; struct task_diag_pid what; char garbage[24]; } request;
	char data[16384] __attribute__((aligned(8)));
	long messages = 0, bytes = 0;
	ssize_t got;

	memset(&request, 0xa5, sizeof(request));
	request.head.nlmsg_len = sizeof(struct nlmsghdr) + sizeof(struct task_diag_pid);
	request.what.show_flags = 1;
	request.what.dump_strategy = strategy;
	request.what.pid = pid;
	if (write(fd, &request, sizeof(request)) != sizeof(request))
		return perror("write"), 1;
	/* Each read returns whole messages. */
	while ((got = read(fd, data, sizeof(data))) > 0) {
		struct nlmsghdr *head = (void *)data;
		int left = got;

		for (; NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
			if (head->nlmsg_type != 0xd101 || head->nlmsg_seq != request.head.nlmsg_seq)
				return printf("not our answer\n"), 1;
			messages++;
		}
		if (left)
			return printf("a read ended in the middle of a message\n"), 1;
		bytes += got;
	}
	if (got < 0)
		return printf("%s\n", strerror(errno)), errno != ESRCH;
	printf("%ld messages, %ld bytes\n", messages, bytes);
	return 0;
}

int main(int argc, char **argv)
{
	int fd = open(argc > 1 ? argv[1] : "/proc/task_diag", O_RDWR);

	if (fd < 0)
		return perror("open"), 1;
	if (transaction(fd, 0, 0))
		return 1;
	for (int i = 2; i < argc; i++)
		if (transaction(fd, 1, atoi(argv[i])))
			return 1;
	return close(fd);
}
