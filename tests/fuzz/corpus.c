/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeds for the fuzzers, out of a recorded handshake: every line of the wanted channel once, and
 * the harness's mode byte in front of it (see frame_fuzz.c and control_fuzz.c): 0, the bytes as
 * they are, and 1, the envelope (checksum, length) made good by the harness.
 */
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

#define LENGTH_BYTES 4 /* in front of a control message; in mode 1 the harness adds it */

static int add(struct corpus *corpus, uint8_t mode, const uint8_t *data, size_t bytes)
{
	if (corpus->count == CORPUS_SEEDS_MAX)
		return -E2BIG;
	struct corpus_seed *seed = &corpus->seeds[corpus->count];
	seed->data = malloc(bytes + 1);
	if (!seed->data)
		return -ENOMEM;
	seed->data[0] = mode;
	memcpy(seed->data + 1, data, bytes);
	seed->bytes = bytes + 1;
	corpus->count++;
	return 0;
}

static int add_line(struct corpus *corpus, const char *hex, const char *channel)
{
	static uint8_t bytes[1 << 16];
	size_t count = 0, envelope = strcmp(channel, "control") ? 0 : LENGTH_BYTES;
	unsigned byte;

	while (count < sizeof(bytes) && sscanf(hex + 2 * count, "%2x", &byte) == 1)
		bytes[count++] = (uint8_t)byte;
	if (count <= envelope)
		return -EINVAL;
	int rc = add(corpus, 0, bytes, count);
	return rc ? rc : add(corpus, 1, bytes + envelope, count - envelope);
}

int corpus_read(struct corpus *corpus, const char *path, const char *channel)
{
	static char line[1 << 16];
	char of[16];
	int at, rc = 0;
	FILE *file = fopen(path, "r");

	corpus->count = 0;
	if (!file)
		return -errno;
	while (!rc && fgets(line, sizeof(line), file))
		if (*line != '#' && sscanf(line, "%*s %15s %*s %n", of, &at) == 1 &&
		    !strcmp(of, channel))
			rc = add_line(corpus, line + at, channel);
	fclose(file);
	if (!rc && !corpus->count)
		rc = -ENODATA;
	return rc;
}
