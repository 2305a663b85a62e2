/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages the vCPUs wrote, by KVM: the dirty log (a bitmap a memory slot, read and cleared
 * apart) or the dirty ring (a list a vCPU). Which of them is chosen when the VM is created, since a
 * VM with rings has no log. Vocabulary: a page here is KVM's, 4 KiB; what is emitted counts pages
 * of the memory file.
 */
#ifndef VMM_MICROVM_TRACK_H
#define VMM_MICROVM_TRACK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

struct microvm;
struct vcpu;
struct kvm_dirty_gfn;

struct track {
	/* The VM's own, set at creation. */
	bool ring;             /* rings, not the log */
	bool manual;           /* log: reading does not clear */
	bool samples;          /* log: it can be on for some pages alone */
	uint32_t ring_entries; /* of each vCPU; 0 until track_open(): as many as KVM gives */
	/* The engine's thread */
	bool on;
	bool half_on;           /* a start or a stop failed half way: off has to be tried again */
	uint64_t *log;          /* one slot's bitmap, while on or sampling */
	unsigned every;         /* one page in so many is noted, and tracking is not on; else 0 */
	uint64_t sampled_slots; /* a bit each */

	/* Rings: guards all entries, the kernel's reset of them, and what follows. */
	pthread_mutex_t lock;
	uint64_t *noted;       /* one bit a page, while on: reset, not yet emitted */
	uint8_t *noted_groups; /* one byte for 4096 of them: look there */
	uint64_t unreset;      /* entries that were harvested and are not armed again */
	bool cut_short;        /* a reset was, and what it armed is not known */
	bool broken;           /* a ring was harvested but not reset: everything may be dirty */

	/* Guards `report`, and is held during a report, so that none is under way once it is NULL.
	 */
	pthread_mutex_t report_lock;
	struct jaunt_migration *report;
};

void track_init(struct microvm *vm, bool ring, uint32_t ring_entries);
void track_destroy(struct microvm *vm);
/* Before vCPUs are created. */
int track_open(struct microvm *vm, struct jaunt_error *error);
int track_create_vcpu(struct vcpu *vcpu, struct jaunt_error *error);
void track_close_vcpu(struct vcpu *vcpu);

/* What struct jaunt_vm_ops says of them. */
int track_start(void *context, struct jaunt_error *error);
int track_collect(void *context, jaunt_dirty_run *emit, void *user, struct jaunt_error *error);
int track_stop(void *context, struct jaunt_error *error);
int track_sample(void *context, unsigned every);
int64_t track_sampled(void *context);
void track_report_to(void *context, struct jaunt_migration *migration);

/* The guest gave these bytes of its memory back; on a vCPU's thread, after it happened. */
void track_discarded(struct microvm *vm, uint64_t guest_address, uint64_t bytes);

/* Emits the runs of ones of a bitmap whose first bit is page `base`. */
void track_emit_bits(const struct microvm *vm, const uint64_t *bits, uint64_t words, uint64_t base,
		     jaunt_dirty_run *emit, void *context);
/* Switches KVM's noting on or off for a slot, or for all: on until one fails, off wherever it can
 * be. */
int track_set_slot(struct microvm *vm, unsigned slot, bool on);
int track_set_logging(struct microvm *vm, bool on);

/* --- track_log.c, track_sample.c, track_ring.c */
int track_log_start(struct microvm *vm, struct jaunt_error *error);
int track_log_collect(struct microvm *vm, jaunt_dirty_run *emit, void *context,
		      struct jaunt_error *error);
/* -errno: some slots may still be on. */
int track_log_stop(struct microvm *vm);
/* Protects again those pages of a slot that are noted in track.log. */
int track_log_clear(struct microvm *vm, unsigned slot);
/* The first slot from this one on in which the memory file holds something; slot_count: none. */
unsigned track_log_next(const struct microvm *vm, unsigned slot);

/* Every page is noted from here on, not the sampled ones alone. */
int track_sample_widen(struct microvm *vm);
/* Whether a log that is switched on begins with every page noted. */
int track_sample_option(struct microvm *vm, bool on);

int track_ring_open(struct microvm *vm, struct jaunt_error *error);
int track_ring_start(struct microvm *vm, struct jaunt_error *error);
int track_ring_collect(struct microvm *vm, jaunt_dirty_run *emit, void *context,
		       struct jaunt_error *error);
int track_ring_stop(struct microvm *vm);
/* A vCPU came out of the guest because its ring is full; on its thread. */
void track_ring_full(struct vcpu *vcpu);

#endif
