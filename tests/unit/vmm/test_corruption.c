/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever happens to a page, the guest has to notice by itself. The VM is paused, its memory
 * damaged as a faulty migration would, and it runs on. Working sets are small and operations slow,
 * so that a page which has just been damaged is not given back before anybody looks (discard).
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define PARAMETERS ":ws=256k,rate=20000,check=16"
#define PAGES      64 /* of 256 KiB, of both vCPUs */

union page {
	uint8_t bytes[GUEST_PAGE_BYTES];
	uint64_t lanes[GUEST_PAGE_LANES]; /* index, version, … */
};

static union page *working_set(struct microvm *vm)
{
	/* Behind everything of the monitor's: the first page whose first lane is its own index. */
	void *memory = harness_memory(vm);
	union page *pages = memory;
	uint64_t count = harness_memory_bytes(vm) / GUEST_PAGE_BYTES;
	for (uint64_t i = (2 << 20) / GUEST_PAGE_BYTES; i < count;
	     i += (2 << 20) / GUEST_PAGE_BYTES)
		for (unsigned j = 0; j < PAGES; j++)
			if (pages[i + j].lanes[0] == i + j)
				return &pages[i];
	cr_assert_fail("no working set found");
	return NULL;
}

static bool is_live(const union page *page)
{
	return page->lanes[0] != 0;
}

/* Does it hold a later version of the same page? */
static bool is_newer(const union page *page, const union page *older)
{
	return is_live(page) && is_live(older) && page->lanes[1] > older->lanes[1];
}

typedef bool damage_function(union page *pages, unsigned i, const union page *older);

/* Each damages page i, if it is one that this can be done to. */
static bool zero(union page *pages, unsigned i, const union page *older)
{
	if (!is_live(&pages[i]))
		return false;
	memset(&pages[i], 0, sizeof pages[i]);
	return true;
}

static bool go_back(union page *pages, unsigned i, const union page *older)
{
	if (!is_newer(&pages[i], &older[i]))
		return false;
	pages[i] = older[i];
	return true;
}

static bool tear(union page *pages, unsigned i, const union page *older)
{
	const size_t half = GUEST_PAGE_BYTES / 2;
	/* A put changes the header and one slot, perhaps both in the first half. */
	if (!is_newer(&pages[i], &older[i]) ||
	    !memcmp(pages[i].bytes + half, older[i].bytes + half, half))
		return false;
	memcpy(pages[i].bytes + half, older[i].bytes + half, half);
	return true;
}

static bool lose_half(union page *pages, unsigned i, const union page *older)
{
	if (!is_live(&pages[i]))
		return false;
	memset(pages[i].bytes + GUEST_PAGE_BYTES / 2, 0, GUEST_PAGE_BYTES / 2);
	return true;
}

static bool swap(union page *pages, unsigned i, const union page *older)
{
	unsigned other = i + 1;
	if (i % 2 || !is_live(&pages[i]) || !is_live(&pages[other]) ||
	    pages[i].lanes[0] != pages[other].lanes[0] - 1)
		return false;
	union page held = pages[i];
	pages[i] = pages[other];
	pages[other] = held;
	return true;
}

static bool flip(union page *pages, unsigned i, const union page *older)
{
	if (!is_live(&pages[i]))
		return false;
	/* Anywhere, the header included; the same every time. */
	pages[i].bytes[(i * 2654435761u >> 7) % GUEST_PAGE_BYTES] ^= 0x10;
	return true;
}

/* How many pages it did it to. In `discard` every page may be about to go, in others one is enough:
 * a late one, since of those that a guest writes often one may just be being written. */
static unsigned inflict(damage_function *damage, union page *pages, const union page *older,
			bool all)
{
	unsigned done = 0;
	for (unsigned i = PAGES; i-- > 0 && (all || !done);)
		done += damage(pages, i, older);
	return done;
}

static void expect_found(enum harness_backing backing, const char *name, damage_function *damage)
{
	char workload[64];
	snprintf(workload, sizeof workload, "%s" PARAMETERS, name);
	struct microvm *vm = harness_start(backing, workload);
	union page *older = malloc(PAGES * sizeof *older);
	harness_check(vm);
	harness_pause(vm);
	union page *pages = working_set(vm);
	memcpy(older, pages, PAGES * sizeof *older);
	/* Some damage needs pages that have changed since: a check lasts until some have. */
	while (!inflict(damage, pages, older, !strcmp(name, "discard"))) {
		harness_resume(vm);
		harness_check(vm);
		harness_pause(vm);
	}
	harness_resume(vm);
	struct jaunt_error error = {0};
	cr_expect_eq(microvm_self_check(vm, HARNESS_PATIENCE_MS, &error), -EIO,
		     "%s did not notice: %s", name, error.text);
	cr_expect_str_eq(error.reason, "memory-errors");
	struct microvm_account account = harness_account(vm);
	cr_expect_gt(account.memory_errors, 0);
	cr_expect(*account.first_error);
	microvm_account_free(&account);
	microvm_destroy(vm);
	free(older);
}

static const char *const all[] = {"idle", "sweep", "random", "read", "zipf", "kv", "discard", NULL};
static const char *const writing[] = {"sweep", "random", "read", "zipf", "kv", "discard", NULL};

static void expect_found_by(enum harness_backing backing, const char *const *names,
			    damage_function *damage)
{
	harness_require(backing);
	for (; *names; names++)
		expect_found(backing, *names, damage);
}

#define FOUND_UNDER_BOTH(name, names, damage)                                                      \
	Test(corruption, name##_under_kvm, .timeout = 120)                                         \
	{                                                                                          \
		expect_found_by(HARNESS_KVM, names, damage);                                       \
	}                                                                                          \
	Test(corruption, name##_on_threads, .timeout = 120)                                        \
	{                                                                                          \
		expect_found_by(HARNESS_THREAD, names, damage);                                    \
	}

FOUND_UNDER_BOTH(every_workload_finds_a_page_of_zeros, all, zero)
FOUND_UNDER_BOTH(every_workload_finds_a_page_whose_second_half_is_missing, all, lose_half)
FOUND_UNDER_BOTH(every_workload_finds_two_pages_that_changed_places, all, swap)
FOUND_UNDER_BOTH(every_workload_finds_one_flipped_bit, all, flip)
FOUND_UNDER_BOTH(every_writing_workload_finds_an_older_copy_that_is_valid, writing, go_back)
FOUND_UNDER_BOTH(every_writing_workload_finds_a_page_torn_between_two_versions, writing, tear)
