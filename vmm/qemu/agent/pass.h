/* SPDX-License-Identifier: MIT */
/* A descriptor that travels with a message (SCM_RIGHTS). */
#ifndef VMM_QEMU_AGENT_PASS_H
#define VMM_QEMU_AGENT_PASS_H

#include <string.h>
#include <sys/socket.h>

union pass_room {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int))];
};

/* Lays `fd` into the message, with `room` under it; -1: none goes with it. */
static inline void pass_descriptor(struct msghdr *message, union pass_room *room, int fd)
{
	if (fd < 0)
		return;
	memset(room, 0, sizeof(*room));
	message->msg_control = room->bytes;
	message->msg_controllen = sizeof(room->bytes);
	struct cmsghdr *c = CMSG_FIRSTHDR(message);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
}

#endif
