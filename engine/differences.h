/* SPDX-License-Identifier: Apache-2.0 */
/* Why a target refused to make a VM, item by item: out of a REFUSED, and into one. */
#ifndef ENGINE_DIFFERENCES_H
#define ENGINE_DIFFERENCES_H

#include <stddef.h>

#include "jaunt.h"
#include "jaunt.pb-c.h"

struct differences {
	struct jaunt_difference *all; /* the strings are the list's own */
	size_t count;
};

/* A copy of what the peer told. -ENOMEM: nothing is copied. */
int differences_take(struct differences *differences, const Jaunt__Refused *refused);
void differences_close(struct differences *differences);

/* Puts them into the message, which points into `all` and at memory that differences_untell()
 * frees; without memory they are left out: the text says what matters. */
void differences_tell(Jaunt__Refused *refused, const struct jaunt_difference *all, size_t count);
void differences_untell(Jaunt__Refused *refused);

#endif
