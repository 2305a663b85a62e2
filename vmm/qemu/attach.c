/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "vmm/qemu/agent/pass.h"

#define PATIENCE_S 5

static int no_agent(struct jaunt_error *error, int code, const char *what)
{
	return error_set(error, code, "no-agent",
			 "%s: %s; start QEMU as `jaunt qemu -- qemu-system-x86_64 …'", what,
			 strerror(code));
}

/* --- Finding it ---------------------------------------------------------------------------------
 */

int attach_path(pid_t process, char *path, size_t room, struct jaunt_error *error)
{
	char file[64], *line = NULL;
	size_t line_room = 0;
	int result = -ENOENT;

	snprintf(file, sizeof(file), "/proc/%ld/environ", (long)process);
	FILE *environment = fopen(file, "re");
	if (!environment)
		return error_set(error, errno, "no-agent", "cannot look into process %ld: %s",
				 (long)process, strerror(errno));
	while (result == -ENOENT && getdelim(&line, &line_room, 0, environment) > 0)
		if (strncmp(line, AGENT_DIRECTORY "=", sizeof(AGENT_DIRECTORY)) == 0) {
			int length = snprintf(path, room, "%s/%ld" AGENT_SUFFIX,
					      line + sizeof(AGENT_DIRECTORY), (long)process);
			result = length >= 0 && (size_t)length < room ? 0 : -ENAMETOOLONG;
		}
	free(line);
	fclose(environment);
	if (result == -ENOENT)
		return error_set(error, ENOENT, "no-agent",
				 "process %ld was started without Jaunt's agent; start QEMU as "
				 "`jaunt qemu -- qemu-system-x86_64 …'",
				 (long)process);
	if (result)
		return no_agent(error, -result, "the path of the agent's socket");
	return 0;
}

/* --- One request, one reply ---------------------------------------------------------------------
 */

static int send_packet(const struct attach *attach, const void *packet, size_t bytes, int fd)
{
	struct iovec part = {(void *)packet, bytes};
	union pass_room room;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	pass_descriptor(&message, &room, fd);
	return sendmsg(attach->fd, &message, MSG_NOSIGNAL) == (ssize_t)bytes ? 0 : -errno;
}

/* *fd: the descriptor that came with it, -1: none. */
static int receive_packet(const struct attach *attach, struct agent_message *reply, int *fd)
{
	struct iovec part = {reply, sizeof(*reply)};
	union pass_room room;
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = room.bytes,
				 .msg_controllen = sizeof(room.bytes)};
	ssize_t bytes;

	*fd = -1;
	do {
		bytes = recvmsg(attach->fd, &message, MSG_CMSG_CLOEXEC);
	} while (bytes < 0 && errno == EINTR);
	if (bytes < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	if (bytes == 0)
		return -ECONNRESET;
	if (bytes != sizeof(*reply) || reply->magic != AGENT_MAGIC ||
	    reply->protocol != AGENT_PROTOCOL)
		return -EPROTO;
	return 0;
}

/* Sends a packet that begins with a message, and fills that with the reply. Returns 0, or with
 * `out` the descriptor that came. */
static int ask(struct attach *attach, struct agent_message *message, size_t bytes, int in, int *out)
{
	uint16_t request = message->request;
	int fd = -1;

	message->magic = AGENT_MAGIC;
	message->protocol = AGENT_PROTOCOL;
	int result = send_packet(attach, message, bytes, in);
	if (result == 0)
		result = receive_packet(attach, message, &fd);
	if (result == 0 && message->request != request)
		result = -EPROTO;
	if (result == 0)
		result = message->result > 0 ? -EPROTO : message->result;
	if (result == 0 && out && fd < 0)
		result = -EPROTO;
	if (result == 0 && out)
		*out = fd;
	else if (fd >= 0)
		close(fd);
	return result;
}

static int refused(struct jaunt_error *error, int result, const char *what)
{
	if (result == -ETIMEDOUT)
		return error_set(error, ETIMEDOUT, "agent-silent",
				 "the agent in QEMU did not answer in %d s (%s); is QEMU stopped "
				 "by a signal or a debugger?",
				 PATIENCE_S, what);
	if (result == -ECONNRESET || result == -EPIPE)
		return no_agent(error, -result, "the agent in QEMU is gone");
	return error_set(error, -result, "agent-refused", "the agent in QEMU could not %s: %s",
			 what, strerror(-result));
}

static int ask_about(struct attach *attach, enum agent_request request, unsigned slot, int in,
		     int *out)
{
	struct agent_message message = {.request = (uint16_t)request, .slot = slot};

	return ask(attach, &message, sizeof(message), in, out);
}

/* --- The requests -------------------------------------------------------------------------------
 */

int attach_open(struct attach *attach, const char *path, struct jaunt_error *error)
{
	struct sockaddr_un place = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = PATIENCE_S};
	struct agent_message message = {.request = AGENT_HELLO};
	int result;

	attach->fd = -1;
	if (strlen(path) >= sizeof(place.sun_path))
		return no_agent(error, ENAMETOOLONG, path);
	memcpy(place.sun_path, path, strlen(path) + 1);
	attach->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (attach->fd < 0)
		return no_agent(error, errno, path);
	setsockopt(attach->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(attach->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(attach->fd, (struct sockaddr *)&place, sizeof(place)))
		result = no_agent(error, errno, path);
	else if ((result = ask(attach, &message, sizeof(message), -1, NULL)))
		refused(error, result, "say hello");
	if (result)
		attach_close(attach);
	else
		attach->process = (pid_t)message.value;
	return result;
}

void attach_close(struct attach *attach)
{
	if (attach->fd >= 0)
		close(attach->fd);
	attach->fd = -1;
}

int attach_make(struct attach *attach, unsigned slot, struct jaunt_error *error)
{
	int fd = -1, result = ask_about(attach, AGENT_MAKE, slot, -1, &fd);

	if (result == -EPERM) {
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		if (device < 0)
			return error_set(error, EPERM, "agent-refused",
					 "QEMU may not make a userfaultfd, and /dev/userfaultfd "
					 "cannot be opened for it: %s; run jaunt as root, or give "
					 "its user access to /dev/userfaultfd",
					 strerror(errno));
		result = ask_about(attach, AGENT_MAKE, slot, device, &fd);
		close(device);
	}
	return result ? refused(error, result, "make a userfaultfd") : fd;
}

int attach_take(struct attach *attach, unsigned slot, struct jaunt_error *error)
{
	int fd = -1, result = ask_about(attach, AGENT_TAKE, slot, -1, &fd);

	return result ? refused(error, result, "give back what it keeps") : fd;
}

int attach_keep(struct attach *attach, unsigned slot, int fd, struct jaunt_error *error)
{
	int result = ask_about(attach, AGENT_KEEP, slot, fd, NULL);

	return result ? refused(error, result, "keep a file") : 0;
}

int attach_drop(struct attach *attach, unsigned slot, struct jaunt_error *error)
{
	int result = ask_about(attach, AGENT_DROP, slot, -1, NULL);

	return result ? refused(error, result, "drop what it keeps") : 0;
}

int attach_watch(struct attach *attach, const struct agent_region *regions, size_t count,
		 int record, struct jaunt_error *error)
{
	struct agent_watch watch = {.head = {.request = AGENT_WATCH}, .count = count};
	size_t bytes = offsetof(struct agent_watch, regions) + count * sizeof(*regions);

	if (count > AGENT_REGIONS_MAX)
		return refused(error, -EINVAL, "note discards");
	memcpy(watch.regions, regions, count * sizeof(*regions));
	int result = ask(attach, &watch.head, bytes, record, NULL);
	return result ? refused(error, result, "note discards") : 0;
}

int attach_unwatch(struct attach *attach, struct jaunt_error *error)
{
	int result = ask_about(attach, AGENT_UNWATCH, 0, -1, NULL);

	return result ? refused(error, result, "stop noting discards") : 0;
}
