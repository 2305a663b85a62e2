/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "vmm/qemu/cpuid.h"

TestSuite(cpuid, .timeout = 30);

static json_t *words;
static char told[4096];

static void add(json_int_t leaf, int subleaf, const char *place, json_int_t features)
{
	json_t *word = json_pack("{s:I, s:s, s:I}", "cpuid-input-eax", leaf, "cpuid-register",
				 place, "features", features);

	if (subleaf >= 0)
		json_object_set_new(word, "cpuid-input-ecx", json_integer(subleaf));
	json_array_append_new(words, word);
}

static void set_up(void)
{
	words = json_array();
}

static void tear_down(void)
{
	json_decref(words);
}

static void take(void *context, const char *name)
{
	size_t used = strlen(told);

	(void)context;
	snprintf(told + used, sizeof(told) - used, "%s ", name);
}

static const char *all(void)
{
	told[0] = '\0';
	cpuid_each(words, take, NULL);
	return told;
}

Test(cpuid, names_each_bit_that_is_set, .init = set_up, .fini = tear_down)
{
	add(1, -1, "EDX", 1 | 1 << 9 | INT64_C(1) << 31);
	add(1, -1, "ECX", 1 << 19);
	add(0x80000001, -1, "EDX", 1 << 20);
	cr_assert_str_eq(all(), "fpu apic pbe sse4-1 nx ");
}

Test(cpuid, says_where_a_bit_without_a_name_is, .init = set_up, .fini = tear_down)
{
	add(1, -1, "EDX", 1 << 10);
	add(7, 1, "EAX", 1 << 4 | INT64_C(1) << 31);
	add(0x80000001, -1, "EDX", 1);
	add(0x24, 0, "EBX", 2);
	cr_assert_str_eq(all(), "cpuid-1-edx-10 avx-vnni cpuid-7.1-eax-31 cpuid-80000001-edx-0 "
				"cpuid-24.0-ebx-1 ");
}

Test(cpuid, tells_apart_leaves_subleaves_and_registers, .init = set_up, .fini = tear_down)
{
	add(7, 0, "EBX", 1);
	cr_assert_str_eq(all(), "fsgsbase ");
	add(7, 1, "EBX", 1);
	add(7, -1, "EBX", 1);
	add(7, 0, "EAX", 1);
	cr_assert_str_eq(all(), "fsgsbase cpuid-7.1-ebx-0 cpuid-7-ebx-0 cpuid-7.0-eax-0 ");
}

Test(cpuid, knows_a_flag_by_each_of_its_names, .init = set_up, .fini = tear_down)
{
	add(1, -1, "ECX", 0);
	add(0x80000001, -1, "EDX", 0);
	cr_assert(cpuid_says(words, "sse4-1") && cpuid_says(words, "sse4.1") &&
		  cpuid_says(words, "sse4_1"));
	cr_assert(cpuid_says(words, "pni") && cpuid_says(words, "sse3"));
	cr_assert(cpuid_says(words, "xd") && cpuid_says(words, "nx"));
	cr_assert(cpuid_says(words, "hypervisor") && cpuid_says(words, "3dnow"));
}

/* They are asked for one by one. */
Test(cpuid, does_not_answer_for_what_it_was_not_told, .init = set_up, .fini = tear_down)
{
	cr_assert(!cpuid_says(words, "fpu"));
	cr_assert(!cpuid_says(NULL, "fpu"));
	add(1, -1, "ECX", 0);
	cr_assert(!cpuid_says(words, "fpu"), "its word is not there");
	add(1, -1, "EDX", 0);
	cr_assert(cpuid_says(words, "fpu"));
	cr_assert(!cpuid_says(words, "fp") && !cpuid_says(words, "fpux") && !cpuid_says(words, ""));
	cr_assert(!cpuid_says(words, "vmx-ept") && !cpuid_says(words, "hv-time"));
	cr_assert_str_eq(all(), "");
}

/* Nor for a word that is not as QEMU tells one: its flags are asked for, too. */
Test(cpuid, does_not_answer_for_a_word_it_cannot_read, .init = set_up, .fini = tear_down)
{
	static const char *const odd[] = {
		"{'cpuid-input-eax': 1, 'cpuid-register': 'EDX'}",
		"{'cpuid-input-eax': 1, 'cpuid-register': 'EDX', 'features': null}",
		"{'cpuid-input-eax': 1, 'cpuid-register': 'EDX', 'features': '1'}",
		"{'cpuid-input-eax': 1, 'cpuid-register': 'EDX', 'features': 1.0}",
		"{'cpuid-input-eax': 1, 'cpuid-register': 'EDX', 'features': -1}",
		"{'cpuid-input-eax': 1, 'cpuid-register': 'EDX', 'features': 4294967296}",
		"{'cpuid-input-eax': 4294967297, 'cpuid-register': 'EDX', 'features': 1}",
		"{'cpuid-input-eax': 1, 'cpuid-input-ecx': -1, 'cpuid-register': 'EDX', "
		"'features': 1}",
		"{'cpuid-input-eax': 1, 'cpuid-register': 3, 'features': 1}",
		"{'features': 1}",
		"[1]",
		"1",
	};

	for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
		char text[256];
		snprintf(text, sizeof(text), "%s", odd[i]);
		for (char *at = text; *at; at++)
			*at = *at == '\'' ? '"' : *at;
		json_t *word = json_loads(text, JSON_DECODE_ANY, NULL);
		cr_assert_not_null(word, "%s", text);
		json_array_append_new(words, word);
		cr_assert(!cpuid_says(words, "fpu"), "%s", text);
		cr_assert_str_eq(all(), "", "%s: %s", text, told);
	}
}

Test(cpuid, a_bit_without_a_name_has_no_name_to_say, .init = set_up, .fini = tear_down)
{
	add(1, -1, "EDX", 1);
	cr_assert(!cpuid_says(words, "-") && !cpuid_says(words, "_"));
}
