/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * QEMU takes "fd:NAME" for an address; the descriptor of that name is one end of a socket pair that
 * was passed to it before. On the source QEMU writes and closes, so the end of the stream is the
 * end of the bytes. On the target QEMU reads as far as the stream goes, while the devices' loading
 * touches guest memory and waits for its pages; its monitor may be silent as long as that lasts.
 * Both say "completed" or "failed" in an event.
 *
 * Memory of QEMU's own that is not guest RAM, such as a screen's, is in the stream, too. So that
 * the guest need not stand still for it the stream begins while it runs: that is QEMU's pre-copy of
 * this memory. When QEMU has written all of it, it stops the guest by itself and, with
 * pause-before-switchover, says "pre-switchover" and waits for `migrate-continue`: until then the
 * stream has nothing but pages of that memory, whose loading touches no guest RAM. A guest that
 * writes it as fast as QEMU does is stopped by us. Such a stream says that the guest ran, so the
 * other QEMU is told by `stop`, as long as it waits for one, not to run it by itself.
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

#define AHEAD_NS    UINT64_C(3000000000) /* then the guest is stopped */
#define AHEAD_BYTES (32u << 20)          /* or then: twice a usual screen */
#define MOMENT_MS   10
#define TAKE_MS     5000 /* until QEMU takes what was saved ahead, which it does at once */

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

enum stage { STAGE_GOES_ON, STAGE_HELD, STAGE_COMPLETED, STAGE_FAILED };

/* What QEMU says next of its migration. */
static int next_stage(struct qemu *vm, unsigned timeout_ms, enum stage *stage,
		      struct jaunt_error *error)
{
	static const struct {
		const char *status;
		enum stage stage;
	} known[] = {{"pre-switchover", STAGE_HELD},
		     {"completed", STAGE_COMPLETED},
		     {"failed", STAGE_FAILED},
		     {"cancelled", STAGE_FAILED}};
	json_t *event;
	int result = qmp_wait(vm->qmp, "MIGRATION", timeout_ms, &event, error);

	*stage = STAGE_GOES_ON;
	if (result)
		return result;
	const char *status =
		json_string_value(json_object_get(json_object_get(event, "data"), "status"));
	for (size_t i = 0; status && i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(status, known[i].status) == 0)
			*stage = known[i].stage;
	json_decref(event);
	return 0;
}

static int has_failed(struct qemu *vm, struct jaunt_error *error)
{
	json_t *answer = NULL;
	const char *why = NULL;

	if (qmp_execute(vm->qmp, "query-migrate", NULL, QEMU_ANSWER_MS, &answer, NULL) == 0)
		why = json_string_value(json_object_get(answer, "error-desc"));
	error_set(error, EIO, "qemu-state", "QEMU could not %s its device state%s%s; see its log",
		  vm->incoming ? "load" : "save", why ? ": " : "", why ? why : "");
	json_decref(answer);
	return -EIO;
}

/* Its last word. */
static int await_end(struct qemu *vm, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_SLOW_MS * UINT64_C(1000000);
	enum stage stage = STAGE_GOES_ON;

	while (stage != STAGE_COMPLETED && stage != STAGE_FAILED) {
		uint64_t now = clock_ns();
		unsigned left_ms =
			now < deadline_ns ? (unsigned)((deadline_ns - now) / 1000000) : 0;
		int result = next_stage(vm, left_ms, &stage, error);
		if (result)
			return result;
	}
	return stage == STAGE_COMPLETED ? 0 : has_failed(vm, error);
}

static int is_silent(struct jaunt_error *error)
{
	return error_set(error, ETIMEDOUT, "qemu-silent",
			 "QEMU does not get on with its device state; is it stopped, or do its "
			 "disks hang?");
}

/* Waits until the channel is ready. */
static int ready(int fd, short what, uint64_t deadline_ns, struct jaunt_error *error)
{
	struct pollfd waiting = {.fd = fd, .events = what};
	uint64_t now = clock_ns();
	int left_ms = now < deadline_ns ? (int)((deadline_ns - now + 999999) / 1000000) : 0;
	int count = poll(&waiting, 1, left_ms);

	return count > 0 || (count < 0 && errno == EINTR) ? 0 : is_silent(error);
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

/* What is there, and fits: 1, 0 at the end of it, -EAGAIN: nothing just now. */
static int take(struct qemu *vm, void *to, size_t room, size_t *count, struct jaunt_error *error)
{
	ssize_t got = recv(vm->stream_fd, to, room, MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (got < 0)
		return error_set(error, errno, "qemu-gone", "QEMU broke off its device state: %s",
				 strerror(errno));
	*count += (size_t)got;
	return got > 0;
}

/* --- Saving ------------------------------------------------------------------------------------
 */

static int start_saving(struct qemu *vm, struct jaunt_error *error)
{
	int result = vm->stream_fd >= 0 ? 0 : stream_offer(vm, error);

	if (result)
		return result;
	vm->held = false;
	qmp_forget(vm->qmp, "MIGRATION");
	return qmp_execute(vm->qmp, "migrate", json_pack("{s:s}", "uri", "fd:" NAME),
			   QEMU_ANSWER_MS, NULL, error);
}

int stream_begin(struct qemu *vm, struct jaunt_error *error)
{
	qmp_forget(vm->qmp, "STOP");
	qmp_forget(vm->qmp, "RESUME");
	vm->ahead_bytes = 0;
	vm->begun_ns = clock_ns();
	vm->under_way = true; /* also if nobody knows */
	return start_saving(vm, error);
}

/* As far as QEMU has said: 1 when it has stopped the guest and waits to write the rest, else 0. */
static int is_held(struct qemu *vm, struct jaunt_error *error)
{
	while (!vm->held) {
		struct jaunt_error why = {.code = 0};
		enum stage stage;
		int result = next_stage(vm, 0, &stage, &why);
		if (result == -ETIMEDOUT)
			return 0;
		if (result) {
			*error = why;
			return result;
		}
		if (stage == STAGE_FAILED || stage == STAGE_COMPLETED)
			return has_failed(vm, error);
		vm->held = stage == STAGE_HELD;
	}
	return 1;
}

/* Until QEMU says or writes something. */
static void await_either(struct qemu *vm, unsigned timeout_ms)
{
	struct pollfd either[] = {{.fd = vm->stream_fd, .events = POLLIN},
				  {.fd = qmp_fd(vm->qmp), .events = POLLIN}};

	poll(either, 2, (int)timeout_ms);
}

int stream_ahead(struct qemu *vm, void *buffer, size_t room, size_t *bytes,
		 struct jaunt_error *error)
{
	bool last = false;

	*bytes = 0;
	for (;;) {
		/* First: what it wrote before it said so is there to be taken then. */
		int held = is_held(vm, error), result = 1;
		if (held < 0)
			return held;
		if (!held && !last &&
		    (clock_ns() - vm->begun_ns > AHEAD_NS || vm->ahead_bytes > AHEAD_BYTES))
			return 0;
		while (result == 1 && *bytes < room)
			result = take(vm, (char *)buffer + *bytes, room - *bytes, bytes, error);
		vm->ahead_bytes += *bytes;
		if (result == 0)
			return has_failed(vm, error);
		if (result < 0 && result != -EAGAIN)
			return result;
		if (held && result == -EAGAIN)
			return 0;
		if (*bytes || last)
			return held ? 2 : 1;
		await_either(vm, MOMENT_MS);
		last = true;
	}
}

/* All that QEMU writes until it waits. */
static int take_ahead(struct qemu *vm, struct bytes *bytes, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_SLOW_MS * UINT64_C(1000000);

	for (;;) {
		int held = is_held(vm, error), result;
		if (held < 0)
			return held;
		do {
			result = grow(bytes, error);
			if (result == 0)
				result = take(vm, bytes->all + bytes->count,
					      bytes->room - bytes->count, &bytes->count, error);
		} while (result == 1);
		if (result != -EAGAIN)
			return result ? result : has_failed(vm, error);
		if (held)
			return 0;
		if (clock_ns() > deadline_ns)
			return is_silent(error);
		await_either(vm, MOMENT_MS);
	}
}

/* All that it writes until it closes. */
static int take_all(struct qemu *vm, struct bytes *bytes, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_SLOW_MS * UINT64_C(1000000);

	for (;;) {
		int result = grow(bytes, error);
		if (result)
			return result;
		result = take(vm, bytes->all + bytes->count, bytes->room - bytes->count,
			      &bytes->count, error);
		if (result == -EAGAIN)
			result = ready(vm->stream_fd, POLLIN, deadline_ns, error);
		else if (result == 0)
			return 0;
		if (result < 0)
			return result;
	}
}

/* Whether any of it was told ahead or not, QEMU waits: its settings are of before. */
static int save_held(struct qemu *vm, struct bytes *got, struct jaunt_error *error)
{
	int result = take_ahead(vm, got, error);

	if (result)
		return result;
	return qmp_execute(vm->qmp, "migrate-continue",
			   json_pack("{s:s}", "state", "pre-switchover"), QEMU_ANSWER_MS, NULL,
			   error);
}

int stream_save(struct qemu *vm, void **state, size_t *bytes, struct jaunt_error *error)
{
	struct bytes got = {0};
	int result = vm->under_way ? 0 : start_saving(vm, error);

	if (result == 0 && vm->ahead)
		result = save_held(vm, &got, error);
	if (result == 0)
		result = take_all(vm, &got, error);
	if (result == 0)
		result = await_end(vm, error);
	*state = got.all;
	*bytes = got.count;
	if (result) {
		stream_cancel(vm, NULL); /* where it is still at it */
		return result;
	}
	stream_withdraw(vm);
	vm->under_way = false;
	return 0;
}

/* By its own words. */
static bool is_migrating(struct qemu *vm)
{
	static const char *const over[] = {"none", "completed", "failed", "cancelled"};
	json_t *answer = NULL;
	int result = qmp_execute(vm->qmp, "query-migrate", NULL, QEMU_ANSWER_MS, &answer, NULL);
	const char *status = json_string_value(json_object_get(answer, "status"));
	bool migrating = result == 0 && status;

	for (size_t i = 0; migrating && i < sizeof(over) / sizeof(over[0]); i++)
		migrating = strcmp(status, over[i]) != 0;
	json_decref(answer);
	return migrating;
}

static bool says(struct qemu *vm, const char *wanted)
{
	json_t *answer = NULL;
	int result = qmp_execute(vm->qmp, "query-migrate", NULL, QEMU_ANSWER_MS, &answer, NULL);
	const char *status = json_string_value(json_object_get(answer, "status"));
	bool is = result == 0 && status && strcmp(status, wanted) == 0;

	json_decref(answer);
	return is;
}

bool stream_waits(struct qemu *vm)
{
	return says(vm, "pre-switchover");
}

bool stream_is_written(struct qemu *vm)
{
	return says(vm, "completed");
}

int stream_cancel(struct qemu *vm, struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + QEMU_ANSWER_MS * UINT64_C(1000000);

	/* First: one that waits for us to take what it writes would not hear of it. */
	stream_withdraw(vm);
	vm->under_way = false;
	int result = qmp_execute(vm->qmp, "migrate_cancel", NULL, QEMU_ANSWER_MS, NULL, error);
	while (result == 0 && is_migrating(vm)) {
		if (clock_ns() > deadline_ns)
			return error_set(error, ETIMEDOUT, "qemu-silent",
					 "QEMU does not give up its migration");
		qmp_wait(vm->qmp, "MIGRATION", MOMENT_MS, NULL, NULL);
	}
	return result;
}

/* --- Loading -----------------------------------------------------------------------------------
 */

/* -EPIPE: it does not want more; its last word says why. */
static int give_all(struct qemu *vm, const char *bytes, size_t count, unsigned timeout_ms,
		    struct jaunt_error *error)
{
	uint64_t deadline_ns = clock_ns() + timeout_ms * UINT64_C(1000000);

	for (size_t done = 0; done < count;) {
		ssize_t sent = send(vm->stream_fd, bytes + done, count - done,
				    MSG_NOSIGNAL | MSG_DONTWAIT);
		int result = 0;
		if (sent >= 0)
			done += (size_t)sent;
		else if (errno == EAGAIN)
			result = ready(vm->stream_fd, POLLOUT, deadline_ns, error);
		else if (errno != EINTR)
			return -EPIPE;
		if (result)
			return result;
	}
	return 0;
}

static int start_loading(struct qemu *vm, struct jaunt_error *error)
{
	int result = vm->stream_fd >= 0 ? 0 : stream_offer(vm, error);

	if (result)
		return result;
	vm->spent = true;
	/* To one that waits for a guest this says not to run it by itself, whatever the stream says
	 * of the guest: one that was begun while it ran says "running". */
	result = qmp_execute(vm->qmp, "stop", NULL, QEMU_ANSWER_MS, NULL, error);
	if (result)
		return result;
	return qmp_execute(vm->qmp, "migrate-incoming", json_pack("{s:s}", "uri", "fd:" NAME),
			   QEMU_ANSWER_MS, NULL, error);
}

static int await_loaded(struct qemu *vm, struct jaunt_error *error)
{
	int result = await_end(vm, error);

	/* As QEMU 7.2 does when it cannot load. */
	if (result == -ECONNRESET)
		error_set(
			error, EIO, "qemu-state",
			"QEMU ended while it loaded the device state; its log says why. Were both "
			"started with the same machine and devices?");
	return result == -ECONNRESET ? -EIO : result;
}

int stream_load_ahead(struct qemu *vm, const void *state, size_t bytes, struct jaunt_error *error)
{
	int result = 0;

	if (!vm->under_way) {
		vm->under_way = true;
		result = start_loading(vm, error);
	}
	if (result == 0)
		result = give_all(vm, state, bytes, TAKE_MS, error);
	if (result != -EPIPE)
		return result;
	result = await_loaded(vm, error);
	return result ? result
		      : error_set(error, EIO, "qemu-state",
				  "QEMU ended its load before all of the device state was there");
}

int stream_load(struct qemu *vm, const void *state, size_t bytes, struct jaunt_error *error)
{
	int result = vm->under_way ? 0 : start_loading(vm, error);

	if (result == 0)
		result = give_all(vm, state, bytes, QEMU_SLOW_MS, error);
	shutdown(vm->stream_fd, SHUT_WR);
	if (result == 0 || result == -EPIPE)
		result = await_loaded(vm, error);
	stream_withdraw(vm);
	vm->under_way = false;
	return result;
}
