/*
 * Ask the taskdiag service once, by its file or by its socket, and walk the messages of the
 * answer.  Prints "nanoseconds cpu-nanoseconds messages bytes".
 *
 *     ask file PATH SHOW-FLAGS [check]      a buffer of 16,384 bytes, as programs of 2016 have
 *     ask socket PATH SHOW-FLAGS [check]    a buffer of 64 KiB, messages joined across reads
 *
 * With "check", writes what was read to standard output instead.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "clock.h"

struct request {
	struct nlmsghdr head;
	uint64_t show_flags;
	uint64_t dump_strategy;
	uint32_t pid, pad;
};

static int by_file(const char *path, const struct request *request)
{
	int fd = open(path, O_RDWR);

	if (fd >= 0 && write(fd, request, sizeof(*request)) != sizeof(*request))
		return -1;
	return fd;
}

static int by_socket(const char *path, const struct request *request)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	struct { struct nlmsghdr head; int error; struct nlmsghdr about; } reply;
	union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } extra;
	struct iovec piece = { &reply, sizeof(reply) };
	struct msghdr message = {
		.msg_iov = &piece, .msg_iovlen = 1,
		.msg_control = &extra, .msg_controllen = sizeof(extra),
	};
	struct cmsghdr *head;
	int sock, answer = -1;

	strncpy(to.sun_path, path, sizeof(to.sun_path) - 1);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&to, sizeof(to)) ||
	    send(sock, request, sizeof(*request), MSG_NOSIGNAL) < 0 ||
	    recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(reply))
		return -1;
	close(sock);
	head = CMSG_FIRSTHDR(&message);
	if (head && head->cmsg_type == SCM_RIGHTS)
		memcpy(&answer, CMSG_DATA(head), sizeof(answer));
	errno = reply.error ? -reply.error : EPROTO;
	return reply.error ? -1 : answer;
}

int main(int argc, char **argv)
{
	static char data[1 << 17] __attribute__((aligned(8)));
	struct request request = { .head.nlmsg_len = 40 };
	long long start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	long messages = 0, bytes = 0;
	size_t room, held = 0, at;
	ssize_t got;
	int fd, file;

	if (argc < 4)
		return 2;
	file = !strcmp(argv[1], "file");
	request.show_flags = strtoull(argv[3], NULL, 0);
	fd = file ? by_file(argv[2], &request) : by_socket(argv[2], &request);
	if (fd < 0)
		return perror(argv[2]), 1;
	room = file ? 16384 : 65536;
	while ((got = read(fd, data + held, room)) > 0 || (got < 0 && errno == EAGAIN)) {
		if (got < 0)
			continue;
		if (argc > 4 && write(1, data + held, got) != got)
			return 1;
		bytes += got;
		held += got;
		for (at = 0; held - at >= sizeof(struct nlmsghdr); messages++) {
			uint32_t length = ((struct nlmsghdr *)(data + at))->nlmsg_len;

			if (length > held - at)
				break;
			at += length;
		}
		held -= at;
		if (file && held)
			return fprintf(stderr, "a read ended in the middle of a message\n"), 1;
		memmove(data, data + at, held);
	}
	if (got < 0 || held)
		return perror("read"), 1;
	if (argc == 4)
		printf("%lld %lld %ld %ld\n", now(CLOCK_MONOTONIC) - start,
		       now(CLOCK_PROCESS_CPUTIME_ID) - cpu, messages, bytes);
	return 0;
}
