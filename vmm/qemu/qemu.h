/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest in an unmodified QEMU as a VM of the engine's. QEMU is a process of its own and stays
 * one: it is reached by its monitor, its guest's memory by the file that lies under it, and its
 * address space by the agent that was loaded into it (docs/qemu.md).
 */
#ifndef VMM_QEMU_QEMU_H
#define VMM_QEMU_QEMU_H

#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

struct compared;
struct prepared;
struct qemu;

/* Where a QEMU is, and what is remembered about it. The strings stay the caller's and must outlive
 * the VM. */
struct qemu_place {
	const char *monitor; /* the socket of its QMP */
	/* The file that says, across the death of this process, that its guest was stopped for a
	 * migration and whether it was committed (commit.h). NULL: nothing is kept. */
	const char *record;
	/* Why the factory refused last, item by item: its own, until qemu_forget(). */
	struct compared *compared;
	/* What qemu_prepare() found out about a QEMU that waits for a guest. */
	struct prepared *prepared;
};
/* Asks it all that create() would ask, ahead of any source; whatever goes wrong is told by
 * create().
 */
void qemu_prepare(struct qemu_place *place);
void qemu_forget(struct qemu_place *place);

/* A QEMU whose guest runs, to be moved away. Changes nothing of the guest; QEMU's settings for its
 * own migration are changed, and put back by qemu_close(). Errors are those of qmp.h, attach.h and
 * regions.h, and "qemu-state": its guest does not run. */
int qemu_open(struct qemu **out, const struct qemu_place *place, struct jaunt_error *error);
/* Lets go of QEMU, which goes on as it is. NULL is fine. */
void qemu_close(struct qemu *vm);
/* The guest has left for good, and runs elsewhere: QEMU is to end. It is waited for by
 * qemu_finish(). */
void qemu_dismiss(struct qemu *vm);
/* The same, ends QEMU if it has not been told to, and closes it. */
void qemu_finish(struct qemu *vm);

/* What was left of a migration by a process that died. */
enum qemu_remains {
	QEMU_NOTHING,   /* there is nothing to do */
	QEMU_CONTINUED, /* its guest stood still for a migration that was not committed: runs again
			 */
	QEMU_COMMITTED, /* its guest was handed over: it must not run here; `error` says to whom */
};
/* Looks for it and repairs what can be, or -errno. Call it only where no living process moves this
 * VM. */
int qemu_recover(const struct qemu_place *place, enum qemu_remains *remains,
		 struct jaunt_error *error);

/* Whether a process that took a guest in here died before all of it had come, so that
 * qemu_factory.take_up() can go on. Call it only where no living process moves this VM. */
bool qemu_can_be_taken_up(const struct qemu_place *place);

/* What it has, for display. */
struct qemu_facts {
	char name[64]; /* -name, else that of its monitor's file */
	uint64_t memory_bytes, page_bytes;
	unsigned vcpus;
};
void qemu_facts(const struct qemu *vm, struct qemu_facts *facts);

/* `vm` is a struct qemu. */
extern const struct jaunt_vm_ops qemu_ops;
/* `context` is a struct qemu_place, of a QEMU that was started with -incoming defer. create() takes
 * that QEMU; destroy() leaves it waiting, or ends it if it was given a state to load. take_up()
 * takes one that a process before had given a state to, with the settings of before that. */
extern const struct jaunt_vm_factory qemu_factory;

#endif
