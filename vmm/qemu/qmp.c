/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Every command carries a number as its "id", and QEMU repeats it in the answer. So an answer that
 * comes after its command was given up is recognised and dropped, and the next command is not taken
 * in by it. Whatever is read while waiting for something else is either an event, which is kept, or
 * such a late answer.
 *
 * A monitor serves one client at a time: a second one is connected by the kernel and hears nothing
 * until the first has left.
 */
#include "vmm/qemu/qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/qemu/agent/pass.h"
#include "vmm/qemu/events.h"

#define ROOM_FIRST (64u << 10)
#define AHEAD      16   /* commands that QEMU has and has not answered */
#define BACKLOG    4096 /* messages: more than a socket holds */

struct qmp {
	int fd;
	pid_t process;
	unsigned version;
	json_int_t last_id;
	json_t *events;
	char *in;
	size_t bytes, room; /* of `in`: read and not taken; allocated */
	size_t looked;      /* so many bytes of it hold no end of line */
	bool broken;        /* what comes next cannot be relied upon */
	bool greeted, negotiated;
};

/* --- Bytes --------------------------------------------------------------------------------------
 */

static int gone(struct qmp *qmp, struct jaunt_error *error)
{
	qmp->broken = true;
	return error_set(error, ECONNRESET, "qemu-gone",
			 "QEMU closed its monitor: it ended or died; see its own log");
}

static int not_qmp(struct qmp *qmp, struct jaunt_error *error, const char *what)
{
	qmp->broken = true;
	return error_set(error, EPROTO, "qmp-protocol",
			 "%s; is this the socket of a QMP monitor (-qmp unix:PATH,server=on)?",
			 what);
}

/* Waits until the socket is ready for `what`. */
static int ready(struct qmp *qmp, short what, uint64_t deadline_ns, struct jaunt_error *error)
{
	struct pollfd waiting = {.fd = qmp->fd, .events = what};

	for (;;) {
		uint64_t now = clock_ns();
		if (now >= deadline_ns)
			return error_set(error, ETIMEDOUT, "qemu-silent",
					 "QEMU did not answer in time; is it stopped, or busy?");
		uint64_t left_ms = (deadline_ns - now + 999999) / 1000000;
		int count = poll(&waiting, 1, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms);
		if (count > 0)
			return 0;
		if (count < 0 && errno != EINTR)
			return error_set(error, errno, "qemu-unreachable", "poll: %s",
					 strerror(errno));
	}
}

/* A descriptor, if there is one, goes with the first of the bytes. */
static ssize_t write_some(struct qmp *qmp, const char *text, size_t bytes, int passed)
{
	struct iovec part = {(void *)text, bytes};
	union pass_room room;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	pass_descriptor(&message, &room, passed);
	return sendmsg(qmp->fd, &message, MSG_NOSIGNAL);
}

static int write_all(struct qmp *qmp, const char *text, size_t bytes, int passed,
		     uint64_t deadline_ns, struct jaunt_error *error)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t sent = write_some(qmp, text + done, bytes - done, done ? -1 : passed);
		if (sent >= 0) {
			done += (size_t)sent;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return gone(qmp, error);
		int result = ready(qmp, POLLOUT, deadline_ns, error);
		if (result) {
			/* Half a command: what follows would be taken for its end. */
			qmp->broken = qmp->broken || done;
			return result;
		}
	}
	return 0;
}

static int grow(struct qmp *qmp, struct jaunt_error *error)
{
	size_t room = qmp->room ? qmp->room * 2 : ROOM_FIRST;

	if (qmp->bytes < qmp->room)
		return 0;
	if (qmp->room >= QMP_LINE_MAX)
		return not_qmp(qmp, error, "a message without an end came");
	char *in = realloc(qmp->in, room);
	if (!in) {
		qmp->broken = true;
		return error_set(error, ENOMEM, "no-memory", "no memory for QEMU's answer");
	}
	qmp->in = in;
	qmp->room = room;
	return 0;
}

/* The end of the first line in what was read, or NULL. */
static char *line_end(struct qmp *qmp)
{
	char *end = qmp->in && qmp->bytes > qmp->looked
			    ? memchr(qmp->in + qmp->looked, '\n', qmp->bytes - qmp->looked)
			    : NULL;

	qmp->looked = end ? 0 : qmp->bytes;
	return end;
}

/* Reads some of what has come. -EAGAIN, without an error: nothing has. */
static int read_some(struct qmp *qmp, struct jaunt_error *error)
{
	int result = grow(qmp, error);

	if (result)
		return result;
	ssize_t got = recv(qmp->fd, qmp->in + qmp->bytes, qmp->room - qmp->bytes, 0);
	if (got > 0)
		qmp->bytes += (size_t)got;
	else if (got == 0 || (errno != EAGAIN && errno != EINTR))
		return gone(qmp, error);
	return got > 0 ? 0 : -EAGAIN;
}

/* The first line of what was read, which ends there. */
static int take(struct qmp *qmp, const char *end, json_t **message, struct jaunt_error *error)
{
	json_error_t ignored;
	size_t bytes = (size_t)(end - qmp->in);

	*message = json_loadb(qmp->in, bytes, 0, &ignored);
	/* QEMU tells unsigned numbers of 64 bits, and jansson takes signed ones. */
	if (!*message)
		*message = json_loadb(qmp->in, bytes, JSON_DECODE_INT_AS_REAL, &ignored);
	qmp->bytes -= bytes + 1;
	memmove(qmp->in, end + 1, qmp->bytes);
	if (!json_is_object(*message)) {
		json_decref(*message);
		return not_qmp(qmp, error, "something that is not a JSON object came");
	}
	return 0;
}

/* One message. */
static int next(struct qmp *qmp, json_t **message, uint64_t deadline_ns, struct jaunt_error *error)
{
	char *end;

	while (!(end = line_end(qmp))) {
		int result = read_some(qmp, error);
		/* Somebody who never stops talking is not to hold us longer than one who is
		 * silent. */
		if (result == -EAGAIN || (result == 0 && clock_ns() >= deadline_ns))
			result = ready(qmp, POLLIN, deadline_ns, error);
		if (result)
			return result;
	}
	return take(qmp, end, message, error);
}

/* --- Messages -----------------------------------------------------------------------------------
 */

/* Hears what QEMU has said already, and waits for nothing: events are kept, late answers dropped.
 */
static int catch_up(struct qmp *qmp, struct jaunt_error *error)
{
	int result = qmp->broken ? gone(qmp, error) : 0;

	/* Before it is negotiated nothing comes but the greeting. */
	for (int taken = 0; result == 0 && qmp->negotiated && taken < BACKLOG;) {
		json_t *message;
		const char *end = line_end(qmp);
		result = end ? take(qmp, end, &message, error) : read_some(qmp, error);
		if (!end || result)
			continue;
		taken++;
		if (events_is_one(message))
			events_keep(qmp->events, message);
		else
			json_decref(message);
	}
	return result == -EAGAIN ? 0 : result;
}

/* The answer to command `id`; a new reference. Errors that carry no id (QEMU could not read the
 * command at all) are taken as well. */
static int answer_to(struct qmp *qmp, json_int_t id, json_t **answer, uint64_t deadline_ns,
		     struct jaunt_error *error)
{
	for (;;) {
		json_t *message;
		int result = next(qmp, &message, deadline_ns, error);
		if (result)
			return result;
		if (events_is_one(message)) {
			events_keep(qmp->events, message);
		} else {
			json_t *number = json_object_get(message, "id");
			if (json_is_number(number) ? json_number_value(number) == (double)id
						   : !number && json_object_get(message, "error")) {
				*answer = message;
				return 0;
			}
			json_decref(message);
		}
		if (clock_ns() >= deadline_ns)
			return ready(qmp, POLLIN, deadline_ns, error);
	}
}

static int outcome(struct qmp *qmp, json_t *answer, json_t **result, struct jaunt_error *error)
{
	json_t *refusal = json_object_get(answer, "error");
	json_t *value = json_object_get(answer, "return");

	if (refusal) {
		const char *text = json_string_value(json_object_get(refusal, "desc"));
		const char *class = json_string_value(json_object_get(refusal, "class"));
		bool unknown = class && strcmp(class, "CommandNotFound") == 0;
		return error_set(error, unknown ? ENOSYS : EINVAL, "qemu-refused", "%s",
				 text ? text : "QEMU refused, and gave no reason");
	}
	if (!value)
		return not_qmp(qmp, error, "an answer that is neither a result nor an error came");
	if (result)
		*result = json_incref(value);
	return 0;
}

/* Takes the reference to `arguments`. */
static int request(struct qmp *qmp, const char *command, json_t *arguments, int passed,
		   uint64_t deadline_ns, struct jaunt_error *error)
{
	json_t *whole = json_pack("{s:s, s:I, s:o*}", "execute", command, "id", ++qmp->last_id,
				  "arguments", arguments);
	char *text = whole ? json_dumps(whole, JSON_COMPACT) : NULL;

	json_decref(whole);
	if (!text)
		return error_set(error, ENOMEM, "no-memory", "no memory for a command");
	/* The end of the line in place of the string's. */
	size_t bytes = strlen(text);
	text[bytes] = '\n';
	int status = qmp->broken ? gone(qmp, error)
				 : write_all(qmp, text, bytes + 1, passed, deadline_ns, error);
	free(text);
	return status;
}

static int result_of(struct qmp *qmp, json_int_t id, uint64_t deadline_ns, json_t **result,
		     struct jaunt_error *error)
{
	json_t *answer = NULL;
	int status = answer_to(qmp, id, &answer, deadline_ns, error);

	if (status)
		return status;
	status = outcome(qmp, answer, result, error);
	json_decref(answer);
	return status;
}

static int execute(struct qmp *qmp, const char *command, json_t *arguments, int passed,
		   uint64_t deadline_ns, json_t **result, struct jaunt_error *error)
{
	int status = request(qmp, command, arguments, passed, deadline_ns, error);
	return status ? status : result_of(qmp, qmp->last_id, deadline_ns, result, error);
}

static uint64_t deadline_in(unsigned timeout_ms)
{
	return clock_ns() + (uint64_t)timeout_ms * 1000000;
}

static int greet(struct qmp *qmp, uint64_t deadline_ns, struct jaunt_error *error);

int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, unsigned timeout_ms,
		json_t **result, struct jaunt_error *error)
{
	uint64_t deadline_ns = deadline_in(timeout_ms);
	int status = qmp->negotiated ? 0 : greet(qmp, deadline_ns, error);

	if (status)
		json_decref(arguments);
	else
		status = execute(qmp, command, arguments, -1, deadline_ns, result, error);
	if (status)
		error_context(error, "QEMU: %s", command);
	return status;
}

int qmp_execute_each(struct qmp *qmp, const char *command, json_t **arguments, size_t count,
		     unsigned timeout_ms, json_t **results, struct jaunt_error *error)
{
	json_int_t first = qmp->last_id + 1;
	size_t sent = 0, done = 0;
	int status = 0;

	memset(results, 0, count * sizeof(*results));
	while (done < count && !status) {
		while (sent < count && sent < done + AHEAD && !status) {
			status = request(qmp, command, arguments[sent], -1, deadline_in(timeout_ms),
					 error);
			arguments[sent++] = NULL;
		}
		if (!status)
			status = result_of(qmp, first + (json_int_t)done, deadline_in(timeout_ms),
					   &results[done], error);
		if (status == -EINVAL || status == -ENOSYS)
			status = 0;
		done++;
	}
	for (; sent < count; sent++)
		json_decref(arguments[sent]);
	if (status)
		error_context(error, "QEMU: %s", command);
	else
		error_clear(error);
	return status;
}

int qmp_pass(struct qmp *qmp, const char *name, int fd, unsigned timeout_ms,
	     struct jaunt_error *error)
{
	int status = execute(qmp, "getfd", json_pack("{s:s}", "fdname", name), fd,
			     deadline_in(timeout_ms), NULL, error);

	if (status)
		error_context(error, "QEMU: getfd");
	return status;
}

/* Until one of that name is kept. */
static int await_event(struct qmp *qmp, const char *name, unsigned timeout_ms,
		       struct jaunt_error *error)
{
	uint64_t deadline_ns = deadline_in(timeout_ms);
	int status = catch_up(qmp, error);

	for (bool kept = events_first(qmp->events, name) >= 0; !kept;) {
		json_t *message = NULL;
		if (status == 0)
			status = next(qmp, &message, deadline_ns, error);
		if (status) {
			error_context(error, "waiting for %s", name);
			return status;
		}
		if (events_is_one(message)) {
			kept = events_is_named(message, name);
			events_keep(qmp->events, message);
		} else {
			json_decref(message);
		}
	}
	error_clear(error);
	return 0;
}

int qmp_wait(struct qmp *qmp, const char *name, unsigned timeout_ms, json_t **event,
	     struct jaunt_error *error)
{
	int status = await_event(qmp, name, timeout_ms, error);

	if (status == 0)
		events_take(qmp->events, (size_t)events_first(qmp->events, name), event);
	return status;
}

int qmp_wait_last(struct qmp *qmp, const char *name, const char *undone, unsigned timeout_ms,
		  json_t **event, struct jaunt_error *error)
{
	int status = await_event(qmp, name, timeout_ms, error);

	if (status)
		return status;
	size_t last = (size_t)events_last(qmp->events, name);
	events_take(qmp->events, last, event);
	events_forget(qmp->events, undone, last);
	events_forget(qmp->events, name, json_array_size(qmp->events));
	return 0;
}

void qmp_forget(struct qmp *qmp, const char *name)
{
	catch_up(qmp, NULL);
	qmp_forget_before(qmp, name);
}

void qmp_forget_before(struct qmp *qmp, const char *name)
{
	events_forget(qmp->events, name, json_array_size(qmp->events));
}

bool qmp_stands(struct qmp *qmp, const char *name, const char *undone)
{
	catch_up(qmp, NULL);
	return events_last(qmp->events, name) > events_last(qmp->events, undone);
}

/* --- Opening ------------------------------------------------------------------------------------
 */

static int unreachable(struct jaunt_error *error, const char *path, int code)
{
	return error_set(error, code, "qemu-unreachable",
			 "no QEMU listens at %s: %s; give it a monitor with -qmp "
			 "unix:PATH,server=on,wait=off",
			 path, strerror(code));
}

static int connect_to(struct qmp *qmp, const char *path, struct jaunt_error *error)
{
	struct sockaddr_un place = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t bytes = sizeof(peer);

	if (strlen(path) >= sizeof(place.sun_path))
		return unreachable(error, path, ENAMETOOLONG);
	memcpy(place.sun_path, path, strlen(path) + 1);
	qmp->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* EAGAIN: too many wait to be heard already. */
	if (qmp->fd < 0 || connect(qmp->fd, (struct sockaddr *)&place, sizeof(place)))
		return unreachable(error, path, errno == EAGAIN ? EBUSY : errno);
	if (getsockopt(qmp->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0)
		qmp->process = peer.pid;
	return 0;
}

static int take_greeting(struct qmp *qmp, uint64_t deadline_ns, struct jaunt_error *error)
{
	int major = 0, minor = 0, micro = 0;
	json_t *greeting;
	int result = next(qmp, &greeting, deadline_ns, error);

	if (result == -ETIMEDOUT)
		return error_set(error, ETIMEDOUT, "qemu-silent",
				 "nobody greets there; a monitor hears one client at a time: if "
				 "something else uses this one, give QEMU a second -qmp for Jaunt");
	if (result)
		return result;
	result = json_unpack(greeting, "{s:{s:{s:{s:i, s:i, s:i}}}}", "QMP", "version", "qemu",
			     "major", &major, "minor", &minor, "micro", &micro);
	json_decref(greeting);
	if (result || major < 0 || major > 9999 || minor < 0 || minor > 99 || micro < 0 ||
	    micro > 99)
		return not_qmp(qmp, error, "the greeting is not that of a QEMU");
	qmp->version = (unsigned)(major * 10000 + minor * 100 + micro);
	qmp->greeted = true;
	return 0;
}

static int greet(struct qmp *qmp, uint64_t deadline_ns, struct jaunt_error *error)
{
	int result = qmp->greeted ? 0 : take_greeting(qmp, deadline_ns, error);

	if (result == 0)
		result = execute(qmp, "qmp_capabilities", NULL, -1, deadline_ns, NULL, error);
	if (qmp->greeted && result == -ENOSYS) { /* told before, in a time that was too short */
		error_clear(error);
		result = 0;
	}
	qmp->negotiated = result == 0;
	return result;
}

int qmp_connect(struct qmp **out, const char *path, struct jaunt_error *error)
{
	struct qmp *qmp = calloc(1, sizeof(*qmp));
	int result = -ENOMEM;

	if (qmp)
		*qmp = (struct qmp){.fd = -1, .events = json_array()};
	if (!qmp || !qmp->events)
		error_set(error, ENOMEM, "no-memory", "no memory for a monitor's client");
	else
		result = connect_to(qmp, path, error);
	if (result)
		qmp_close(qmp);
	else
		*out = qmp;
	return result;
}

int qmp_open(struct qmp **out, const char *path, unsigned timeout_ms, struct jaunt_error *error)
{
	struct qmp *qmp;
	int result = qmp_connect(&qmp, path, error);

	if (result)
		return result;
	result = greet(qmp, deadline_in(timeout_ms), error);
	if (result) {
		error_context(error, "%s", path);
		qmp_close(qmp);
	} else {
		*out = qmp;
	}
	return result;
}

void qmp_close(struct qmp *qmp)
{
	if (!qmp)
		return;
	if (qmp->fd >= 0)
		close(qmp->fd);
	json_decref(qmp->events);
	free(qmp->in);
	free(qmp);
}

bool qmp_is_negotiated(const struct qmp *qmp)
{
	return qmp->negotiated;
}

int qmp_fd(const struct qmp *qmp)
{
	return qmp->fd;
}

pid_t qmp_process(const struct qmp *qmp)
{
	return qmp->process;
}

unsigned qmp_version(const struct qmp *qmp)
{
	return qmp->version;
}
