/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM behind a name, as the commands see it: the one place in cli/ that knows which VMM it is
 * (guest_qemu.h for the others).
 * guest_account() may be called from any thread while the VM exists, the rest from one at a time.
 */
#ifndef CLI_GUEST_H
#define CLI_GUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

#define GUEST_MEMORY_LEAST (UINT64_C(64) << 20)
#define GUEST_MEMORY_STEP  (UINT64_C(2) << 20)
#define GUEST_VCPUS_MOST   64

/* What a VM was made as. */
struct guest_facts {
	char name[64];
	char workload[256];
	uint64_t memory_bytes, page_bytes;
	unsigned vcpus;
	bool thread_backed; /* vCPUs are threads of this process, there is no KVM */
	bool dirty_ring;    /* KVM notes writes in rings, not in a log */
};

/* The guest's word about itself. */
struct guest_account {
	uint64_t operations, operations_since_arrival, memory_errors, sweeps;
	double operations_per_s_before;
	double longest_stall_us, arrival_gap_us;
	double ms_to_90_percent_throughput; /* negative: not reached, or it did not arrive */
	uint64_t touches_dropped;
	char first_error[512], tsc_note[160];
};

/* Which VMM it is of, as far as that makes a difference to whoever owns the VM. */
struct guest_kind {
	const struct jaunt_vm_ops *ops;
	const struct jaunt_vm_factory *factory; /* its context: a struct guest_host */
	/* It runs elsewhere for good, and has_left() follows: what takes time of its end may begin.
	 * NULL: nothing does. */
	void (*leaves)(void *vm);
	void (*let_go)(void *vm);   /* of no more use here: ends it, or leaves it */
	void (*has_left)(void *vm); /* the same, of one that runs elsewhere now */
	/* The guest has a process of its own, and is there without its owner: that one is needed
	 * only while it moves. The functions below are for guests that have none. */
	bool separate;
};
extern const struct guest_kind guest_builtin_kind;
extern const struct guest_kind guest_qemu_kind;

int guest_check_workload(const char *text, struct jaunt_error *error);

/* Not started. */
int guest_create(const struct guest_facts *facts, void **vm, struct jaunt_error *error);
int guest_start(void *vm, struct jaunt_error *error);
/* 1: the guest has filled its working set and is at work; 0: not yet; -EIO: it crashed. */
int guest_at_work(void *vm, struct jaunt_error *error);

/* The word about the last check of its memory. */
enum guest_check { GUEST_NOT_CHECKED, GUEST_CLEAN, GUEST_ERRORS, GUEST_UNFINISHED };
const char *guest_check_name(enum guest_check check);

/* Stops it for good, after a check of all its memory. Bounded by timeout_ms and a little. */
enum guest_check guest_stop(void *vm, unsigned timeout_ms, struct jaunt_error *error);
void guest_destroy(void *vm);

int guest_account(void *vm, struct guest_account *account, struct jaunt_error *error);

/* The latencies of the guest's touches of pages that `migration` fetched on demand, first touch of
 * each page only, and their sum over all vCPUs. The VM's memory is complete. */
int guest_touch_latency(void *vm, const struct jaunt_migration *migration,
			struct jaunt_percentiles *out, double *sum_us, struct jaunt_error *error);

/* Writes the guest's throughput, "ns operations" a millisecond (CLOCK_MONOTONIC), from up to a
 * minute before it arrived. The VM's memory is complete. */
int guest_write_throughput(void *vm, const char *path, struct jaunt_error *error);

/* {"operations", "memory_errors", …}, a new reference. `touches` may be NULL. */
json_t *guest_account_json(const struct guest_account *account,
			   const struct jaunt_percentiles *touches, enum guest_check check);

struct guest_qemu;

/* Receives a VM: the context of a kind's factory. All hooks are called on the migration's thread.
 */
struct guest_host {
	const char *name;              /* of the VM here; NULL: its name at the source */
	bool thread_backed;            /* a VM without KVM is welcome */
	const struct guest_qemu *qemu; /* which QEMU takes it in; has the name already */
	/* Before anything is made; may refuse. */
	int (*arriving)(void *context, const char *name, struct jaunt_error *error);
	void (*created)(void *context, void *vm, const struct guest_facts *facts);
	void (*gone)(void *context); /* just before it is destroyed, or as it could not be made */
	void *context;
};

/* Whether KVM can be used here, and a VM be made with it. */
int guest_check_host(struct jaunt_error *error);

/* What --workload takes, for --help; malloc()ed. */
char *guest_workload_help(void);

#endif
