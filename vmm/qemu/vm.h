/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the driver share. All of it belongs to the thread that the engine calls on. */
#ifndef VMM_QEMU_VM_H
#define VMM_QEMU_VM_H

#include "vmm/qemu/attach.h"
#include "vmm/qemu/facts.h"
#include "vmm/qemu/qemu.h"
#include "vmm/qemu/qmp.h"
#include "vmm/qemu/regions.h"
#include "vmm/qemu/report.h"
#include "vmm/qemu/settings.h"

#define QEMU_ANSWER_MS 10000 /* for what QEMU does at once, unless it hangs */
#define QEMU_SLOW_MS   30000 /* for what waits for its disks or for the device state */

struct qemu {
	const struct qemu_place *place;
	bool incoming; /* it was started to take a guest in */
	bool taken_up; /* by a process that died since */
	bool spent;    /* and was given a state to load: of no use any more until that guest runs */
	bool dismissed; /* it was told to end */
	bool may_run;   /* it was taken up, and QEMU did not say whether it runs */
	bool begun, by_qemu, stopped, committed; /* as the record says or would, see commit.h */
	struct qmp *qmp;
	struct attach attach;
	int pidfd;
	uint64_t started; /* of its process, as commit.h tells processes apart */
	struct settings settings;
	struct regions regions;
	struct report report;
	struct jaunt_error unreported; /* why discards are not being told, if they are not */
	int stream_fd;       /* our end of the channel for device state, -1: none is offered */
	bool ahead;          /* the source's state is begun while the guest runs */
	bool under_way;      /* and that is being written, or read */
	bool held;           /* QEMU has stopped the guest, and waits to write the rest */
	uint64_t begun_ns;   /* when that began */
	size_t ahead_bytes;  /* told by it so far */
	unsigned slots_used; /* of the agent's shelf, in this migration */

	struct qemu_facts facts;
	struct facts config;
	bool config_is_new; /* nothing was described by it yet */
	struct jaunt_region described[REGIONS_MAX];
};

/* Writes into the record what is about to be done with the guest, see commit.h. */
int qemu_note(struct qemu *vm, bool stopped, bool committed, const char *peer,
	      struct jaunt_error *error);

/* The guest is not committed, or not any more, whatever becomes of the record. */
void qemu_take_back(struct qemu *vm, bool stopped);

/* takeup.c: as their namesakes in jaunt.h. */
int qemu_keep(void *context, int fd, struct jaunt_error *error);
int qemu_kept(void *context, struct jaunt_error *error);
/* What is kept so is of no use any more. */
void qemu_keep_nothing(struct attach *attach);
/* What this was when qemu_keep() was called: regions, facts, and settings of before.
 * "nothing-to-resume": it was not. */
int qemu_remember(struct qemu *vm, struct jaunt_error *error);

bool qemu_is_gone(const struct qemu *vm, int patience_ms);
/* Ends QEMU, by force if it does not listen; 0 once it is gone: then no vCPU of it will ever run.
 */
int qemu_end(struct qemu *vm, struct jaunt_error *error);

#endif
