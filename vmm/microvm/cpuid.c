/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The guest gets what KVM supports on the host where it is made, and keeps it wherever it goes. A
 * host that takes it over must support every feature bit of it; more is fine, since the guest goes
 * on seeing the source's leaves. Leaves that describe the CPU otherwise (caches, topology, brand)
 * need no counterpart. KVM's own leaves are left out of the set: the guest uses no paravirtual
 * feature, so none can be missing elsewhere.
 *
 * Bits that merely mirror a control register are maintained by KVM and ignored in the comparison.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "vmm/microvm/cpuid.h"

#define MOST_LEAVES 256

enum cpuid_register { EAX, EBX, ECX, EDX };

static uint32_t register_of(const struct kvm_cpuid_entry2 *entry, enum cpuid_register which)
{
	const uint32_t registers[] = {entry->eax, entry->ebx, entry->ecx, entry->edx};
	return registers[which];
}

/* Registers full of feature bits, the bits that are none, and the names of the others: bit 0 first,
 * separated by blanks, "-" where nobody needs a name. */
static const struct feature_word {
	uint32_t leaf, subleaf;
	enum cpuid_register which;
	uint32_t ignored;
	const char *names;
} feature_words[] = {
	{1, 0, ECX, 1u << 27 | 1u << 31,
	 "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cnxt_id sdbg fma cx16 xtpr "
	 "pdcm "
	 "- pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx "
	 "f16c "
	 "rdrand hypervisor"},
	{1, 0, EDX, 0,
	 "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - "
	 "dts "
	 "acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"},
	{7, 0, EBX, 0,
	 "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm "
	 "zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt "
	 "clwb "
	 "intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"},
	{7, 0, ECX, 1u << 4,
	 "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq "
	 "avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid kl bus_lock_detect "
	 "cldemote - movdiri movdir64b enqcmd sgx_lc pks"},
	{7, 0, EDX, 0,
	 "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear "
	 "rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - "
	 "amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp flush_l1d arch_capabilities "
	 "core_capabilities ssbd"},
	{7, 1, EAX, 0, "sha512 sm3 sm4 - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc"},
	{7, 1, EDX, 0, ""},
	{7, 2, EDX, 0, ""},
	{0xd, 0, EAX, 0,
	 "x87-state sse-state avx-state bndregs bndcsr opmask zmm_hi256 hi16_zmm - pkru-state "
	 "- - - - - - - amx-config amx-data"},
	{0xd, 0, EDX, 0, ""},
	{0xd, 1, EAX, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"},
	{0xd, 1, ECX, 0, ""},
	{0x14, 0, EBX, 0, ""},
	{0x80000001, 0, ECX, 0,
	 "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs "
	 "xop "
	 "skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext"},
	{0x80000001, 0, EDX, 0,
	 "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - "
	 "lm "
	 "3dnowext 3dnow"},
	{0x80000007, 0, EDX, 0, "- - - - - - - - constant_tsc"},
	{0x80000008, 0, EBX, 0, "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd"},
};

static void name_feature(const struct feature_word *word, unsigned bit, char *name, size_t bytes)
{
	const char *at = word->names;
	for (unsigned i = 0; i < bit && at; i++)
		if ((at = strchr(at, ' ')))
			at++;
	size_t length = at ? strcspn(at, " ") : 0;
	if (length && *at != '-')
		snprintf(name, bytes, "%.*s", (int)length, at);
	else
		snprintf(name, bytes, "cpuid %x.%x e%cx bit %u", word->leaf, word->subleaf,
			 "abcd"[word->which], bit);
}

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *set, uint32_t leaf,
					   uint32_t subleaf)
{
	for (unsigned i = 0; i < set->nent; i++)
		if (set->entries[i].function == leaf && set->entries[i].index == subleaf)
			return &set->entries[i];
	return NULL;
}

static struct kvm_cpuid2 *new_set(unsigned entries)
{
	struct kvm_cpuid2 *set = calloc(1, sizeof *set + entries * sizeof set->entries[0]);
	if (set)
		set->nent = entries;
	return set;
}

int cpuid_of_host(int kvm_fd, struct kvm_cpuid2 **out, struct jaunt_error *error)
{
	struct kvm_cpuid2 *set = new_set(MOST_LEAVES);
	if (!set)
		return error_set(error, ENOMEM, "no-memory", "CPUID: out of memory");
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, set)) {
		int failed = errno;
		free(set);
		return error_set(error, failed, "kvm", "KVM_GET_SUPPORTED_CPUID: %s",
				 strerror(failed));
	}
	unsigned kept = 0;
	for (unsigned i = 0; i < set->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &set->entries[i];
		if (entry->function >= 0x40000000 && entry->function < 0x50000000)
			continue;
		/* The number of the CPU that happened to answer. */
		if (entry->function == 1)
			entry->ebx &= 0x00ffffff;
		if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = 0;
		set->entries[kept++] = *entry;
	}
	set->nent = kept;
	*out = set;
	return 0;
}

struct kvm_cpuid2 *cpuid_of_vcpu(const struct kvm_cpuid2 *set, unsigned vcpu)
{
	struct kvm_cpuid2 *own = new_set(set->nent);
	if (!own)
		return NULL;
	memcpy(own->entries, set->entries, set->nent * sizeof set->entries[0]);
	for (unsigned i = 0; i < own->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &own->entries[i];
		if (entry->function == 1)
			entry->ebx |= vcpu << 24;
		if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = vcpu;
	}
	return own;
}

int cpuid_check_address(const struct kvm_cpuid2 *set, uint64_t bytes, struct jaunt_error *error)
{
	const struct kvm_cpuid_entry2 *entry = find(set, 0x80000008, 0);
	unsigned bits = entry && (entry->eax & 0xff) ? entry->eax & 0xff : 36;
	if (bits >= 64 || bytes <= UINT64_C(1) << bits)
		return 0;
	return error_set(error, EINVAL, "bad-size",
			 "%" PRIu64
			 " GiB of memory are more than the %u address bits of this CPU reach",
			 bytes >> 30, bits);
}

uint64_t cpuid_xcr0(const struct kvm_cpuid2 *set)
{
	const struct kvm_cpuid_entry2 *entry = find(set, 0xd, 0);
	return entry ? (uint64_t)entry->edx << 32 | entry->eax : 3;
}

/* Leaves whose layout a saved state depends on: both sides must mean the same by it. */
static int compare_layout(const struct kvm_cpuid2 *source, const struct kvm_cpuid2 *host,
			  struct jaunt_error *error)
{
	for (unsigned i = 2; i < 63; i++) {
		const struct kvm_cpuid_entry2 *there = find(source, 0xd, i), *here;
		if (!(cpuid_xcr0(source) >> i & 1) || !there)
			continue;
		here = find(host, 0xd, i);
		if (here && there->eax == here->eax && there->ebx == here->ebx)
			continue;
		return error_set(
			error, ENOTSUP, "cpu-lacks",
			"the xsave area has component %u at another place or size than the "
			"source's CPU",
			i);
	}
	return 0;
}

int cpuid_compare(const struct kvm_cpuid2 *source, const struct kvm_cpuid2 *host,
		  struct jaunt_error *error)
{
	const struct kvm_cpuid_entry2 *there = find(source, 0, 0), *here = find(host, 0, 0);
	if (!there || !here)
		return error_set(error, EPROTO, "bad-description",
				 "the source does not describe its CPU (leaf 0)");
	if (there->ebx != here->ebx || there->ecx != here->ecx || there->edx != here->edx)
		return error_set(error, ENOTSUP, "cpu-lacks",
				 "the source's CPU is of another vendor (%.4s%.4s%.4s) than this "
				 "host's (%.4s%.4s%.4s)",
				 (const char *)&there->ebx, (const char *)&there->edx,
				 (const char *)&there->ecx, (const char *)&here->ebx,
				 (const char *)&here->edx, (const char *)&here->ecx);
	char missing[512] = "";
	unsigned count = 0;
	for (unsigned i = 0; i < sizeof feature_words / sizeof feature_words[0]; i++) {
		const struct feature_word *word = &feature_words[i];
		there = find(source, word->leaf, word->subleaf);
		here = find(host, word->leaf, word->subleaf);
		if (!there)
			continue;
		uint32_t lacking = register_of(there, word->which) & ~word->ignored &
				   ~(here ? register_of(here, word->which) : 0);
		for (unsigned bit = 0; bit < 32; bit++) {
			char name[48];
			size_t used = strlen(missing);
			if (!(lacking >> bit & 1) || used > sizeof missing - sizeof name - 2)
				continue;
			name_feature(word, bit, name, sizeof name);
			snprintf(missing + used, sizeof missing - used, "%s%s", count++ ? ", " : "",
				 name);
		}
	}
	if (count)
		return error_set(error, ENOTSUP, "cpu-lacks",
				 "the source's CPU offers %s; this host's does not", missing);
	return compare_layout(source, host, error);
}

void cpuid_format(const struct kvm_cpuid_entry2 *entry, char *key, char *value)
{
	snprintf(key, CPUID_KEY_BYTES, "cpuid.%08x.%02x", entry->function, entry->index);
	snprintf(value, CPUID_VALUE_BYTES, "%x %08x %08x %08x %08x", entry->flags, entry->eax,
		 entry->ebx, entry->ecx, entry->edx);
}

int cpuid_parse(const struct jaunt_description *description, struct kvm_cpuid2 **out,
		struct jaunt_error *error)
{
	struct kvm_cpuid2 *set = new_set(MOST_LEAVES);
	if (!set)
		return error_set(error, ENOMEM, "no-memory", "CPUID: out of memory");
	set->nent = 0;
	for (size_t i = 0; i < description->property_count; i++) {
		const struct jaunt_property *property = &description->properties[i];
		if (strncmp(property->key, "cpuid.", 6))
			continue;
		struct kvm_cpuid_entry2 *entry = &set->entries[set->nent];
		int end = 0;
		if (set->nent < MOST_LEAVES &&
		    sscanf(property->key, "cpuid.%8x.%8x", &entry->function, &entry->index) == 2 &&
		    sscanf(property->value, "%8x %8x %8x %8x %8x%n", &entry->flags, &entry->eax,
			   &entry->ebx, &entry->ecx, &entry->edx, &end) == 5 &&
		    !property->value[end]) {
			set->nent++;
			continue;
		}
		free(set);
		return error_set(error, EPROTO, "bad-description",
				 "the source describes its CPU in a way that makes no sense "
				 "('%.40s' = '%.60s')",
				 property->key, property->value);
	}
	*out = set;
	return 0;
}
