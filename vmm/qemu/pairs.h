/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names with values in the order of the names, to be walked two lists at a time. Both may come from
 * a peer and hold anything: a name twice, or no value.
 */
#ifndef VMM_QEMU_PAIRS_H
#define VMM_QEMU_PAIRS_H

#include <stddef.h>

#include "jaunt.h"

struct pairs {
	struct jaunt_property *all;
	size_t count;
	char *text; /* what `all` points into, if it is the list's own */
};

/* Each returns 0 or -ENOMEM, and is to be closed whatever is returned. NULL is empty. */
int pairs_of_list(struct pairs *pairs, const struct jaunt_property *all, size_t count);
/* "name=value" on each line; a line without "=" is all name. */
int pairs_of_lines(struct pairs *pairs, const char *value);
/* Words between blanks and ends of lines, all name. */
int pairs_of_words(struct pairs *pairs, const char *value);
void pairs_close(struct pairs *pairs);

/* Each name once with the values of both, NULL where one lacks it; a name that a list has twice
 * comes as often. */
void pairs_walk(const struct pairs *source, const struct pairs *here,
		void (*visit)(void *context, const char *name, const char *source,
			      const char *here),
		void *context);

#endif
