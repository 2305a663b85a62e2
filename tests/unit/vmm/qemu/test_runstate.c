/* SPDX-License-Identifier: Apache-2.0 */
/* The run state in QEMU's stream: where it lies, and what only looks like it. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "vmm/qemu/runstate.h"

TestSuite(runstate, .timeout = 60);

enum {
	HEAD = 6 + 11 + 8, /* of a section of that name */
	SIZE = 4 + 100,    /* of what QEMU writes: the length, and room for a word */
	FOOT = 5,
	WHOLE = HEAD + SIZE + FOOT
};

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
	to += 8 + SIZE;
	to[0] = 0x7e;
	to[4] = 7;
	return (size_t)(to - state) + FOOT;
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

	for (size_t cut = 0; cut < bytes; cut++)
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
	state[HEAD + 3] = 0; /* no byte at all */
	cr_assert_not(runstate_saved(state, bytes, word));
}

/* Bytes of the guest's may look like it in part: every byte that QEMU writes in its own way counts.
 */
Test(runstate, that_is_not_quite_as_qemu_writes_it_is_none, .init = set_up)
{
	size_t bytes = put(0, 4, "globalstate", "running");
	static const size_t counts[] = {0,
					1,
					4,
					5,
					HEAD - 8,
					HEAD - 5,
					HEAD - 4,
					HEAD - 1,
					HEAD,
					HEAD + 3,
					HEAD + 4 + 7,
					HEAD + 4 + 20,
					HEAD + 4 + 31,
					WHOLE - 5,
					WHOLE - 4,
					WHOLE - 1};

	cr_assert_eq(bytes, WHOLE);
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		state[counts[i]] ^= 0x40;
		cr_assert_not(runstate_saved(state, bytes, word), "byte %zu", counts[i]);
		state[counts[i]] ^= 0x40;
	}
	cr_assert(runstate_saved(state, bytes, word));
	/* Newer releases have more behind the room for a word. */
	state[HEAD + 4 + 32] = 1;
	cr_assert(runstate_saved(state, bytes, word));
}

Test(runstate, that_is_there_twice_must_be_the_same, .init = set_up)
{
	size_t bytes = put(3, 4, "globalstate", "running");
	bytes = put(bytes + 10, 4, "globalstate", "running");
	cr_assert(runstate_saved(state, bytes, word));
	cr_assert_str_eq(word, "running");
	bytes = put(bytes, 4, "globalstate", "paused");
	cr_assert_not(runstate_saved(state, bytes, word));
}

Test(runstate, is_in_the_state_of_all_but_old_machines)
{
	cr_assert(runstate_is_saved("pc-q35-7.2-machine"));
	cr_assert(runstate_is_saved("pc-i440fx-2.4-machine"));
	cr_assert(runstate_is_saved("pc-i440fx-2.12"));
	cr_assert(runstate_is_saved("pc-q35-10.0-machine"));
	cr_assert(runstate_is_saved("microvm-machine"));
	cr_assert(runstate_is_saved(""));
	cr_assert_not(runstate_is_saved("pc-i440fx-2.3-machine"));
	cr_assert_not(runstate_is_saved("pc-i440fx-1.7-machine"));
	cr_assert_not(runstate_is_saved("pc-0.15"));
}
