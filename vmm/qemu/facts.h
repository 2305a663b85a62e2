/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A list of facts, each a key and a value that a person understands. A value may hold several,
 * one a line, "name=value". One thread at a time.
 */
#ifndef VMM_QEMU_FACTS_H
#define VMM_QEMU_FACTS_H

#include <stdbool.h>
#include <stddef.h>

#include "jaunt.h"

#define FACTS_KEY_MAX   256
#define FACTS_VALUE_MAX 16384

struct facts {
	struct jaunt_property *all; /* the strings are the list's own */
	size_t count, room;
	bool lost; /* something did not fit: too many of them, too long, or no memory */
};

/* A key that is there already gets the value as one more line. */
void facts_add(struct facts *facts, const char *key, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The value of a key, or NULL. */
const char *facts_find(const struct facts *facts, const char *key);
/* In the order of their keys. */
void facts_sort(struct facts *facts);
void facts_close(struct facts *facts);

/* What stands behind "name=" in one of the lines of a value, copied to `text` (cut short if it is
 * longer); false: no line has that name. */
bool facts_line(const char *value, const char *name, char *text, size_t room);

#endif
