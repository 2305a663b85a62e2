/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/guest_qemu.h"
#include "cli/runtime.h"
#include "cli/snapshot.h"
#include "cli/text.h"
#include "cli/vmname.h"

#define CLIENT_ANSWER_MS 10000

int client_open(struct client *client, const char *name, struct jaunt_error *error)
{
	char own[RUNTIME_NAME_MAX + 1];
	int fd = vmname_runtime(own, name, error);

	client->lines = (struct lines){.fd = -1};
	if (fd == 0)
		fd = runtime_connect(own, error);
	if (fd == -ENOENT && vmname_monitor(name))
		fd = guest_qemu_idle(name, error);
	if (fd < 0)
		return fd;
	snprintf(client->name, sizeof(client->name), "%s", name);
	if (lines_open(&client->lines, fd))
		return error_set(error, ENOMEM, "no-memory", "not enough memory");
	return 0;
}

void client_close(struct client *client)
{
	lines_close(&client->lines);
}

int client_event(struct client *client, int timeout_ms, int wake_fd, json_t **event)
{
	uint64_t end = clock_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000;

	for (;;) {
		int taken = lines_take(&client->lines, event);
		if (taken)
			return taken;
		struct pollfd polled[] = {{.fd = client->lines.fd, .events = POLLIN},
					  {.fd = wake_fd, .events = POLLIN}};
		uint64_t now = clock_ns();
		int left = timeout_ms < 0 ? -1 : now >= end ? 0 : (int)((end - now) / 1000000) + 1;
		if (client->lines.out_bytes)
			polled[0].events |= POLLOUT;
		int ready = poll(polled, 2, left);
		if (ready < 0 && errno != EINTR)
			return -errno;
		if (ready == 0 || polled[1].revents)
			return 0;
		if (ready < 0)
			continue;
		if (polled[0].revents & POLLOUT) {
			int result = lines_flush(&client->lines);
			if (result)
				return -EPIPE;
		}
		if (polled[0].revents & (POLLIN | POLLHUP | POLLERR)) {
			int filled = lines_fill(&client->lines);
			if (filled < 0 && !memchr(client->lines.in, '\n', client->lines.in_bytes))
				return -EPIPE;
		}
	}
}

enum jaunt_outcome client_request(struct client *client, json_t *request, json_t **reply,
				  struct jaunt_error *error)
{
	json_t *answer = NULL;
	int result = lines_put(&client->lines, request);

	/* Events of a migration that we follow already may come before the answer. */
	while (!result) {
		int got = client_event(client, CLIENT_ANSWER_MS, -1, &answer);
		if (got <= 0) {
			result = got ? got : -ETIMEDOUT;
		} else if (json_object_get(answer, "ok")) {
			break;
		} else {
			json_decref(answer);
			answer = NULL;
		}
	}
	if (result) {
		error_set(error, -result, result == -ETIMEDOUT ? "no-answer" : "owner-gone",
			  result == -ETIMEDOUT
				  ? "the process that owns %s does not answer; is it stopped?"
				  : "the process that owns %s went away while it was asked",
			  client->name);
		return JAUNT_FAILED;
	}
	if (json_is_true(json_object_get(answer, "ok"))) {
		if (reply)
			*reply = answer;
		else
			json_decref(answer);
		return JAUNT_DONE;
	}
	char reason[40], text[1024];
	const char *said = json_string_value(json_object_get(answer, "error"));
	text_clean(reason, sizeof(reason), json_string_value(json_object_get(answer, "reason")));
	text_clean(text, sizeof(text), said ? said : "it was refused without a word");
	error_set(error, EREMOTEIO, reason, "%s", text);
	json_int_t code = json_integer_value(json_object_get(answer, "code"));
	json_decref(answer);
	return code >= JAUNT_FAILED && code <= JAUNT_UNKNOWN ? (enum jaunt_outcome)code
							     : JAUNT_FAILED;
}

bool client_ended(const json_t *event, enum jaunt_outcome *outcome)
{
	const char *kind = json_string_value(json_object_get(event, "event"));
	json_int_t told = json_integer_value(json_object_get(event, "outcome"));

	if (!kind || strcmp(kind, "end") != 0)
		return false;
	*outcome = told >= JAUNT_DONE && told <= JAUNT_UNKNOWN ? (enum jaunt_outcome)told
							       : JAUNT_UNKNOWN;
	return true;
}

enum jaunt_outcome client_follow(struct client *client, struct jaunt_status *status, json_t **last,
				 struct jaunt_error *error)
{
	enum jaunt_outcome outcome;
	json_t *event;

	while (client_event(client, -1, -1, &event) > 0) {
		bool ended = client_ended(event, &outcome);
		if (json_object_get(event, "event"))
			snapshot_parse(status, json_object_get(event, "migration"));
		if (ended && last)
			*last = json_incref(event);
		json_decref(event);
		if (ended)
			return outcome;
	}
	error_set(error, EPIPE, "owner-gone",
		  "the process that owns %s ended without a word; look at the other host before "
		  "you start the VM anywhere",
		  client->name);
	return JAUNT_UNKNOWN;
}
