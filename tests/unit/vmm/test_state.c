/* SPDX-License-Identifier: Apache-2.0 */
/* Saved states that somebody has tampered with: refused with a reason, nothing read out of bounds
 * (the address sanitizer sees it: every state here is an allocation of exactly its size). */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define HEADER_VERSION 8 /* offsets in the header */
#define HEADER_VCPUS   12
#define HEADER_BACKING 16

struct saved {
	struct microvm *source, *target;
	uint8_t *bytes;
	size_t count;
};

static struct saved save(enum harness_backing backing)
{
	harness_require(backing);
	struct saved saved;
	struct jaunt_error error = {0};
	void *bytes;
	saved.source = harness_start(backing, "random:ws=1m");
	saved.target = harness_target(saved.source);
	harness_pause(saved.source);
	cr_assert(!microvm_ops.save(saved.source, &bytes, &saved.count, &error), "%s", error.text);
	saved.bytes = bytes;
	return saved;
}

static void finish(struct saved *saved)
{
	microvm_destroy(saved->source);
	microvm_destroy(saved->target);
	free(saved->bytes);
}

static int load(struct saved *saved, const uint8_t *bytes, size_t count, struct jaunt_error *error)
{
	uint8_t *exact = malloc(count ? count : 1);
	memcpy(exact, bytes, count);
	memset(error, 0, sizeof *error);
	int result = microvm_ops.load(saved->target, exact, count, error);
	free(exact);
	return result;
}

static void expect_refused(struct saved *saved, const uint8_t *bytes, size_t count,
			   const char *words)
{
	struct jaunt_error error;
	cr_expect_eq(load(saved, bytes, count, &error), -EPROTO, "%zu bytes were taken", count);
	cr_expect_str_eq(error.reason, "bad-state");
	cr_expect(strstr(error.text, words), "'%s' does not say '%s'", error.text, words);
}

/* The target is as good as new: it takes the true state and runs. */
static void expect_unharmed(struct saved *saved)
{
	struct jaunt_error error;
	cr_assert(!load(saved, saved->bytes, saved->count, &error), "%s", error.text);
	harness_copy_memory(saved->source, saved->target);
	harness_resume(saved->target);
	harness_check(saved->target);
}

static void cut_short_everywhere(enum harness_backing backing, size_t step)
{
	struct saved saved = save(backing);
	for (size_t count = 0; count < saved.count; count += step)
		expect_refused(&saved, saved.bytes, count, "cut short");
	expect_unharmed(&saved);
	finish(&saved);
}

Test(state, one_that_was_cut_short_is_refused_on_threads, .timeout = 60)
{
	cut_short_everywhere(HARNESS_THREAD, 1);
}

static void lengths(enum harness_backing backing)
{
	struct saved saved = save(backing);
	uint8_t *longer = calloc(1, saved.count + 8);
	memcpy(longer, saved.bytes, saved.count);
	expect_refused(&saved, longer, saved.count + 8, "behind its last vCPU");
	free(longer);
	expect_refused(&saved, saved.bytes, 0, "header");
	finish(&saved);
}

Test(state, one_that_is_too_long_is_refused_under_kvm, .timeout = 60)
{
	lengths(HARNESS_KVM);
}

Test(state, one_that_is_too_long_is_refused_on_threads, .timeout = 60)
{
	lengths(HARNESS_THREAD);
}

/* The vCPUs' sections are read one after the other; a cut is seen wherever it is, and nothing of
 * the kernel's is asked with what is missing. */
Test(state, one_that_was_cut_short_is_refused_under_kvm, .timeout = 60)
{
	struct saved saved = save(HARNESS_KVM);
	for (size_t count = 0; count < saved.count; count += 31) {
		struct jaunt_error error;
		cr_expect_eq(load(&saved, saved.bytes, count, &error), -EPROTO);
		cr_expect_str_eq(error.reason, "bad-state", "%s", error.text);
	}
	expect_unharmed(&saved);
	finish(&saved);
}

static void headers(enum harness_backing backing)
{
	struct saved saved = save(backing);
	uint8_t original = saved.bytes[0];
	saved.bytes[0] = 'X';
	expect_refused(&saved, saved.bytes, saved.count, "not the state of a built-in VM");
	saved.bytes[0] = original;
	saved.bytes[HEADER_VERSION]++;
	expect_refused(&saved, saved.bytes, saved.count, "has version 2");
	saved.bytes[HEADER_VERSION]--;
	saved.bytes[HEADER_VCPUS] = 3;
	expect_refused(&saved, saved.bytes, saved.count, "3 vCPUs");
	saved.bytes[HEADER_VCPUS] = 2;
	saved.bytes[HEADER_BACKING] ^= 1;
	expect_refused(&saved, saved.bytes, saved.count, "thread-backed");
	saved.bytes[HEADER_BACKING] ^= 1;
	expect_unharmed(&saved);
	finish(&saved);
}

Test(state, one_of_another_kind_is_refused_with_what_it_is_under_kvm, .timeout = 60)
{
	headers(HARNESS_KVM);
}

Test(state, one_of_another_kind_is_refused_with_what_it_is_on_threads, .timeout = 60)
{
	headers(HARNESS_THREAD);
}

/* Whatever a byte becomes, loading ends, and says something if it fails. */
static void every_byte(enum harness_backing backing, uint8_t mask, size_t step)
{
	struct saved saved = save(backing);
	unsigned refused = 0;
	for (size_t i = 0; i < saved.count; i += step) {
		struct jaunt_error error;
		saved.bytes[i] ^= mask;
		if (load(&saved, saved.bytes, saved.count, &error)) {
			refused++;
			cr_expect(*error.reason && *error.text, "byte %zu: no reason", i);
		}
		saved.bytes[i] ^= mask;
	}
	cr_expect_gt(refused, 0);
	finish(&saved);
}

Test(state, no_flipped_byte_breaks_the_reader_under_kvm, .timeout = 120)
{
	every_byte(HARNESS_KVM, 0xff, 3);
}

Test(state, no_flipped_byte_breaks_the_reader_on_threads, .timeout = 60)
{
	every_byte(HARNESS_THREAD, 0xff, 1);
	every_byte(HARNESS_THREAD, 0x01, 1);
}

/* Registers that lie about where they are may ruin the guest, never the process that runs it. */
Test(state, a_thread_with_wild_registers_stays_within_its_memory, .timeout = 120)
{
	struct saved saved = save(HARNESS_THREAD);
	struct microvm *target = saved.target;
	for (size_t i = saved.count / 2; i < saved.count; i += 8) {
		struct jaunt_error error;
		uint64_t original;
		memcpy(&original, saved.bytes + i, sizeof original);
		memset(saved.bytes + i, 0xa5, sizeof original);
		saved.target = harness_target(saved.source);
		if (!load(&saved, saved.bytes, saved.count, &error)) {
			harness_copy_memory(saved.source, saved.target);
			harness_resume(saved.target);
			harness_pause(saved.target);
		}
		microvm_destroy(saved.target);
		memcpy(saved.bytes + i, &original, sizeof original);
	}
	saved.target = target;
	finish(&saved);
}

Test(state, a_vm_that_has_run_takes_no_state)
{
	struct saved saved = save(HARNESS_THREAD);
	struct jaunt_error error = {0};
	cr_expect_eq(microvm_ops.load(saved.source, saved.bytes, saved.count, &error), -EALREADY);
	finish(&saved);
}
