/* SPDX-License-Identifier: Apache-2.0 */
#include "harness.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

void harness_require(enum harness_backing backing)
{
	struct jaunt_error error = {0};
	if (backing == HARNESS_KVM && microvm_check_kvm(&error))
		cr_skip("%s", error.text);
}

struct microvm *harness_create(enum harness_backing backing, const char *workload)
{
	struct jaunt_error error = {0};
	struct microvm *vm;
	struct microvm_config config = {.name = "test",
					.memory_bytes = MIB(64),
					.vcpus = 2,
					.page_bytes = 4096,
					.workload = workload,
					.thread_backed = backing == HARNESS_THREAD};
	cr_assert(!microvm_create(&vm, &config, &error), "create: %s", error.text);
	return vm;
}

struct microvm *harness_start(enum harness_backing backing, const char *workload)
{
	struct jaunt_error error = {0};
	struct microvm *vm = harness_create(backing, workload);
	cr_assert(!microvm_start(vm, &error), "start: %s", error.text);
	cr_assert(!microvm_wait_ready(vm, HARNESS_PATIENCE_MS, &error), "ready: %s", error.text);
	return vm;
}

void harness_pause(struct microvm *vm)
{
	struct jaunt_error error = {0};
	uint64_t last;
	cr_assert(!microvm_ops.pause(vm, &last, &error), "pause: %s", error.text);
}

void harness_resume(struct microvm *vm)
{
	struct jaunt_error error = {0};
	uint64_t first;
	cr_assert(!microvm_ops.resume(vm, &first, &error), "resume: %s", error.text);
}

void harness_check(struct microvm *vm)
{
	struct jaunt_error error = {0};
	cr_assert(!microvm_self_check(vm, HARNESS_PATIENCE_MS, &error), "self-check: %s",
		  error.text);
}

static struct jaunt_description describe(struct microvm *vm)
{
	struct jaunt_error error = {0};
	struct jaunt_description description;
	cr_assert(!microvm_ops.describe(vm, &description, &error), "describe: %s", error.text);
	return description;
}

uint8_t *harness_memory(struct microvm *vm)
{
	return describe(vm).regions[0].view;
}

uint64_t harness_memory_bytes(struct microvm *vm)
{
	return describe(vm).regions[0].bytes;
}

struct microvm *harness_target(struct microvm *source)
{
	struct jaunt_error error = {0};
	struct jaunt_description wanted = describe(source);
	struct microvm_host host = {.name = "target", .allow_thread_backed = true};
	void *vm;
	cr_assert(!microvm_factory.create(&host, &wanted, &vm, &error), "factory: %s", error.text);
	return vm;
}

void harness_move_state(struct microvm *source, struct microvm *target)
{
	struct jaunt_error error = {0};
	void *state;
	size_t bytes;
	cr_assert(!microvm_ops.save(source, &state, &bytes, &error), "save: %s", error.text);
	cr_assert(!microvm_ops.load(target, state, bytes, &error), "load: %s", error.text);
	free(state);
}

void harness_copy_memory(struct microvm *source, struct microvm *target)
{
	memcpy(harness_memory(target), harness_memory(source), harness_memory_bytes(source));
}

struct microvm_account harness_account(struct microvm *vm)
{
	struct jaunt_error error = {0};
	struct microvm_account account;
	cr_assert(!microvm_account(vm, &account, &error), "account: %s", error.text);
	return account;
}
