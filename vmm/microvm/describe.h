/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The description of a VM as properties, on its way out and in. What comes in nobody has checked:
 * every value is bounded here.
 */
#ifndef VMM_MICROVM_DESCRIBE_H
#define VMM_MICROVM_DESCRIBE_H

#include "vmm/microvm/machine.h"

/* Fills `out` from the VM; valid until the next call for that VM, or its end. */
int describe_vm(struct microvm *vm, struct jaunt_description *out, struct jaunt_error *error);

struct described {
	uint64_t memory_bytes, page_bytes, resident_bytes, tsc_khz, xsave_bytes;
	unsigned vcpus;
	bool thread_backed;
	const char *workload;     /* points into the description */
	struct kvm_cpuid2 *cpuid; /* NULL if thread-backed; the caller frees it */
};

/* Reason "bad-description". */
int describe_parse(const struct jaunt_description *description, struct described *out,
		   struct jaunt_error *error);

#endif
