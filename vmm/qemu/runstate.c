/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/runstate.h"

#include <endian.h>
#include <stddef.h>
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
 * bytes of the word with its end, the word, zeros up to the room of a word, and more that is of no
 * interest here. It ends with a byte and its number once more. */
#define SECTION_FULL   4
#define SECTION_FOOTER 0x7e
#define NAME                                                                                       \
	"\x0b"                                                                                     \
	"globalstate"

struct section {
	uint8_t kind;
	uint32_t number;
	char name[sizeof(NAME) - 1];
	uint32_t instance, version, length;
	char word[RUNSTATE_MAX], more[100 - RUNSTATE_MAX];
	uint8_t footer;
	uint32_t number_again;
} __attribute__((packed));

static bool is_sound(const struct section *section)
{
	size_t length = be32toh(section->length);

	if (section->kind != SECTION_FULL || section->footer != SECTION_FOOTER ||
	    section->number != section->number_again || section->instance ||
	    be32toh(section->version) != 1 || length < 2 || length > RUNSTATE_MAX ||
	    strnlen(section->word, RUNSTATE_MAX) != length - 1)
		return false;
	for (size_t i = length; i < RUNSTATE_MAX; i++)
		if (section->word[i])
			return false;
	return true;
}

bool runstate_saved(const void *state, size_t bytes, char word[RUNSTATE_MAX])
{
	const char *first = state, *at = first, *end = first + bytes;
	const size_t before = offsetof(struct section, name);
	bool found = false;

	/* The guest's own bytes lie before it, a screen's, and may look like one. */
	while ((at = memmem(at, (size_t)(end - at), NAME, sizeof(NAME) - 1))) {
		struct section section;
		if ((size_t)(at - first) >= before &&
		    (size_t)(end - at) >= sizeof(section) - before) {
			memcpy(&section, at - before, sizeof(section));
			if (is_sound(&section)) {
				if (found && strcmp(word, section.word) != 0)
					return false;
				memcpy(word, section.word, RUNSTATE_MAX);
				found = true;
			}
		}
		at++;
	}
	return found;
}

bool runstate_is_saved(const char *machine)
{
	unsigned major, minor;
	const char *version = strrchr(machine, '-');

	/* "pc-q35-7.2-machine" */
	while (version && sscanf(version, "-%u.%u", &major, &minor) != 2)
		version = version > machine ? memrchr(machine, '-', (size_t)(version - machine))
					    : NULL;
	return !version || major > 2 || (major == 2 && minor >= 4);
}
