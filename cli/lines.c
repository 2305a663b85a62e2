/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int lines_open(struct lines *lines, int fd)
{
	*lines = (struct lines){.fd = fd, .in = malloc(LINES_IN_MAX)};
	if (!lines->in) {
		close(fd);
		lines->fd = -1;
		return -ENOMEM;
	}
	return 0;
}

void lines_close(struct lines *lines)
{
	if (lines->fd >= 0)
		close(lines->fd);
	free(lines->in);
	free(lines->out);
	*lines = (struct lines){.fd = -1};
}

int lines_fill(struct lines *lines)
{
	if (lines->in_bytes == LINES_IN_MAX)
		return 1;
	ssize_t got = recv(lines->fd, lines->in + lines->in_bytes, LINES_IN_MAX - lines->in_bytes,
			   MSG_DONTWAIT);
	if (got == 0)
		return -EPIPE;
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	lines->in_bytes += (size_t)got;
	return 1;
}

int lines_take(struct lines *lines, json_t **object)
{
	char *end = memchr(lines->in, '\n', lines->in_bytes);
	json_error_t error;

	if (!end)
		return lines->in_bytes == LINES_IN_MAX ? -EMSGSIZE : 0;
	size_t used = (size_t)(end - lines->in) + 1;
	/* Jansson bounds the depth of nesting itself (2048), so a hostile line cannot overrun the
	 * stack. */
	*object = json_loadb(lines->in, used - 1, JSON_REJECT_DUPLICATES, &error);
	memmove(lines->in, lines->in + used, lines->in_bytes - used);
	lines->in_bytes -= used;
	if (!json_is_object(*object)) {
		json_decref(*object);
		*object = NULL;
		return -EPROTO;
	}
	return 1;
}

int lines_flush(struct lines *lines)
{
	size_t done = 0;
	int result = 0;

	while (done < lines->out_bytes) {
		ssize_t sent = send(lines->fd, lines->out + done, lines->out_bytes - done,
				    MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0) {
			if (errno == EINTR)
				continue;
			result = errno == EAGAIN ? 0 : -errno;
			break;
		}
		done += (size_t)sent;
	}
	if (done)
		memmove(lines->out, lines->out + done, lines->out_bytes - done);
	lines->out_bytes -= done;
	return result;
}

int lines_put(struct lines *lines, json_t *object)
{
	char *text = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
	int result = 0;

	json_decref(object);
	if (!text)
		return -ENOMEM;
	size_t length = strlen(text);
	if (lines->out_bytes + length + 1 > LINES_OUT_MAX) {
		result = -ENOBUFS;
	} else {
		char *grown = realloc(lines->out, lines->out_bytes + length + 1);
		if (grown) {
			lines->out = grown;
			memcpy(grown + lines->out_bytes, text, length + 1);
			grown[lines->out_bytes + length] = '\n';
			lines->out_bytes += length + 1;
		} else {
			result = -ENOMEM;
		}
	}
	free(text);
	return result ? result : lines_flush(lines);
}
