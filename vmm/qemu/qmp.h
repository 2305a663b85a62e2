/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of QMP, QEMU's monitor protocol: commands with timeouts, and events kept until somebody
 * waits for them. One thread at a time. Whatever QEMU does, or whoever answers in its place, each
 * call ends by its timeout, and memory is bounded.
 *
 * Errors come as -errno with `error` filled. Reasons: "qemu-unreachable" (nobody listens, or they
 * hang up at once), "qemu-silent" (no answer in time), "qemu-gone" (it closed the connection:
 * ended, or died), "qmp-protocol" (what came is not QMP), "qemu-refused" (it said no; the text is
 * QEMU's). After any but "qemu-refused" and "qemu-silent" the connection is of no more use.
 */
#ifndef VMM_QEMU_QMP_H
#define VMM_QEMU_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "jaunt.h"

#define QMP_LINE_MAX (8u << 20) /* bytes of the longest message; the schema takes 200 KiB */

struct qmp;

/* Connects to a unix socket and negotiates. All of it within timeout_ms. */
int qmp_open(struct qmp **out, const char *path, unsigned timeout_ms, struct jaunt_error *error);
/* The same for a QEMU that may not answer for now, its monitor's thread waiting for a page of the
 * guest's: the first command negotiates, in its own time. */
int qmp_connect(struct qmp **out, const char *path, struct jaunt_error *error);
void qmp_close(struct qmp *qmp);
/* Whether it is. Before, no command has been sent. */
bool qmp_is_negotiated(const struct qmp *qmp);

/* To be polled for input beside others: there is none for what has been read and not taken. */
int qmp_fd(const struct qmp *qmp);
/* Who listens at the socket, as the kernel says. */
pid_t qmp_process(const struct qmp *qmp);
/* QEMU's version as 10000 * major + 100 * minor + micro. */
unsigned qmp_version(const struct qmp *qmp);

/* Takes the reference to `arguments` (NULL: none). What QEMU returned goes to *result, a new
 * reference, if `result` is not NULL. With a timeout of 0 the command is sent, and its answer
 * dropped when it comes. */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, unsigned timeout_ms,
		json_t **result, struct jaunt_error *error);

/* Gives QEMU a copy of a descriptor, under a name that commands like `migrate` know it by; in place
 * of one of that name which was not used. */
int qmp_pass(struct qmp *qmp, const char *name, int fd, unsigned timeout_ms,
	     struct jaunt_error *error);

/* The same command `count` times over without waiting for each answer; takes all references. What
 * QEMU refuses has the result NULL and is no error. `timeout_ms` is for each. */
int qmp_execute_each(struct qmp *qmp, const char *command, json_t **arguments, size_t count,
		     unsigned timeout_ms, json_t **results, struct jaunt_error *error);

/* The oldest event of that name that was not taken yet, waiting for one if there is none; with
 * a timeout of 0 it is one that QEMU has told already. A new reference to the whole of it, with
 * "data" and "timestamp", goes to *event unless that is NULL. */
int qmp_wait(struct qmp *qmp, const char *name, unsigned timeout_ms, json_t **event,
	     struct jaunt_error *error);
/* The same of the last event of that name that QEMU has told. All of that name before it are
 * forgotten, and all called `undone`: what they told of it has undone. */
int qmp_wait_last(struct qmp *qmp, const char *name, const char *undone, unsigned timeout_ms,
		  json_t **event, struct jaunt_error *error);
/* Forgets the events of that name that QEMU has told so far: of interest is what follows. */
void qmp_forget(struct qmp *qmp, const char *name);
/* The same of those that were told before the answer to the last command. */
void qmp_forget_before(struct qmp *qmp, const char *name);
/* Whether the last that was told of the two is `name`. */
bool qmp_stands(struct qmp *qmp, const char *name, const char *undone);

#endif
