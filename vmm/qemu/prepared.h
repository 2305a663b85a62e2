/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The facts of a QEMU that waits for a guest, found out before one comes: that takes hundreds of
 * questions, whose time would otherwise be the migration's. They hold as long as nobody has changed
 * its devices, objects or media, which a few questions tell.
 */
#ifndef VMM_QEMU_PREPARED_H
#define VMM_QEMU_PREPARED_H

#include "vmm/qemu/facts.h"
#include "vmm/qemu/qmp.h"

struct prepared {
	struct facts facts;
	char *mark; /* of what they were found with; NULL: there are none */
};

/* What goes wrong is for prepared_take() to find out. */
void prepared_make(struct prepared *prepared, struct qmp *qmp, unsigned timeout_ms);
/* Moves them to `facts` if they still hold, else finds them out anew; errors as of config.h. */
int prepared_take(struct prepared *prepared, struct qmp *qmp, unsigned timeout_ms,
		  struct facts *facts, struct jaunt_error *error);
void prepared_close(struct prepared *prepared);

#endif
