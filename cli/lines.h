/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON objects, one a line, over a non-blocking socket: what the commands speak to the process that
 * owns a VM. Bounded both ways; never blocks. Not thread-safe.
 */
#ifndef CLI_LINES_H
#define CLI_LINES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define LINES_IN_MAX  (64u << 10) /* bytes of the longest line */
#define LINES_OUT_MAX (1u << 20)  /* bytes waiting to be written */

struct lines {
	int fd;
	char *in;
	size_t in_bytes;
	char *out;
	size_t out_bytes;
};

/* Takes over `fd`. -ENOMEM: `fd` is closed. */
int lines_open(struct lines *lines, int fd);
void lines_close(struct lines *lines);

/* Reads what has arrived. 1: more may be there; 0: nothing more now; -EPIPE: the other side closed;
 * -errno. */
int lines_fill(struct lines *lines);

/* Takes the next whole line. 1 and a new reference in *object; 0: none yet; -EMSGSIZE: longer than
 * LINES_IN_MAX; -EPROTO: not a JSON object. */
int lines_take(struct lines *lines, json_t **object);

/* Queues an object (taking its reference) and writes what the socket takes. -ENOBUFS: it was not
 * queued, too much is waiting; -EPIPE; -ENOMEM. */
int lines_put(struct lines *lines, json_t *object);

/* Writes what is waiting. 0 or -errno; see out_bytes for what is left. */
int lines_flush(struct lines *lines);

#endif
