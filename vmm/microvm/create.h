/* SPDX-License-Identifier: Apache-2.0 */
/* Creating a VM that looks like one from elsewhere: for the factory. */
#ifndef VMM_MICROVM_CREATE_H
#define VMM_MICROVM_CREATE_H

#include <linux/kvm.h>

#include "vmm/microvm/microvm.h"

/* As microvm_create(), with those CPUID leaves (owned, also after an error; NULL: this host's) and
 * that TSC frequency (0: this host's). */
int microvm_create_as(struct microvm **out, const struct microvm_config *config,
		      struct kvm_cpuid2 *cpuid, uint64_t tsc_khz, struct jaunt_error *error);

#endif
