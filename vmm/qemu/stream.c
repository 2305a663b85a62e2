/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * QEMU takes "fd:NAME" for an address; the descriptor of that name is one end of a socket pair that
 * was passed to it before. On the source QEMU writes and closes, so the end of the stream is the
 * end of the bytes. On the target QEMU reads as far as the stream goes, while the devices' loading
 * touches guest memory and waits for its pages; its monitor may be silent as long as that lasts.
 * Both say "completed" or "failed" in an event.
 */
#include "vmm/qemu/stream.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/qemu/vm.h"

#define NAME         "jaunt-state"
#define ROOM_FIRST   (2u << 20) /* a PC without a display takes 0.3 MiB, with one up to 17 */
#define SOCKET_BYTES (1 << 20)

int stream_offer(struct qemu *vm, struct jaunt_error *error)
{
	int ends[2], bytes = SOCKET_BYTES;

	stream_withdraw(vm);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		return error_set(error, errno, "no-files", "a channel for the device state: %s",
				 strerror(errno));
	for (int i = 0; i < 2; i++)
		setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	int result = qmp_pass(vm->qmp, NAME, ends[1], QEMU_ANSWER_MS, error);
	close(ends[1]);
	if (result)
		close(ends[0]);
	else
		vm->stream_fd = ends[0];
	return result;
}

void stream_withdraw(struct qemu *vm)
{
	if (vm->stream_fd >= 0)
		close(vm->stream_fd);
	vm->stream_fd = -1;
}

/* What QEMU says of its migration in the end. */
static int await_end(struct qemu *vm, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_SLOW_MS * UINT64_C(1000000);
	json_t *event, *answer = NULL;

	for (;;) {
		uint64_t now = clock_ns();
		unsigned left_ms =
			now < deadline_ns ? (unsigned)((deadline_ns - now) / 1000000) : 0;
		int result = qmp_wait(vm->qmp, "MIGRATION", left_ms, &event, error);
		if (result)
			return result;
		const char *status = json_string_value(
			json_object_get(json_object_get(event, "data"), "status"));
		bool completed = status && strcmp(status, "completed") == 0;
		bool failed = status &&
			      (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0);
		json_decref(event);
		if (completed)
			return 0;
		if (failed)
			break;
	}
	const char *why = NULL;
	if (qmp_execute(vm->qmp, "query-migrate", NULL, QEMU_ANSWER_MS, &answer, NULL) == 0)
		why = json_string_value(json_object_get(answer, "error-desc"));
	error_set(error, EIO, "qemu-state", "QEMU could not %s its device state%s%s; see its log",
		  vm->incoming ? "load" : "save", why ? ": " : "", why ? why : "");
	json_decref(answer);
	return -EIO;
}

/* Waits until the channel is ready. */
static int ready(int fd, short what, uint64_t deadline_ns, struct jaunt_error *error)
{
	struct pollfd waiting = {.fd = fd, .events = what};
	uint64_t now = clock_ns();
	int left_ms = now < deadline_ns ? (int)((deadline_ns - now + 999999) / 1000000) : 0;
	int count = poll(&waiting, 1, left_ms);

	if (count > 0 || (count < 0 && errno == EINTR))
		return 0;
	return error_set(error, ETIMEDOUT, "qemu-silent",
			 "QEMU did not get on with its device state in %d s; is it stopped, or do "
			 "its disks hang?",
			 QEMU_SLOW_MS / 1000);
}

struct bytes {
	char *all;
	size_t count, room;
};

static int grow(struct bytes *bytes, struct jaunt_error *error)
{
	size_t room = bytes->room ? bytes->room * 2 : ROOM_FIRST;

	if (bytes->count < bytes->room)
		return 0;
	char *all = bytes->room < STREAM_MAX ? realloc(bytes->all, room) : NULL;
	if (!all && bytes->room >= STREAM_MAX)
		return error_set(
			error, EMSGSIZE, "state-too-large",
			"QEMU's device state has more than %u MiB; is guest RAM in it that "
			"is not in a shared file with a name?",
			STREAM_MAX >> 20);
	if (!all)
		return error_set(error, ENOMEM, "no-memory", "no memory for the device state");
	bytes->all = all;
	bytes->room = room;
	return 0;
}

/* All that QEMU writes, until it closes. */
static int take_all(struct qemu *vm, struct bytes *bytes, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_SLOW_MS * UINT64_C(1000000);

	for (;;) {
		int result = grow(bytes, error);
		if (result)
			return result;
		ssize_t got = recv(vm->stream_fd, bytes->all + bytes->count,
				   bytes->room - bytes->count, MSG_DONTWAIT);
		if (got == 0)
			return 0;
		if (got > 0)
			bytes->count += (size_t)got;
		else if (errno == EAGAIN)
			result = ready(vm->stream_fd, POLLIN, deadline_ns, error);
		else if (errno != EINTR)
			return error_set(error, errno, "qemu-gone",
					 "QEMU broke off its device state: %s", strerror(errno));
		if (result)
			return result;
	}
}

int stream_save(struct qemu *vm, void **state, size_t *bytes, struct jaunt_error *error)
{
	struct bytes got = {0};
	int result = vm->stream_fd >= 0 ? 0 : stream_offer(vm, error);

	if (result)
		return result;
	qmp_forget(vm->qmp, "MIGRATION");
	result = qmp_execute(vm->qmp, "migrate", json_pack("{s:s}", "uri", "fd:" NAME),
			     QEMU_ANSWER_MS, NULL, error);
	if (result == 0)
		result = take_all(vm, &got, error);
	if (result == 0)
		result = await_end(vm, error);
	stream_withdraw(vm);
	if (result) {
		free(got.all);
		/* Where it is still at it. */
		qmp_execute(vm->qmp, "migrate_cancel", NULL, QEMU_ANSWER_MS, NULL, NULL);
		return result;
	}
	*state = got.all;
	*bytes = got.count;
	return 0;
}

static int give_all(struct qemu *vm, const char *bytes, size_t count, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_SLOW_MS * UINT64_C(1000000);

	for (size_t done = 0; done < count;) {
		ssize_t sent = send(vm->stream_fd, bytes + done, count - done,
				    MSG_NOSIGNAL | MSG_DONTWAIT);
		int result = 0;
		if (sent >= 0)
			done += (size_t)sent;
		else if (errno == EAGAIN)
			result = ready(vm->stream_fd, POLLOUT, deadline_ns, error);
		else if (errno != EINTR)
			return 0; /* it does not want more: its last word says why */
		if (result)
			return result;
	}
	return 0;
}

int stream_load(struct qemu *vm, const void *state, size_t bytes, struct jaunt_error *error)
{
	int result = vm->stream_fd >= 0 ? 0 : stream_offer(vm, error);

	if (result)
		return result;
	vm->spent = true;
	result = qmp_execute(vm->qmp, "migrate-incoming", json_pack("{s:s}", "uri", "fd:" NAME),
			     QEMU_ANSWER_MS, NULL, error);
	if (result == 0)
		result = give_all(vm, state, bytes, error);
	shutdown(vm->stream_fd, SHUT_WR);
	if (result == 0)
		result = await_end(vm, error);
	stream_withdraw(vm);
	/* As QEMU 7.2 does when it cannot load. */
	if (result == -ECONNRESET)
		error_set(
			error, EIO, "qemu-state",
			"QEMU ended while it loaded the device state; its log says why. Were both "
			"started with the same machine and devices?");
	return result == -ECONNRESET ? -EIO : result;
}
