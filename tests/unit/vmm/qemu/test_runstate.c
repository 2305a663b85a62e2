/* SPDX-License-Identifier: Apache-2.0 */
/* The run state in QEMU's stream: where it lies, and what only looks like it. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "vmm/qemu/runstate.h"

TestSuite(runstate, .timeout = 60);

enum { SIZE = 4 + 100 }; /* of what QEMU writes: the length, and room for a word */

static char state[4096];
static char word[RUNSTATE_MAX];

/* A section as QEMU 7.2 writes it; where it ends. */
static size_t put(size_t at, char kind, const char *name, const char *text)
{
	size_t length = strlen(name);
	char *to = state + at;

	to[0] = kind;
	to[4] = 7; /* its number */
	to[5] = (char)length;
	memcpy(to + 6, name, length);
	to += 6 + length;
	to[7] = 1; /* instance 0, version 1 */
	to[11] = (char)(strlen(text) + 1);
	strcpy(to + 12, text);
	return (size_t)(to - state) + 8 + SIZE;
}

static void set_up(void)
{
	memset(state, 0, sizeof(state));
	strcpy(word, "?");
}

Test(runstate, is_found_in_a_stream, .init = set_up)
{
	size_t bytes = put(100, 4, "timer", "");
	bytes = put(bytes, 4, "globalstate", "paused");
	cr_assert(runstate_saved(state, bytes, word));
	cr_assert_str_eq(word, "paused");
}

Test(runstate, is_not_what_only_has_its_name, .init = set_up)
{
	size_t bytes = put(0, 1, "globalstate", "paused"); /* a page, say, of the screen */
	bytes = put(bytes, 4, "globalstat", "paused");
	memcpy(state + bytes, "globalstate", 11);
	cr_assert_not(runstate_saved(state, bytes + 200, word));
	bytes = put(bytes + 11, 4, "globalstate", "running");
	cr_assert(runstate_saved(state, bytes, word));
	cr_assert_str_eq(word, "running");
}

Test(runstate, is_not_read_beyond_the_end, .init = set_up)
{
	size_t bytes = put(0, 4, "globalstate", "running");

	for (size_t cut = 0; cut < 6 + 11 + 12 + RUNSTATE_MAX; cut++)
		cr_assert_not(runstate_saved(state, cut, word), "%zu of %zu bytes", cut, bytes);
	cr_assert_not(runstate_saved(state, 0, word));
}

Test(runstate, that_is_no_word_is_none, .init = set_up)
{
	static const char longer[] = "a word that is longer than any of QEMU's is";
	size_t bytes = put(0, 4, "globalstate", longer);
	cr_assert_not(runstate_saved(state, bytes, word));
	set_up();
	bytes = put(0, 4, "globalstate", "");
	state[6 + 11 + 11] = 0; /* no byte at all */
	cr_assert_not(runstate_saved(state, bytes, word));
}
