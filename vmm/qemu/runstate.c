/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/runstate.h"

#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int runstate_ask(struct qmp *qmp, unsigned timeout_ms, char word[RUNSTATE_MAX],
		 struct jaunt_error *error)
{
	json_t *answer = NULL;
	int result = qmp_execute(qmp, "query-status", NULL, timeout_ms, &answer, error);
	const char *text = json_string_value(json_object_get(answer, "status"));

	snprintf(word, RUNSTATE_MAX, "%s", text ? text : "unknown");
	json_decref(answer);
	return result;
}

/* A section of QEMU's stream that comes whole begins with a byte, its number, and its name behind
 * the length of that; then follow its instance, its version, and what it has: here the number of
 * bytes of the word, and the word. */
#define SECTION_FULL 4
static const char name[] = "\x0b"
			   "globalstate";

struct rest {
	uint32_t instance, version, length;
	char word[RUNSTATE_MAX];
} __attribute__((packed));

bool runstate_saved(const void *state, size_t bytes, char word[RUNSTATE_MAX])
{
	const char *at = state, *end = at + bytes;
	const size_t before = 1 + sizeof(uint32_t), named = sizeof(name) - 1;

	while ((at = memmem(at, (size_t)(end - at), name, named))) {
		const char *start = at;
		struct rest rest;
		at += named;
		if ((size_t)(end - at) < sizeof(rest))
			return false;
		memcpy(&rest, at, sizeof(rest));
		size_t length = be32toh(rest.length);
		if ((size_t)(start - (const char *)state) < before ||
		    start[-(ptrdiff_t)before] != SECTION_FULL || !length || length > RUNSTATE_MAX)
			continue;
		snprintf(word, RUNSTATE_MAX, "%.*s", (int)length - 1, rest.word);
		return true;
	}
	return false;
}
