/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/cpuid.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define NO_SUBLEAF (-1)
#define BITS       32
#define NO_NAME    "-"

/* A register of a leaf, and the names of its bits from bit 0 on. What is not here is asked for. */
static const struct word {
	uint32_t leaf;
	int32_t subleaf;
	const char *place, *names;
} known[] = {
	{0x1, NO_SUBLEAF, "ECX",
	 "sse3 pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma "
	 "cx16 xtpr pdcm - pcid dca sse4-1 sse4-2 x2apic movbe popcnt tsc-deadline "
	 "aes xsave - avx f16c rdrand hypervisor"},
	{0x1, NO_SUBLEAF, "EDX",
	 "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat "
	 "pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"},
	{0x6, NO_SUBLEAF, "EAX", "- - arat"},
	{0x7, 0, "EBX",
	 "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - "
	 "mpx - avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt "
	 "clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl"},
	{0x7, 0, "ECX",
	 "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq "
	 "avx512vnni avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - "
	 "bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks"},
	{0x7, 0, "EDX",
	 "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - "
	 "md-clear - - - serialize - tsx-ldtrk - - arch-lbr - - amx-bf16 "
	 "avx512-fp16 amx-tile amx-int8 spec-ctrl stibp - arch-capabilities "
	 "core-capability ssbd"},
	{0x7, 1, "EAX", "- - - - avx-vnni avx512-bf16"},
	{0xd, 1, "EAX", "xsaveopt xsavec xgetbv1 xsaves xfd"},
	{0x12, 0, "EAX", "sgx1 sgx2"},
	{0x12, 0, "EBX", "sgx-exinfo"},
	{0x12, 1, "EAX", "- sgx-debug sgx-mode64 - sgx-provisionkey sgx-tokenkey - sgx-kss"},
	{0x14, 0, "ECX",
	 "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - "
	 "intel-pt-lip"},
	{0x40000001, NO_SUBLEAF, "EAX",
	 "kvmclock kvm-nopiodelay kvm-mmu kvmclock2 kvm-asyncpf kvm-steal-time "
	 "kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush - kvm-pv-ipi "
	 "kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id "
	 "- - - - - - - - kvmclock-stable-bit"},
	{0x40000001, NO_SUBLEAF, "EDX", "kvm-hint-dedicated"},
	{0x80000001, NO_SUBLEAF, "ECX",
	 "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse "
	 "3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm "
	 "topoext perfctr-core perfctr-nb"},
	{0x80000001, NO_SUBLEAF, "EDX",
	 "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt "
	 "pdpe1gb rdtscp - lm 3dnowext 3dnow"},
	{0x80000007, NO_SUBLEAF, "EDX", "- - - - - - - - invtsc"},
	{0x80000008, NO_SUBLEAF, "EBX",
	 "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - - - "
	 "- - - - - amd-ssbd virt-ssbd amd-no-ssb"},
	{0x8000000a, NO_SUBLEAF, "EDX",
	 "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid "
	 "decodeassists - - pause-filter - pfthreshold avic - v-vmsave-vmload vgif "
	 "- - - - - - - - - - - svme-addr-chk"},
	{0xc0000001, NO_SUBLEAF, "EDX",
	 "- - xstore xstore-en - - xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm "
	 "pmm-en"},
};

/* Other names of QEMU's for one bit. */
static const struct {
	const char *name, *same;
} others[] = {{"pni", "sse3"},
	      {"pclmuldq", "pclmulqdq"},
	      {"xd", "nx"},
	      {"ffxsr", "fxsr-opt"},
	      {"i64", "lm"}};

/* --- Names --------------------------------------------------------------------------------------
 */

/* As QEMU writes them now: "sse4.1" and "sse4_1" are the same property. */
static const char *usual(const char *property, char text[CPUID_NAME_MAX])
{
	snprintf(text, CPUID_NAME_MAX, "%s", property);
	for (char *at = text; *at; at++)
		if (*at == '_' || *at == '.')
			*at = '-';
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (strcmp(text, others[i].name) == 0)
			return others[i].same;
	return text;
}

/* The name of a bit, of `bytes`; NULL: it has none. */
static const char *name_of(const struct word *word, unsigned bit, size_t *bytes)
{
	const char *name = word->names;

	for (; bit && *name; bit--) {
		name += strcspn(name, " ");
		name += *name == ' ';
	}
	*bytes = strcspn(name, " ");
	return *bytes && strncmp(name, NO_NAME, *bytes) != 0 ? name : NULL;
}

static bool has_name(const struct word *word, const char *wanted)
{
	size_t length = strlen(wanted), bytes;

	for (const char *name = word->names; *name; name += bytes + (name[bytes] == ' ')) {
		bytes = strcspn(name, " ");
		if (bytes == length && memcmp(name, wanted, bytes) == 0)
			return strcmp(wanted, NO_NAME) != 0;
	}
	return false;
}

/* --- Words --------------------------------------------------------------------------------------
 */

/* A word as QEMU told it. */
struct told {
	struct word place;
	const struct word *known; /* NULL: nothing is known of it */
	uint32_t features;
};

/* False: that is no number of 32 bits. */
static bool take_number(const json_t *word, const char *key, uint32_t *number)
{
	const json_t *value = json_object_get(word, key);
	json_int_t told = json_integer_value(value);

	*number = (uint32_t)told;
	return json_is_integer(value) && told >= 0 && told <= UINT32_MAX;
}

static void look_up(struct told *told)
{
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].leaf == told->place.leaf && known[i].subleaf == told->place.subleaf &&
		    strcmp(known[i].place, told->place.place) == 0)
			told->known = &known[i];
}

/* False: what a word of that shape says is not known, so its flags have to be asked for. */
static bool take_word(const json_t *word, struct told *told)
{
	const char *place = json_string_value(json_object_get(word, "cpuid-register"));
	uint32_t subleaf = 0;
	bool has_subleaf = json_object_get(word, "cpuid-input-ecx") != NULL;

	*told = (struct told){.place.place = place};
	if (!place || !take_number(word, "cpuid-input-eax", &told->place.leaf) ||
	    !take_number(word, "features", &told->features) ||
	    (has_subleaf && !take_number(word, "cpuid-input-ecx", &subleaf)) || subleaf > INT32_MAX)
		return false;
	told->place.subleaf = has_subleaf ? (int32_t)subleaf : NO_SUBLEAF;
	look_up(told);
	return true;
}

bool cpuid_says(const json_t *words, const char *property)
{
	char text[CPUID_NAME_MAX];
	const char *name = usual(property, text);
	json_t *word;
	size_t i;

	json_array_foreach ((json_t *)words, i, word) {
		struct told told;
		if (take_word(word, &told) && told.known && has_name(told.known, name))
			return true;
	}
	return false;
}

static void name_place(const struct word *place, unsigned bit, char text[CPUID_NAME_MAX])
{
	char subleaf[16] = "";

	if (place->subleaf != NO_SUBLEAF)
		snprintf(subleaf, sizeof(subleaf), ".%d", place->subleaf);
	int bytes = snprintf(text, CPUID_NAME_MAX, "cpuid-%x%s-%.3s-%u", place->leaf, subleaf,
			     place->place, bit);
	for (int i = 0; i < bytes && i < CPUID_NAME_MAX; i++)
		text[i] = (char)tolower((unsigned char)text[i]);
}

void cpuid_each(const json_t *words, void (*take)(void *context, const char *name), void *context)
{
	json_t *word;
	size_t i;

	json_array_foreach ((json_t *)words, i, word) {
		struct told told;
		if (!take_word(word, &told))
			continue;
		for (unsigned bit = 0; bit < BITS; bit++) {
			char text[CPUID_NAME_MAX];
			size_t bytes = 0;
			const char *name = told.known ? name_of(told.known, bit, &bytes) : NULL;
			if (!(told.features >> bit & 1))
				continue;
			if (name)
				snprintf(text, sizeof(text), "%.*s", (int)bytes, name);
			else
				name_place(&told.place, bit, text);
			take(context, text);
		}
	}
}
