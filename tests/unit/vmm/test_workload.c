/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"

static struct microvm_workload parse(const char *text)
{
	struct microvm_workload workload;
	struct jaunt_error error = {0};
	cr_assert(!microvm_workload_parse(&workload, text, &error), "%s: %s", text, error.text);
	return workload;
}

Test(workload, a_name_alone_gets_the_defaults)
{
	struct microvm_workload workload = parse("random");
	cr_expect_eq(workload.kind, GUEST_RANDOM);
	cr_expect_eq(workload.working_set_percent, 50);
	cr_expect_eq(workload.working_set_bytes, 0);
	cr_expect_eq(workload.operations_per_s, 0);
	cr_expect_eq(workload.seed, 1);
}

Test(workload, parameters_override_the_defaults_in_any_order)
{
	struct microvm_workload workload = parse("zipf:seed=7,rate=1000,ws=3m,check=0");
	cr_expect_eq(workload.kind, GUEST_ZIPF);
	cr_expect_eq(workload.working_set_bytes, 3 << 20);
	cr_expect_eq(workload.operations_per_s, 1000);
	cr_expect_eq(workload.seed, 7);
	cr_expect_eq(workload.check_every, 0);
	cr_expect_eq(parse("kv:ws=100%").working_set_percent, 100);
}

Test(workload, the_canonical_text_parses_to_the_same)
{
	for (unsigned kind = 0; kind < GUEST_WORKLOADS; kind++) {
		char text[256], again[256];
		snprintf(text, sizeof text, "%s:ws=2g,rate=5,seed=18446744073709551615",
			 microvm_workload_name(kind));
		struct microvm_workload workload = parse(text);
		microvm_workload_format(&workload, again, sizeof again);
		struct microvm_workload second = parse(again);
		cr_expect_eq(second.kind, kind);
		cr_expect_eq(second.working_set_bytes, UINT64_C(2) << 30);
		cr_expect_eq(second.operations_per_s, 5);
		cr_expect_eq(second.seed, UINT64_MAX);
	}
}

Test(workload, every_workload_has_a_name_and_a_line_of_help)
{
	for (unsigned kind = 0; kind < GUEST_WORKLOADS; kind++)
		cr_expect(microvm_workload_name(kind) && *microvm_workload_help(kind));
	cr_expect_null(microvm_workload_name(GUEST_WORKLOADS));
	cr_expect_null(microvm_workload_help(GUEST_WORKLOADS));
}

Test(workload, what_makes_no_sense_is_refused_with_a_list_of_what_does)
{
	static const char *const wrong[] = {"",
					    "randon",
					    "rand",
					    "randomly",
					    "random:",
					    "random:ws",
					    "random:ws=",
					    "random:ws=0%",
					    "random:ws=101%",
					    "random:ws=-1",
					    "random:ws=1q",
					    "random:ws=1mm",
					    "random:ws=100",
					    "random:ws=99999999999999999999",
					    "random:ws=18446744073709551615g",
					    "random:rate=fast",
					    "random:rate=2000000000",
					    "random:rate=1k",
					    "random:seed=0x1",
					    "random:speed=1",
					    "random:ws=50%,,seed=1",
					    "random:seed=1,"};
	for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
		struct microvm_workload workload;
		struct jaunt_error error = {0};
		cr_expect_eq(microvm_workload_parse(&workload, wrong[i], &error), -EINVAL,
			     "'%s' was taken", wrong[i]);
		cr_expect_str_eq(error.reason, "bad-workload");
		cr_expect(strstr(error.text, "idle, sweep, random, read, zipf, kv, discard"));
		cr_expect(strstr(error.text, "ws=SIZE"));
	}
}

Test(workload, an_endless_text_is_refused)
{
	char text[4096] = "random:";
	memset(text + 7, 'x', sizeof text - 8);
	struct microvm_workload workload;
	struct jaunt_error error = {0};
	cr_expect_eq(microvm_workload_parse(&workload, text, &error), -EINVAL);
}

static void expect_refused(struct microvm_config config, const char *reason)
{
	struct jaunt_error error = {0};
	struct microvm *vm;
	config.thread_backed = true;
	cr_expect_eq(microvm_create(&vm, &config, &error), -EINVAL);
	cr_expect_str_eq(error.reason, reason, "%s", error.text);
	cr_expect_null(vm);
}

Test(workload, a_vm_that_cannot_be_is_refused)
{
	struct microvm_config good = {.name = "vm",
				      .memory_bytes = 64 << 20,
				      .vcpus = 1,
				      .page_bytes = 4096,
				      .workload = "idle"};
	struct microvm_config config = good;
	config.memory_bytes = 62 << 20;
	expect_refused(config, "bad-size");
	config.memory_bytes = (64 << 20) + 4096;
	expect_refused(config, "bad-size");
	config = good;
	config.vcpus = 0;
	expect_refused(config, "bad-size");
	config.vcpus = MICROVM_MAX_VCPUS + 1;
	expect_refused(config, "bad-size");
	config = good;
	config.page_bytes = 8192;
	expect_refused(config, "bad-size");
	config = good;
	config.workload = "random:ws=64m";
	expect_refused(config, "bad-workload");
	config.workload = "discard:ws=8k";
	expect_refused(config, "bad-workload");
	config = good;
	config.vcpus = MICROVM_MAX_VCPUS;
	expect_refused(config, "bad-workload");
}
