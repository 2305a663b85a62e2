/* SPDX-License-Identifier: Apache-2.0 */
/* The target of one migration: what its modules share. */
#ifndef ENGINE_TARGET_TARGET_H
#define ENGINE_TARGET_TARGET_H

#include "engine/link.h"
#include "engine/migration.h"
#include "engine/target/demand.h"
#include "engine/target/fill.h"
#include "engine/target/gate.h"
#include "engine/target/shared.h"

#define TARGET_STREAMS_MAX 64u

struct target {
	struct jaunt_migration base; /* first */
	const struct jaunt_vm_factory *factory;
	void *context;
	struct listener *listener;
	unsigned port;

	/* The thread in run() owns all of these. */
	struct ring *ring;
	struct gate gate;
	struct link link;
	bool linked;
	bool same_clock;
	bool channels_wanted; /* Ready was sent, not all channels have come */

	/* Set up by prepare, taken down by unprepare or close; read by status under the mutex. */
	void *vm;
	struct jaunt_description description; /* of the VM here */
	struct target_shared shared;
	unsigned streams, shards;
	struct demand *demands[INSTALL_SHARDS_MAX];
	struct fill *fills[TARGET_STREAMS_MAX];
	struct channel *waiting_urgent_check[INSTALL_SHARDS_MAX];
	struct channel *waiting_stream_check[TARGET_STREAMS_MAX];
	struct channel *waiting_urgent[INSTALL_SHARDS_MAX];
	struct channel *waiting_stream[TARGET_STREAMS_MAX];
	bool memory_open, map_open, install_open;

	uint8_t *state; /* device state, as it arrives */
	size_t state_bytes;
	uint64_t last_instruction_ns;
};

/* --- prepare.c: everything that can be done while the VM still runs at the source ----------------
 */

/* Creates the VM that is asked for, takes its memory over and registers it. */
int target_prepare(struct target *target, const Jaunt__Configure *configure,
		   struct jaunt_error *error);
/* A channel of the session has come (owned from here on): starts what it was waited for. */
void target_attach(struct target *target, struct channel *channel, const struct attach *attach);
/* Whether all of them have. */
bool target_attached(const struct target *target);
/* Takes everything down; the VM has not run, or never will again. */
void target_unprepare(struct target *target);
/* Every page is present (or the VM is stopped): from here on the kernel serves the guest. */
void target_release_memory(struct target *target);
/* Ends the threads and their channels; the figures stay. */
void target_stop_threads(struct target *target);

/* --- report.c: figures
 * ------------------------------------------------------------------------------- */

void target_status(struct jaunt_migration *migration, struct jaunt_status *status);
int target_send_progress(struct target *target, bool complete, const char *blocked);

#endif
