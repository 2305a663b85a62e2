/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUID leaves: what a guest sees, what travels in a VM's description, and what a host must have
 * for a VM that was made elsewhere. A set is a malloc()ed struct kvm_cpuid2 that the caller frees.
 */
#ifndef VMM_MICROVM_CPUID_H
#define VMM_MICROVM_CPUID_H

#include <linux/kvm.h>

#include "jaunt.h"

/* KVM takes frequencies this close for the same. */
#define CPUID_TSC_TOLERANCE_PPM 250

/* What KVM can offer a guest here, without what names one CPU of this host or KVM itself. */
int cpuid_of_host(int kvm_fd, struct kvm_cpuid2 **out, struct jaunt_error *error);

/* The set as the vCPU of that number sees it; NULL: out of memory. */
struct kvm_cpuid2 *cpuid_of_vcpu(const struct kvm_cpuid2 *set, unsigned vcpu);

/* Are guest addresses up to `bytes` possible on this CPU? */
int cpuid_check_address(const struct kvm_cpuid2 *set, uint64_t bytes, struct jaunt_error *error);

/* Does `host` offer all that `source` does? The error (reason "cpu-lacks") names what is missing.
 */
int cpuid_compare(const struct kvm_cpuid2 *source, const struct kvm_cpuid2 *host,
		  struct jaunt_error *error);

/* A leaf as a property: "cpuid.00000007.01" = "flags eax ebx ecx edx" in hexadecimal. */
#define CPUID_KEY_BYTES   24
#define CPUID_VALUE_BYTES 48
void cpuid_format(const struct kvm_cpuid_entry2 *entry, char *key, char *value);
/* All the leaves among the properties, which nobody has checked. Reason "bad-description". */
int cpuid_parse(const struct jaunt_description *description, struct kvm_cpuid2 **out,
		struct jaunt_error *error);

/* Bits of XCR0 that guests may set. */
uint64_t cpuid_xcr0(const struct kvm_cpuid2 *set);

#endif
