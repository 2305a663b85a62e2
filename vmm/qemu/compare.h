/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The facts of two QEMUs side by side. Pure: works on the two lists and nothing else, of which the
 * source's comes from a peer and may hold anything.
 */
#ifndef VMM_QEMU_COMPARE_H
#define VMM_QEMU_COMPARE_H

#include "vmm/qemu/facts.h"

#define COMPARE_MAX 256 /* differences that are kept */

struct compared {
	struct jaunt_difference all[COMPARE_MAX]; /* the strings are the list's own */
	size_t count;
	size_t beyond; /* so many more were found */
};

/* What source->allowed and source->rounds say is taken into account. 0: the guest can move.
 * -EINVAL, reason "configuration": it cannot, and `differences` and the error say why; -ENOMEM. To
 * be closed whatever is returned. */
int compare_facts(const struct jaunt_description *source, const struct facts *here,
		  struct compared *differences, struct jaunt_error *error);
void compared_close(struct compared *differences);

#endif
