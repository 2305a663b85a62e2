/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one vCPU has reported, kept by its monitor. The vCPU's thread adds to it, anybody may read:
 * everything is under `lock`. Times of the guest are its TSC; `anchor` relates it to the host's
 * monotonic clock.
 */
#ifndef VMM_MICROVM_ACCOUNT_H
#define VMM_MICROVM_ACCOUNT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/microvm/microvm.h"

/* Touches kept a vCPU; later ones are counted as dropped. */
#define ACCOUNT_TOUCHES 262144

struct account_point {
	uint64_t tsc, operations;
};

struct account {
	pthread_mutex_t lock;
	uint64_t operations, operations_at_arrival, errors, sweeps;
	uint64_t stall, arrival_gap; /* cycles */
	/* monotonic = anchor_ns + (tsc - anchor_tsc) * 1e6 / tsc_khz */
	uint64_t anchor_tsc, anchor_ns, anchor_set_ns;
	uint64_t ready_ns; /* 0: not ready, or not here */
	double tsc_khz;
	struct account_point points[3]; /* for the rate: the last poll, and two 0.5 s apart */
	struct microvm_touch *touches;
	size_t touch_count, touch_room;
	uint64_t touches_dropped;
	char first_error[512];
	double tsc_off_us;  /* arrived: what the guest's TSC is ahead of the restored one */
	unsigned tsc_polls; /* that told so */
};

struct vcpu;

void account_init(struct account *account, uint64_t tsc_khz);
void account_destroy(struct account *account);

/* On the vCPU's thread. */
void account_poll(struct vcpu *vcpu, const uint64_t arguments[6]);
void account_error(struct vcpu *vcpu, const uint64_t arguments[6]);
/* The guest is populated: what counts begins now. */
void account_ready(struct vcpu *vcpu, const uint64_t arguments[6]);
void account_swept(struct vcpu *vcpu, const uint64_t arguments[6]);

/* Operations a second of guest TSC over the last half to one second. */
double account_rate(struct vcpu *vcpu);

#endif
