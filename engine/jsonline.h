/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of JSON gathered in a buffer; the caller keeps room in it (see jsonline_string) and empties
 * it. No thread safety. */
#ifndef ENGINE_JSONLINE_H
#define ENGINE_JSONLINE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define JSONLINE_BYTES (64u << 10)

struct jsonline {
	size_t used;
	char bytes[JSONLINE_BYTES];
};

static inline void jsonline_bytes(struct jsonline *line, const char *bytes, size_t count)
{
	memcpy(line->bytes + line->used, bytes, count);
	line->used += count;
}

#define jsonline_literal(line, text) jsonline_bytes((line), "" text, sizeof(text) - 1)

/* At most 20 bytes. */
void jsonline_number(struct jsonline *line, uint64_t value);

/* A JSON string, quotes included: at most six times the length of `text`, and two bytes. What is no
 * UTF-8 becomes U+FFFD. */
void jsonline_string(struct jsonline *line, const char *text);

#endif
