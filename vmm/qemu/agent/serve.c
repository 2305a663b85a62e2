/* SPDX-License-Identifier: MIT */
#include "vmm/qemu/agent/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vmm/qemu/agent/discards.h"
#include "vmm/qemu/agent/pass.h"
#include "vmm/qemu/agent/protocol.h"

#define CLIENTS 8

/* Of /dev/userfaultfd, Linux 6.1; spelt out for older headers. */
#define MAKE_USERFAULTFD _IO(0xAA, 0x00)

/* All of this belongs to the agent's thread. Descriptors are kept as themselves plus one, so that
 * zeroed memory means empty. */
static int shelf[AGENT_SLOTS];
static int clients[CLIENTS];
static int watcher; /* the client whose watch is on */
static int listening;

static void shut(int *place)
{
	if (*place)
		close(*place - 1);
	*place = 0;
}

/* --- Requests -----------------------------------------------------------------------------------
 */

static int make_userfaultfd(int device)
{
	int flags = O_CLOEXEC | O_NONBLOCK;
	int fd = device >= 0 ? ioctl(device, MAKE_USERFAULTFD, flags)
			     : (int)syscall(SYS_userfaultfd, flags);

	return fd < 0 ? -errno : fd;
}

static int make(unsigned slot, int device)
{
	if (slot >= AGENT_USERFAULTFD_SLOTS)
		return -EINVAL;
	if (shelf[slot])
		return -EBUSY;
	int fd = make_userfaultfd(device);
	if (fd < 0)
		return fd;
	shelf[slot] = fd + 1;
	return 0;
}

/* Takes `fd` over when it returns 0. */
static int keep(unsigned slot, int fd)
{
	if (slot >= AGENT_SLOTS || fd < 0)
		return -EINVAL;
	if (shelf[slot])
		return -EBUSY;
	shelf[slot] = fd + 1;
	return 0;
}

static int drop(unsigned slot)
{
	if (slot >= AGENT_SLOTS)
		return -EINVAL;
	if (!shelf[slot])
		return -ENOENT;
	shut(&shelf[slot]);
	return 0;
}

static void unwatch(void)
{
	watcher = 0;
	discards_unwatch();
}

static int watch(int client, const struct agent_watch *request, size_t bytes, int record)
{
	if (bytes < offsetof(struct agent_watch, regions) || request->count > AGENT_REGIONS_MAX ||
	    bytes != offsetof(struct agent_watch, regions) +
			     request->count * sizeof(request->regions[0]))
		return -EINVAL;
	watcher = 0;
	int result = discards_watch(request, record);
	if (result == 0)
		watcher = client + 1;
	return result;
}

/* Answers into *reply and *out, the descriptor that goes with it; `in` is the caller's, unless it
 * was kept: then it is made -1. */
static int answer(int client, const struct agent_watch *request, size_t bytes, int *in, int *out,
		  uint64_t *value)
{
	unsigned slot = request->head.slot;
	int result;

	switch (request->head.request) {
	case AGENT_HELLO:
		*value = (uint64_t)getpid();
		return 0;
	case AGENT_MAKE:
		result = make(slot, *in);
		break;
	case AGENT_KEEP:
		result = keep(slot, *in);
		if (result == 0)
			*in = -1;
		return result;
	case AGENT_TAKE:
		result = slot >= AGENT_SLOTS ? -EINVAL : shelf[slot] ? 0 : -ENOENT;
		break;
	case AGENT_DROP:
		return drop(slot);
	case AGENT_WATCH:
		return watch(client, request, bytes, *in);
	case AGENT_UNWATCH:
		unwatch();
		return 0;
	default:
		return -ENOSYS;
	}
	if (result == 0)
		*out = shelf[slot] - 1;
	return result;
}

/* --- Packets ------------------------------------------------------------------------------------
 */

/* The descriptor that came with a packet, -1: none. The room is padded, so two may come: the others
 * are closed. */
static int descriptor_of(struct msghdr *message)
{
	int fd = -1, other;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			memcpy(&other, CMSG_DATA(c) + i * sizeof(int), sizeof(other));
			if (fd < 0)
				fd = other;
			else
				close(other);
		}
	}
	return fd;
}

static bool reply_to(int client, struct agent_message *reply, int fd)
{
	struct iovec part = {reply, sizeof(*reply)};
	union pass_room room;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	pass_descriptor(&message, &room, fd);
	return sendmsg(client, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(*reply);
}

/* One packet of a client. False: it is done with, or broke the rules. */
static bool hear(int client)
{
	static struct agent_watch request;
	struct iovec part = {&request, sizeof(request)};
	union pass_room room;
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = room.bytes,
				 .msg_controllen = sizeof(room.bytes)};
	ssize_t bytes = recvmsg(client, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (bytes < 0)
		return errno == EAGAIN || errno == EINTR;
	int in = descriptor_of(&message), out = -1;
	bool sound = bytes >= (ssize_t)sizeof(request.head) &&
		     !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
		     request.head.magic == AGENT_MAGIC && request.head.protocol == AGENT_PROTOCOL;
	if (sound) {
		struct agent_message reply = request.head;
		reply.value = 0;
		reply.result = answer(client, &request, (size_t)bytes, &in, &out, &reply.value);
		sound = reply_to(client, &reply, out);
	}
	if (in >= 0)
		close(in);
	return sound;
}

/* --- Clients ------------------------------------------------------------------------------------
 */

static bool may_ask(int client)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);

	return getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

static bool welcome(int listener)
{
	int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (client < 0) {
		/* Without descriptors or memory for it the connection stays ready: do not spin. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
		return errno != EBADF && errno != EINVAL && errno != ENOTSOCK;
	}
	for (int i = 0; may_ask(client) && i < CLIENTS; i++)
		if (!clients[i]) {
			clients[i] = client + 1;
			return true;
		}
	close(client);
	return true;
}

static void part_with(int *client)
{
	if (watcher == *client)
		unwatch();
	shut(client);
}

void serve(int listener)
{
	struct pollfd waiting[CLIENTS + 1];
	bool going = true;

	listening = listener + 1;
	while (going) {
		waiting[CLIENTS] = (struct pollfd){.fd = listener, .events = POLLIN};
		for (int i = 0; i < CLIENTS; i++)
			waiting[i] = (struct pollfd){.fd = clients[i] - 1, .events = POLLIN};
		if (poll(waiting, CLIENTS + 1, -1) < 0) {
			going = errno == EINTR || errno == EAGAIN;
			continue;
		}
		for (int i = 0; i < CLIENTS; i++)
			if (waiting[i].revents && !hear(clients[i] - 1))
				part_with(&clients[i]);
		if (waiting[CLIENTS].revents)
			going = welcome(listener);
	}
	shut(&listening);
}

void serve_forget(void)
{
	shut(&listening);
	for (int i = 0; i < CLIENTS; i++)
		shut(&clients[i]);
	for (int i = 0; i < AGENT_SLOTS; i++)
		shut(&shelf[i]);
	watcher = 0;
}
