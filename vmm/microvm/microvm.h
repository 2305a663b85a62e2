/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The built-in VM: a small KVM monitor whose guest works on its memory, checks all of it by itself,
 * and records how long its touches took. Driver name "microvm".
 *
 * Source: microvm_create(), microvm_start(), a migration with microvm_ops, microvm_stop(),
 * microvm_destroy(). Target: the engine calls microvm_factory with a struct microvm_host as
 * context.
 *
 * Functions may be called from any thread but a vCPU's own; pause, save, load, resume, start, stop
 * and destroy of one VM come one at a time. vCPU threads are interrupted with MICROVM_KICK_SIGNAL,
 * whose handler the first microvm_create() installs. Functions return 0 or -errno with `error`
 * filled.
 */
#ifndef VMM_MICROVM_MICROVM_H
#define VMM_MICROVM_MICROVM_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"

#define MICROVM_KICK_SIGNAL (SIGRTMIN + 5)
#define MICROVM_MAX_VCPUS   64

struct microvm;

/* Called after the guest gave [guest_address, +bytes) back and it was punched out of the memory
 * file; on a vCPU's thread, must be short. */
typedef void microvm_discarded(void *context, uint64_t guest_address, uint64_t bytes);

/* How KVM notes which pages vCPUs write: see track.h. */
enum microvm_tracking { MICROVM_DIRTY_LOG, MICROVM_DIRTY_RING };

struct microvm_config {
	const char *name;
	uint64_t memory_bytes; /* a multiple of 2 MiB, at least 64 MiB */
	unsigned vcpus;        /* 1 to MICROVM_MAX_VCPUS */
	uint64_t page_bytes;   /* of the memory file: 4096, or 2 MiB from the huge page pool */
	const char *workload;  /* "random:ws=50%,rate=0,seed=1" */
	/* vCPUs are threads of this process that run the workload without KVM: for sanitizers and
	 * hosts without KVM. Only when asked for. */
	bool thread_backed;
	enum microvm_tracking tracking;
	uint32_t ring_entries; /* of a vCPU's dirty ring, a power of two; 0: all that KVM gives */
	microvm_discarded *discarded; /* NULL: nobody to tell */
	void *discarded_context;
};

/* A VM that has not run: memory file and view exist, nothing in them was touched. "no-kvm",
 * "kvm-permission", "no-memory", "no-hugepages", "bad-size", "bad-workload" are among the reasons.
 */
int microvm_create(struct microvm **out, const struct microvm_config *config,
		   struct jaunt_error *error);

/* Loads the guest program into a VM that has not run, and runs it. */
int microvm_start(struct microvm *vm, struct jaunt_error *error);

/* Waits until the guests have populated their working sets. -ETIMEDOUT, -EIO if a vCPU crashed. */
int microvm_wait_ready(struct microvm *vm, unsigned timeout_ms, struct jaunt_error *error);

/* Asks the running guests to go through all of their pages, and waits for that. Only where memory
 * is complete. 0: clean so far; -EIO: memory errors, described; -ETIMEDOUT: not finished. */
int microvm_self_check(struct microvm *vm, unsigned timeout_ms, struct jaunt_error *error);

/* Stops the vCPUs for good, after a last self-check if asked for (as above). Whatever the check
 * says, and even if a vCPU waits for a missing page, they are stopped when it returns. */
int microvm_stop(struct microvm *vm, bool self_check, unsigned timeout_ms,
		 struct jaunt_error *error);

/* Ends the vCPU threads, wherever they are, and frees everything. NULL is fine. */
void microvm_destroy(struct microvm *vm);

const char *microvm_name(const struct microvm *vm);

/* --- The guest's own account ---------------------------------------------------------------------
 */

/* A touch of a page that took longer than MICROVM_SLOW_TOUCH_US, by the guest's TSC. */
#define MICROVM_SLOW_TOUCH_US 2
struct microvm_touch {
	uint64_t region_page; /* in pages of the region */
	uint64_t time_ns;     /* CLOCK_MONOTONIC, when it began */
	double latency_us;
};

/* Operations of all vCPUs within one millisecond. */
struct microvm_sample {
	uint64_t time_ns; /* CLOCK_MONOTONIC, its beginning */
	uint32_t operations;
};

/* "Since arrival" is since the first vCPU ran here, after load() or after the guest was ready. */
struct microvm_account {
	bool ready;                        /* every working set is populated */
	bool arrived;                      /* it was migrated to here */
	uint64_t operations;               /* in the VM's life */
	uint64_t operations_since_arrival; /* of those */
	uint64_t memory_errors;            /* found by the guest, in the VM's life; crashes count */
	uint64_t sweeps;                   /* passes of the check that ended here */
	char first_error[512];             /* empty if none was found here */
	double longest_stall_us;           /* between the ends of two operations, since arrival */
	double arrival_gap_us; /* the stall that spans the switchover, by the guest's TSC; 0: none
				*/
	double operations_per_s_before; /* arrived: in the last second at the source */
	/* Arrived: until the mean of the next 20 ms first reached 90 % of that; negative: not yet,
	 * or nothing to compare with. */
	double ms_to_90_percent_throughput;
	struct microvm_touch *touches; /* since arrival, of all vCPUs, in no particular order */
	size_t touch_count;
	uint64_t touches_dropped;
	struct microvm_sample
		*samples; /* from 60 s before arrival, at most the last 65 s, in order */
	size_t sample_count;
	char tsc_note[160]; /* arrived: empty, or how the restored TSC did not take effect */
};

/* Fills *account from the guest's reports; throughput samples are read from the memory file, so
 * they are complete only where memory is. Never touches the VM's view. The VM may run. Free it with
 * microvm_account_free(). */
int microvm_account(struct microvm *vm, struct microvm_account *account, struct jaunt_error *error);
void microvm_account_free(struct microvm_account *account);

/* --- Migration
 * ------------------------------------------------------------------------------------ */

extern const struct jaunt_vm_ops microvm_ops; /* `vm` is a struct microvm */

/* What the target's factory may do, and whom it tells. Zeroed is a good default. */
struct microvm_host {
	const char *name;         /* of the VM here; NULL: the name at the source */
	bool allow_thread_backed; /* accept a VM whose vCPUs are threads */
	enum microvm_tracking tracking;
	const char *root; /* where /proc and /sys are, NULL: "" (tests give another) */
	/* The hooks may be NULL; `destroyed` comes before the VM is. */
	void (*created)(void *context, struct microvm *vm);
	void (*destroyed)(void *context, struct microvm *vm);
	microvm_discarded *discarded;
	void *context; /* of all hooks */
};

extern const struct jaunt_vm_factory microvm_factory; /* its context is a struct microvm_host */

/* Whether `bytes` more of pages of that size fit into this host's memory, huge page pool and cgroup
 * limits. Reasons "no-memory", "no-hugepages", "cgroup-memory". `root` as in struct microvm_host.
 */
int microvm_check_room(const char *root, uint64_t bytes, uint64_t page_bytes,
		       struct jaunt_error *error);

/* Whether KVM can be used here. Reasons "no-kvm", "kvm-permission", "kvm-too-old". */
int microvm_check_kvm(struct jaunt_error *error);

/* --- Workloads
 * ------------------------------------------------------------------------------------ */

struct microvm_workload {
	unsigned kind;              /* enum guest_workload */
	uint64_t working_set_bytes; /* 0: percent of memory instead */
	unsigned working_set_percent;
	uint64_t operations_per_s; /* of all vCPUs together; 0: as fast as they can */
	uint64_t seed;
	uint64_t check_every; /* operations between two pages of the background check, 0: none */
};

/* Parses "NAME[:key=value,…]". Errors (reason "bad-workload") list what there is. */
int microvm_workload_parse(struct microvm_workload *workload, const char *text,
			   struct jaunt_error *error);

/* Writes the canonical text, which parses to the same. */
void microvm_workload_format(const struct microvm_workload *workload, char *text, size_t bytes);

/* The i-th workload's name and a line of help; NULL past the last. */
const char *microvm_workload_name(unsigned kind);
const char *microvm_workload_help(unsigned kind);
/* One line about the parameters all of them take. */
const char *microvm_workload_parameters(void);

#endif
