/* SPDX-License-Identifier: Apache-2.0 */
/* Running, pausing, moving, ending. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

static const char *const workloads[] = {
	"idle",       "sweep:ws=1m", "random:ws=1m",  "read:ws=1m",
	"zipf:ws=1m", "kv:ws=1m",    "discard:ws=1m", "random:ws=1m,rate=5000"};
#define WORKLOADS (sizeof workloads / sizeof workloads[0])

static void expect_goes_on(enum harness_backing backing, const char *workload)
{
	struct microvm *source = harness_start(backing, workload);
	harness_check(source);
	struct microvm *target = harness_target(source);
	harness_pause(source);
	struct microvm_account before = harness_account(source);
	harness_move_state(source, target);
	harness_copy_memory(source, target);
	microvm_destroy(source);
	harness_resume(target);
	harness_check(target);
	harness_check(target);
	struct microvm_account after = harness_account(target);
	cr_expect(after.arrived && after.ready);
	cr_expect_eq(after.memory_errors, 0, "%s", after.first_error);
	cr_expect_geq(after.operations, before.operations, "%s counts anew", workload);
	cr_expect_geq(after.sweeps, 4, "%s made %lu checks", workload, after.sweeps);
	if (strcmp(workload, "idle"))
		cr_expect_gt(after.operations_since_arrival, 0);
	microvm_account_free(&before);
	microvm_account_free(&after);
	microvm_destroy(target);
}

static void expect_all_go_on(enum harness_backing backing)
{
	harness_require(backing);
	for (unsigned i = 0; i < WORKLOADS; i++)
		expect_goes_on(backing, workloads[i]);
}

Test(lifecycle, a_vm_restored_elsewhere_goes_on_where_it_was_under_kvm, .timeout = 120)
{
	expect_all_go_on(HARNESS_KVM);
}

Test(lifecycle, a_vm_restored_elsewhere_goes_on_where_it_was_on_threads, .timeout = 120)
{
	expect_all_go_on(HARNESS_THREAD);
}

static void pause_and_resume(enum harness_backing backing)
{
	harness_require(backing);
	struct microvm *vm = harness_start(backing, "random:ws=1m");
	struct jaunt_error error = {0};
	for (unsigned i = 0; i < 200; i++) {
		uint64_t last, first;
		cr_assert(!microvm_ops.pause(vm, &last, &error), "%s", error.text);
		cr_assert(!microvm_ops.resume(vm, &first, &error), "%s", error.text);
		cr_assert_gt(last, 0);
		cr_assert_gt(first, last, "entered the guest before it had left it");
	}
	harness_check(vm);
	microvm_destroy(vm);
}

Test(lifecycle, two_vcpus_pause_and_resume_200_times_under_kvm, .timeout = 120)
{
	pause_and_resume(HARNESS_KVM);
}

Test(lifecycle, two_vcpus_pause_and_resume_200_times_on_threads, .timeout = 120)
{
	pause_and_resume(HARNESS_THREAD);
}

/* Moves it back and forth; what is saved between two steps of a port call shows here. */
static void move_often(enum harness_backing backing, const char *workload)
{
	harness_require(backing);
	struct microvm *vm = harness_start(backing, workload);
	for (unsigned i = 0; i < 20; i++) {
		struct microvm *next = harness_target(vm);
		harness_pause(vm);
		harness_move_state(vm, next);
		harness_copy_memory(vm, next);
		microvm_destroy(vm);
		vm = next;
		harness_resume(vm);
	}
	harness_check(vm);
	microvm_destroy(vm);
}

Test(lifecycle, twenty_moves_in_a_row_leave_memory_intact_under_kvm, .timeout = 120)
{
	move_often(HARNESS_KVM, "discard:ws=4m");
}

Test(lifecycle, twenty_moves_in_a_row_leave_memory_intact_on_threads, .timeout = 120)
{
	move_often(HARNESS_THREAD, "discard:ws=4m");
}

static void pause_elsewhere_unharmed(enum harness_backing backing)
{
	harness_require(backing);
	struct microvm *source = harness_start(backing, "random:ws=1m");
	struct microvm *target = harness_target(source);
	harness_pause(source);
	harness_move_state(source, target);
	microvm_destroy(target);
	harness_resume(source);
	harness_check(source);
	microvm_destroy(source);
}

Test(lifecycle, a_source_whose_target_was_thrown_away_runs_on_under_kvm, .timeout = 60)
{
	pause_elsewhere_unharmed(HARNESS_KVM);
}

Test(lifecycle, a_source_whose_target_was_thrown_away_runs_on_on_threads, .timeout = 60)
{
	pause_elsewhere_unharmed(HARNESS_THREAD);
}

static void move_unready(enum harness_backing backing)
{
	harness_require(backing);
	struct jaunt_error error = {0};
	struct microvm *source = harness_create(backing, "kv:ws=32m");
	struct microvm *target = harness_target(source);
	cr_assert(!microvm_start(source, &error), "%s", error.text);
	harness_pause(source);
	harness_move_state(source, target);
	harness_copy_memory(source, target);
	microvm_destroy(source);
	harness_resume(target);
	harness_check(target);
	microvm_destroy(target);
}

Test(lifecycle, a_vm_moved_while_it_populates_goes_on_populating_under_kvm, .timeout = 60)
{
	move_unready(HARNESS_KVM);
}

Test(lifecycle, a_vm_moved_while_it_populates_goes_on_populating_on_threads, .timeout = 60)
{
	move_unready(HARNESS_THREAD);
}

static uint64_t sum_of_samples(struct microvm *vm)
{
	struct microvm_account account = harness_account(vm);
	uint64_t sum = 0;
	for (size_t i = 0; i < account.sample_count; i++)
		sum += account.samples[i].operations;
	microvm_account_free(&account);
	return sum;
}

static uint64_t operations(struct microvm *vm)
{
	struct microvm_account account = harness_account(vm);
	microvm_account_free(&account);
	return account.operations_since_arrival;
}

static void samples_add_up(enum harness_backing backing)
{
	harness_require(backing);
	struct microvm *vm = harness_start(backing, "random:ws=1m");
	harness_check(vm);
	uint64_t least = operations(vm);
	harness_pause(vm);
	/* The millisecond that is not over yet is no sample: it soon will be. */
	while (sum_of_samples(vm) < least)
		continue;
	uint64_t sum = sum_of_samples(vm);
	harness_resume(vm);
	harness_check(vm);
	cr_expect_leq(sum, operations(vm));
	cr_expect_gt(least, 0);
	microvm_destroy(vm);
}

Test(lifecycle, throughput_samples_add_up_to_the_operations_under_kvm, .timeout = 60)
{
	samples_add_up(HARNESS_KVM);
}

Test(lifecycle, throughput_samples_add_up_to_the_operations_on_threads, .timeout = 60)
{
	samples_add_up(HARNESS_THREAD);
}

static void huge_pages(bool thread_backed)
{
	struct jaunt_error error = {0};
	struct microvm *source, *target;
	struct microvm_config config = {.name = "test",
					.memory_bytes = 64 << 20,
					.vcpus = 2,
					.page_bytes = 2 << 20,
					.workload = "discard:ws=48m",
					.thread_backed = thread_backed};
	if (microvm_create(&source, &config, &error))
		cr_skip("%s", error.text);
	if (microvm_check_room(NULL, config.memory_bytes, config.page_bytes, &error)) {
		microvm_destroy(source);
		cr_skip("%s", error.text);
	}
	cr_assert(!microvm_start(source, &error), "%s", error.text);
	harness_check(source);
	target = harness_target(source);
	harness_pause(source);
	harness_move_state(source, target);
	harness_copy_memory(source, target);
	microvm_destroy(source);
	harness_resume(target);
	harness_check(target);
	microvm_destroy(target);
}

Test(lifecycle, a_vm_in_huge_pages_moves_and_discards_under_kvm, .timeout = 60)
{
	harness_require(HARNESS_KVM);
	huge_pages(false);
}

Test(lifecycle, a_vm_in_huge_pages_moves_and_discards_on_threads, .timeout = 60)
{
	huge_pages(true);
}

/* Held nearly always it still stops, goes on and comes to the end of its checks. */
static void expect_throttled(enum harness_backing backing)
{
	struct jaunt_error error = {0};
	harness_require(backing);
	struct microvm *vm = harness_start(backing, "random:ws=1m");
	cr_expect_eq(microvm_ops.throttle(vm, 100, &error), -EINVAL);
	for (unsigned percent = 99; percent; percent -= 33) {
		cr_assert_eq(microvm_ops.throttle(vm, percent, &error), 0, "%s", error.text);
		harness_check(vm);
		for (unsigned i = 0; i < 20; i++) {
			harness_pause(vm);
			struct microvm_account before = harness_account(vm);
			struct microvm_account after = harness_account(vm);
			cr_expect_eq(before.operations, after.operations);
			microvm_account_free(&before);
			microvm_account_free(&after);
			harness_resume(vm);
		}
	}
	cr_assert_eq(microvm_ops.throttle(vm, 0, &error), 0);
	cr_assert_eq(microvm_ops.throttle(vm, 0, &error), 0);
	harness_check(vm);
	cr_assert_eq(microvm_ops.throttle(vm, 50, &error), 0);
	microvm_destroy(vm);
}

Test(lifecycle, a_throttled_vm_goes_on_under_kvm, .timeout = 60)
{
	expect_throttled(HARNESS_KVM);
}

Test(lifecycle, a_throttled_vm_goes_on_on_threads, .timeout = 60)
{
	expect_throttled(HARNESS_THREAD);
}

static void count_discarded(void *context, uint64_t guest_address, uint64_t bytes)
{
	uint64_t *total = context;
	__atomic_fetch_add(total, bytes, __ATOMIC_RELAXED);
}

static void expect_discards(bool thread_backed)
{
	struct jaunt_error error = {0};
	uint64_t total = 0;
	struct microvm *vm;
	struct microvm_config config = {.name = "test",
					.memory_bytes = 64 << 20,
					.vcpus = 1,
					.page_bytes = 4096,
					.workload = "discard:ws=1m",
					.thread_backed = thread_backed,
					.discarded = count_discarded,
					.discarded_context = &total};
	cr_assert(!microvm_create(&vm, &config, &error), "%s", error.text);
	cr_assert(!microvm_start(vm, &error), "%s", error.text);
	while (__atomic_load_n(&total, __ATOMIC_RELAXED) < 16 * 4096)
		harness_check(vm);
	cr_expect(!microvm_stop(vm, true, HARNESS_PATIENCE_MS, &error), "%s", error.text);
	cr_expect_eq(total % 4096, 0);
	microvm_destroy(vm);
}

Test(lifecycle, the_discard_workload_tells_what_it_gives_back_under_kvm, .timeout = 60)
{
	harness_require(HARNESS_KVM);
	expect_discards(false);
}

Test(lifecycle, the_discard_workload_tells_what_it_gives_back_on_threads, .timeout = 60)
{
	expect_discards(true);
}

Test(lifecycle, a_vm_that_never_ran_can_be_destroyed)
{
	microvm_destroy(harness_create(HARNESS_THREAD, "random"));
	microvm_destroy(NULL);
}

Test(lifecycle, a_vm_starts_once)
{
	struct jaunt_error error = {0};
	struct microvm *vm = harness_start(HARNESS_THREAD, "random:ws=1m");
	cr_expect_eq(microvm_start(vm, &error), -EALREADY);
	microvm_destroy(vm);
}

Test(lifecycle, creating_a_vm_touches_none_of_its_memory)
{
	struct jaunt_error error = {0};
	struct microvm *source = harness_start(HARNESS_THREAD, "random:ws=1m");
	struct microvm *vm = harness_target(source);
	struct jaunt_description description;
	cr_assert(!microvm_ops.describe(vm, &description, &error));
	for (size_t i = 0; i < description.property_count; i++)
		if (!strcmp(description.properties[i].key, "memory.resident_bytes"))
			cr_expect_str_eq(description.properties[i].value, "0");
	microvm_destroy(vm);
	microvm_destroy(source);
}

Test(lifecycle, damaged_page_tables_are_told_as_a_crash, .timeout = 60)
{
	harness_require(HARNESS_KVM);
	struct jaunt_error error = {0};
	struct microvm *source = harness_start(HARNESS_KVM, "random:ws=1m");
	struct microvm *vm = harness_target(source);
	harness_pause(source);
	harness_move_state(source, vm);
	/* No memory: every page reads as zeros. */
	harness_resume(vm);
	cr_expect_eq(microvm_self_check(vm, HARNESS_PATIENCE_MS, &error), -EIO);
	cr_expect_str_eq(error.reason, "vcpu-crashed", "%s", error.text);
	struct microvm_account account = harness_account(vm);
	cr_expect_gt(account.memory_errors, 0);
	microvm_account_free(&account);
	microvm_destroy(vm);
	microvm_destroy(source);
}
