/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both sides of a migration have: options, requests from other threads, and the status that
 * anyone may ask for. `struct source` and `struct target` begin with a struct jaunt_migration.
 */
#ifndef ENGINE_MIGRATION_H
#define ENGINE_MIGRATION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "engine/differences.h"
#include "engine/session.h"
#include "jaunt.h"

struct trace;
struct trace_lane;

struct side_ops {
	int (*run)(struct jaunt_migration *migration, struct jaunt_error *error);
	/* Adds the figures that only the side knows. Any thread, with the mutex held. */
	void (*status)(struct jaunt_migration *migration, struct jaunt_status *status);
	void (*close)(struct jaunt_migration *migration);
	void (*set_push)(struct jaunt_migration *migration, bool push);
	/* The limit of the streams has changed. Any thread, with the mutex held. The source's; NULL
	 * at the target, which sends nothing worth a limit. */
	void (*set_bandwidth)(struct jaunt_migration *migration);
	/* Whether resume_fenced makes sense here; -errno with what to do instead. With the mutex
	 * held, so that it is still so when it is set. */
	int (*check_resume)(struct jaunt_migration *migration, struct jaunt_error *error);
	/* Optional. The driver reports that pages were written, or given back. Any thread. */
	void (*changed)(struct jaunt_migration *migration, size_t region, uint64_t first,
			uint64_t count, bool discarded);
};

struct jaunt_migration {
	const struct side_ops *side;
	struct jaunt_options
		options; /* strings are copies, but those that are allowed: `allowed` */
	char *allowed[JAUNT_MAX_ALLOWED];
	struct trace *trace;
	struct trace_lane *lane; /* of the thread in run() */
	struct session *session; /* the side's */
	uint64_t page_bytes;     /* of the VM's largest pages; 0: not known */

	pthread_mutex_t mutex; /* guards what follows, up to the atomics */
	struct jaunt_status status;
	bool committed; /* source: COMMIT recorded; target: COMMIT heard */
	bool ended;
	uint64_t started_ns, ended_ns;
	uint64_t moving_ns;               /* since when memory is moved; 0: not yet */
	struct jaunt_decision *decisions; /* JAUNT_DECISIONS_MAX of them, made with the first */
	size_t decision_count;
	struct differences differences; /* source: told once, before it ends */

	/* Requests; the thread in run() looks at them whenever it is woken. */
	_Atomic bool cancel;
	_Atomic bool abandon;
	_Atomic bool resume_fenced;
	_Atomic int set_push; /* -1: no wish, else 0 or 1 */
	_Atomic bool switch_wanted;
	_Atomic uint64_t bandwidth; /* bytes per second, 0: no limit */
	_Atomic uint32_t downtime_limit_ms;
};

/* The side allocates the struct (zeroed). Copies the options, opens the trace. */
int migration_init(struct jaunt_migration *migration, const struct side_ops *side,
		   struct session *session, const struct jaunt_options *options,
		   struct jaunt_error *error);
void migration_fini(struct jaunt_migration *migration);

void migration_phase(struct jaunt_migration *migration, enum jaunt_phase phase);
/* What the control link goes over, for status and trace. */
void migration_device(struct jaunt_migration *migration, const char *device);
void migration_place(struct jaunt_migration *migration, enum jaunt_place place);
/* What the status says besides the phase; NULL: nothing. */
void migration_reason(struct jaunt_migration *migration, const struct jaunt_error *why);
/* Committed, but pages do not arrive: phase `blocked`, with why. */
void migration_blocked(struct jaunt_migration *migration, const struct jaunt_error *why);
/* They arrive again. */
void migration_unblocked(struct jaunt_migration *migration);
/* Whether the mode copies memory while the VM still runs at the source. */
bool migration_has_rounds(const char *mode);
/* Keeps a decision for whoever asks. */
void migration_decided(struct jaunt_migration *migration, const struct jaunt_decision *decision);
/* The outcome is final: sets phase, place and reason, and returns `outcome`. */
int migration_end(struct jaunt_migration *migration, enum jaunt_outcome outcome,
		  enum jaunt_place place, const struct jaunt_error *error);

/* Whether with so little the other side can still be told from one that is silent. 0, or -EINVAL.
 */
int migration_check_bandwidth(const struct jaunt_options *options, uint64_t bytes_per_s,
			      uint64_t page_bytes, struct jaunt_error *error);

/* Resolves the peer address, once for all that use it, and says whether it may be used: beyond
 * loopback only with `insecure`. Completes the options by what depends on it. */
int migration_check_address(struct jaunt_options *options, struct address *address, bool listening,
			    struct jaunt_error *error);

#endif
