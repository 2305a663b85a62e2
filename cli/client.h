/* SPDX-License-Identifier: Apache-2.0 */
/* A command's end of the connection to the process that owns a VM. */
#ifndef CLI_CLIENT_H
#define CLI_CLIENT_H

#include <jansson.h>
#include <stdbool.h>

#include "cli/lines.h"
#include "jaunt.h"

struct client {
	char name[160]; /* as the user wrote it */
	struct lines lines;
};

int client_open(struct client *client, const char *name, struct jaunt_error *error);
void client_close(struct client *client);

/* Sends a request (taking its reference) and waits for the answer; *reply gets a new reference (may
 * be NULL). Returns the exit code: JAUNT_DONE, or that of the refusal with `error` filled. */
enum jaunt_outcome client_request(struct client *client, json_t *request, json_t **reply,
				  struct jaunt_error *error);

/* The next event, waiting up to timeout_ms for it or until `wake_fd` (-1: none) is readable. 1 with
 * a new reference; 0: none; -EPIPE: the owner is gone; -errno. */
int client_event(struct client *client, int timeout_ms, int wake_fd, json_t **event);

/* Whether an event is the last of a migration, and then how that ended. */
bool client_ended(const json_t *event, enum jaunt_outcome *outcome);

/* Follows events to the last one. Returns its outcome and fills `status`; *last (which may be NULL)
 * gets a new reference to it. JAUNT_UNKNOWN with `error` filled if the owner went without one. */
enum jaunt_outcome client_follow(struct client *client, struct jaunt_status *status, json_t **last,
				 struct jaunt_error *error);

#endif
