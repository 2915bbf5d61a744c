/*
 * Print pid, parent and name of every process that the taskdiag service shows to this user.
 *
 *     taskdiag abi > taskdiag.h && cc -I. -o client examples/client.c && ./client
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "taskdiag.h"

static int ask(const char *path, const void *request, size_t size)
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
	    send(sock, request, size, MSG_NOSIGNAL) < 0 ||
	    recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(reply))
		return -1;
	close(sock);
	head = CMSG_FIRSTHDR(&message);
	if (head && head->cmsg_type == SCM_RIGHTS)
		memcpy(&answer, CMSG_DATA(head), sizeof(answer));
	errno = reply.error ? -reply.error : EPROTO;
	return reply.error ? -1 : answer;
}

int main(void)
{
	struct { struct nlmsghdr head; struct task_diag_pid what; } request = {
		.head.nlmsg_len = sizeof(request),
		.what = { .show_flags = TASK_DIAG_SHOW_BASE, .dump_strategy = TASK_DIAG_DUMP_ALL },
	};
	static char data[1 << 16] __attribute__((aligned(8)));
	const char *path = getenv("TASKDIAG_SOCKET");
	int fd = ask(path ? path : "/run/taskdiag.sock", &request, sizeof(request));
	size_t held = 0, at;
	ssize_t got;

	if (fd < 0)
		return perror("taskdiag"), 1;
	while ((got = read(fd, data + held, sizeof(data) - held)) > 0 || (got < 0 && errno == EAGAIN)) {
		held += got > 0 ? got : 0;
		for (at = 0; held - at >= sizeof(struct nlmsghdr); ) {
			struct nlmsghdr *head = (void *)(data + at);
			struct task_diag_base *base = (void *)(data + at + 32);

			if (head->nlmsg_len > held - at)
				break;
			printf("%u %u %.16s\n", base->pid, base->ppid, base->comm);
			at += head->nlmsg_len;
		}
		memmove(data, data + at, held -= at);
	}
	if (got < 0 || held)
		return fprintf(stderr, "taskdiag: the answer is cut off\n"), 1;
	return 0;
}
