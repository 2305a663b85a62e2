/* SPDX-License-Identifier: Apache-2.0 */
/* Guest memory is exposed by pinning it, as a device would; see reading.h. */
#include "engine/source/expose.h"
#include "engine/source/source.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/engine/reading.h"
#include "tests/unit/engine/world.h"

TestSuite(expose, .timeout = 60);

#define BLOCK (CHUNK_BYTES / PAGE)
#define TOLD  64u

static struct world world;
static struct channel *channel;
static int fd;
static struct expose expose;
static sem_t changed;
static struct expose_told told[TOLD];
static size_t told_count;
static uint8_t bytes[PAGE];

static void note_change(void *user)
{
	cr_assert_eq(user, &world);
	sem_post(&changed);
}

static void open_memory(uint64_t pages)
{
	struct channel *inner;

	if (!world_open_pages(&world, pages))
		cr_skip_test("%s", world.lack);
	sem_init(&changed, 0, 0);
	peer_open(&inner, &fd);
	channel = reading_wrap(inner);
}

static void close_memory(void)
{
	expose_close(&expose);
	cr_assert_eq(reading_exposed(), 0, "every key is revoked");
	expose_discarded(&expose, 0, 0, 1); /* from a VM that runs on here */
	expose_close(&expose);
	expose_free(&expose);
	channel_free(channel);
	close(fd);
	world_close(&world);
}

static const struct guest_region *region(void)
{
	return &world.shared.memory.regions[0];
}

static void write_pages(uint64_t first, uint64_t count, uint64_t version)
{
	for (uint64_t page = first; page < first + count; page++)
		world_make(region()->view + page * PAGE, PAGE, page, version);
}

static void take_all(void)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WORLD_WAIT_MS / 1000;
	for (bool finished = false; !finished;) {
		finished = expose_finished(&expose);
		told_count += expose_take(&expose, told + told_count, TOLD - told_count);
		if (!finished)
			cr_assert_eq(sem_timedwait(&changed, &end), 0, "it does not end");
	}
}

static void start(void)
{
	told_count = 0;
	cr_assert_eq(expose_start(&expose, &world.shared.memory, channel, note_change, &world), 0);
	take_all();
}

static void again(void)
{
	told_count = 0;
	cr_assert_eq(expose_again(&expose), 0);
	take_all();
}

/* The chunk told last that has the page; NULL: none. */
static const struct expose_told *chunk_of(uint64_t page)
{
	for (size_t i = told_count; i-- > 0;)
		if (page >= told[i].first && page < told[i].first + told[i].count)
			return &told[i];
	return NULL;
}

static void expect_read(const struct expose_told *chunk, uint64_t page, uint64_t version)
{
	cr_assert_not_null(chunk);
	cr_assert_eq(
		reading_now(chunk->address + (page - chunk->first) * PAGE, chunk->key, bytes, PAGE),
		0);
	cr_assert(world_made(bytes, PAGE, page, version), "page %lu", page);
}

/* As a balloon does: gives the page back and touches it again. */
static void replace_page(uint64_t page, uint64_t version)
{
	cr_assert_eq(guestmem_punch(region(), page, 1), 0);
	write_pages(page, 1, version);
	expose_discarded(&expose, 0, page, 1);
}

Test(expose, all_data_can_be_read_and_a_hole_only_between_data)
{
	struct expose_figures figures;

	open_memory(3 * BLOCK);
	write_pages(10, 20, 1);
	write_pages(35, 5, 1);
	write_pages(2 * BLOCK, BLOCK, 1);
	start();
	cr_assert_eq(told_count, 2);
	expect_read(chunk_of(10), 10, 1);
	expect_read(chunk_of(39), 39, 1);
	expect_read(chunk_of(3 * BLOCK - 1), 3 * BLOCK - 1, 1);
	cr_assert_null(chunk_of(9));
	cr_assert_null(chunk_of(BLOCK));
	expose_figures(&expose, &figures);
	cr_assert_eq(figures.bytes, (30 + BLOCK) * PAGE);
	cr_assert_eq(figures.hole_bytes, 5 * PAGE);
	cr_assert_eq(figures.wanted, (25 + BLOCK) * PAGE);
	cr_assert_gt(figures.took_ns, 0);
	cr_assert_gt(figures.estimate_ns, 0);
	close_memory();
}

Test(expose, what_the_guest_writes_later_is_what_is_read)
{
	open_memory(BLOCK);
	write_pages(0, 8, 1);
	start();
	write_pages(3, 1, 2);
	expect_read(chunk_of(3), 3, 2);
	close_memory();
}

Test(expose, a_chunk_in_which_pages_were_given_back_is_taken_back_and_told_again)
{
	struct expose_told stale[TOLD];
	struct expose_figures figures;

	open_memory(2 * BLOCK);
	write_pages(0, 2 * BLOCK, 1);
	start();
	struct expose_told old = *chunk_of(77), other = *chunk_of(BLOCK);
	replace_page(77, 2);
	expect_read(&old, 77, 1); /* this is why */
	cr_assert_eq(expose_freeze(&expose, stale, TOLD), 1);
	cr_assert_eq(stale[0].region, 0);
	cr_assert_eq(stale[0].first, 0);
	cr_assert_eq(stale[0].count, BLOCK);
	cr_assert_eq(expose_freeze(&expose, stale, TOLD), 0, "once");
	again();
	cr_assert_eq(told_count, 1);
	expect_read(chunk_of(77), 77, 2);
	cr_assert_eq(reading_now(old.address, old.key, bytes, PAGE), -EREMOTEIO);
	expect_read(&other, BLOCK + 1, 1);
	expose_figures(&expose, &figures);
	cr_assert_eq(figures.stale, 1);
	cr_assert_eq(figures.bytes, 2 * BLOCK * PAGE);
	close_memory();
}

Test(expose, a_chunk_that_went_stale_before_it_was_told_is_told_only_afterwards)
{
	struct expose_told stale[TOLD];

	open_memory(BLOCK);
	write_pages(0, 10, 1);
	told_count = 0;
	cr_assert_eq(expose_start(&expose, &world.shared.memory, channel, note_change, &world), 0);
	while (!expose_finished(&expose))
		sem_wait(&changed);
	replace_page(5, 2);
	take_all();
	cr_assert_eq(told_count, 0);
	cr_assert_eq(expose_freeze(&expose, stale, TOLD), 0, "nobody knows of it");
	again();
	expect_read(chunk_of(5), 5, 2);
	close_memory();
}

Test(expose, without_reports_nothing_is_exposed_before_the_switch)
{
	open_memory(BLOCK);
	write_pages(0, 10, 1);
	told_count = 0;
	cr_assert_eq(expose_open(&expose, &world.shared.memory, channel, note_change, &world), 0);
	cr_assert(expose_finished(&expose));
	cr_assert_eq(reading_exposed(), 0);
	cr_assert_eq(guestmem_punch(region(), 5, 1), 0); /* and nobody says so */
	write_pages(5, 1, 2);
	again();
	expect_read(chunk_of(5), 5, 2);
	expect_read(chunk_of(4), 4, 1);
	close_memory();
}

Test(expose, a_discard_after_the_pause_ends_the_session_and_revokes_no_key)
{
	struct source *source = calloc(1, sizeof(*source));
	struct expose *own = &source->expose;

	open_memory(BLOCK);
	write_pages(0, 10, 1);
	pthread_mutex_init(&source->shared.session.mutex, NULL);
	cr_assert_eq(expose_start(own, &world.shared.memory, channel, note_change, &world), 0);
	while (!expose_finished(own))
		sem_wait(&changed);
	cr_assert_eq(expose_take(own, told, TOLD), 1);
	told_count = 1;
	source_changed(&source->base, 0, BLOCK, 1, true);
	cr_assert(!atomic_load(&source->shared.session.lost), "before the pause there may be some");
	atomic_store(&source->shared.session.epoch, 1);
	source_changed(&source->base, 0, 5, 1, true);
	cr_assert(atomic_load(&source->shared.session.lost));
	cr_assert_str_eq(source->shared.session.why.reason, "late-discard");
	cr_assert_eq(expose_again(own), 0);
	while (!expose_finished(own))
		sem_wait(&changed);
	expect_read(chunk_of(5), 5, 1);
	expose_close(own);
	expose_free(own);
	pthread_mutex_destroy(&source->shared.session.mutex);
	free(source);
	close_memory();
}

Test(expose, discards_where_nothing_is_exposed_take_nothing_back)
{
	struct expose_told stale[TOLD];

	open_memory(3 * BLOCK);
	write_pages(0, 10, 1);
	start();
	expose_discarded(&expose, 0, BLOCK, 2 * BLOCK);
	expose_discarded(&expose, 1, 0, 1);
	expose_discarded(&expose, 0, 0, 0);
	cr_assert_eq(expose_freeze(&expose, stale, TOLD), 0);
	close_memory();
}

Test(expose, stale_chunks_beside_each_other_are_one_run_and_runs_never_exceed_the_room)
{
	struct expose_told stale[TOLD];

	open_memory(5 * BLOCK);
	write_pages(0, 5 * BLOCK, 1);
	start();
	cr_assert_eq(told_count, 5);
	replace_page(1, 2);
	replace_page(BLOCK + 1, 2);
	replace_page(3 * BLOCK + 1, 2);
	cr_assert_eq(expose_freeze(&expose, stale, 2), 1,
		     "there is room for one a region, no more");
	cr_assert_eq(stale[0].first, 0);
	cr_assert_eq(stale[0].count, 4 * BLOCK);
	again();
	cr_assert_eq(told_count, 3);
	expect_read(chunk_of(BLOCK + 1), BLOCK + 1, 2);
	expect_read(chunk_of(3 * BLOCK + 1), 3 * BLOCK + 1, 2);
	close_memory();
}

Test(expose, what_came_since_is_told_after_the_switch_and_old_keys_stay_good)
{
	open_memory(2 * BLOCK);
	write_pages(100, 10, 1);
	start();
	struct expose_told old = *chunk_of(100);
	write_pages(110, 5, 1);
	write_pages(BLOCK, 7, 1);
	again();
	cr_assert_eq(told_count, 2);
	expect_read(chunk_of(114), 114, 1);
	expect_read(chunk_of(100), 100, 1);
	expect_read(chunk_of(BLOCK + 6), BLOCK + 6, 1);
	expect_read(&old, 100, 1);
	close_memory();
}

Test(expose, a_limit_is_named_and_what_fits_below_it_is_exposed)
{
	struct jaunt_error why = {0};

	open_memory(8 * BLOCK);
	write_pages(0, 8 * BLOCK, 1);
	reading_refuse_after(1 + 3); /* one for the estimate */
	start();
	cr_assert_eq(told_count, 3);
	cr_assert(expose_why(&expose, &why));
	cr_assert_str_eq(why.reason, "memory-lock");
	close_memory();
}

Test(expose, holes_are_filled_only_as_far_as_there_is_memory_for_them)
{
	struct expose_figures figures;
	struct jaunt_error why = {0};

	open_memory(3 * BLOCK);
	for (uint64_t block = 0; block < 3; block++) {
		write_pages(block * BLOCK, 6, 1);
		write_pages(block * BLOCK + 10, 6, 1); /* 4 pages of a hole in between */
	}
	cr_assert_eq(expose_open(&expose, &world.shared.memory, channel, note_change, &world), 0);
	expose.hole_room_bytes = 5 * PAGE; /* as a control group may limit it */
	again();
	cr_assert_eq(told_count, 1);
	cr_assert(expose_why(&expose, &why));
	cr_assert_str_eq(why.reason, "memory");
	cr_assert(strstr(why.text, "control group"));
	expose_figures(&expose, &figures);
	cr_assert_eq(figures.hole_bytes, 4 * PAGE);
	cr_assert_eq(figures.bytes, 16 * PAGE);
	close_memory();
}

Test(expose, the_limit_of_locked_memory_is_named_before_anything_is_exposed)
{
	struct jaunt_error why = {0};

	open_memory(2 * BLOCK);
	write_pages(0, 2 * BLOCK, 1);
	cr_assert_eq(expose_open(&expose, &world.shared.memory, channel, note_change, &world), 0);
	expose.room_bytes = BLOCK * PAGE;
	again();
	cr_assert_eq(told_count, 1);
	cr_assert(expose_why(&expose, &why));
	cr_assert_str_eq(why.reason, "memory-lock");
	cr_assert(strstr(why.text, "LimitMEMLOCK"));
	close_memory();
}

Test(expose, on_demand_nothing_is_pinned_so_nothing_goes_stale_and_no_hole_is_filled)
{
	struct expose_told stale[TOLD];
	struct expose_figures figures;

	open_memory(2 * BLOCK);
	reading_page_on_demand(ON_DEMAND_ALWAYS);
	write_pages(0, 6, 1);
	write_pages(8, 6, 1);
	start();
	cr_assert(expose.on_demand);
	cr_assert_eq(told_count, 1);
	replace_page(3, 2);
	expect_read(chunk_of(3), 3, 2);
	expect_read(chunk_of(13), 13, 1);
	cr_assert_eq(expose_freeze(&expose, stale, TOLD), 0);
	cr_assert_eq(guestmem_next_data(region(), 6), 8);
	expose_figures(&expose, &figures);
	cr_assert_eq(figures.hole_bytes, 0);
	again();
	cr_assert_eq(told_count, 0);
	close_memory();
}

Test(expose, where_the_address_leaves_it_open_memory_is_pinned_if_that_will_do)
{
	open_memory(BLOCK);
	reading_page_on_demand(ON_DEMAND_MAY);
	write_pages(0, 6, 1);
	start();
	cr_assert_not(expose.on_demand);
	expect_read(chunk_of(3), 3, 1);
	close_memory();
}

Test(expose, without_reports_memory_is_exposed_on_demand_while_the_vm_runs)
{
	open_memory(BLOCK);
	reading_page_on_demand(ON_DEMAND_MAY);
	write_pages(0, 10, 1);
	told_count = 0;
	cr_assert_eq(expose_open(&expose, &world.shared.memory, channel, note_change, &world), 0);
	cr_assert(expose.on_demand);
	take_all();
	cr_assert_eq(told_count, 1);
	cr_assert_eq(guestmem_punch(region(), 5, 1), 0); /* and nobody says so */
	write_pages(5, 1, 2);
	expect_read(chunk_of(5), 5, 2);
	close_memory();
}

Test(expose, the_estimate_is_there_before_anything_is_exposed_and_fills_no_hole)
{
	struct expose_figures figures;

	open_memory(3 * BLOCK);
	write_pages(BLOCK + 7, 1, 1);
	write_pages(BLOCK + 9, 2, 1);
	cr_assert_eq(expose_open(&expose, &world.shared.memory, channel, note_change, &world), 0);
	expose_figures(&expose, &figures);
	cr_assert_gt(figures.estimate_ns, 0);
	cr_assert_eq(figures.wanted, 3 * PAGE);
	cr_assert_eq(figures.bytes, 0);
	cr_assert_eq(reading_exposed(), 0);
	cr_assert_eq(guestmem_next_data(region(), BLOCK + 8), BLOCK + 9);
	close_memory();
}

Test(expose, a_refused_estimate_is_none)
{
	struct expose_figures figures;

	open_memory(BLOCK);
	write_pages(0, 1, 1);
	reading_refuse_after(0);
	cr_assert_eq(expose_open(&expose, &world.shared.memory, channel, note_change, &world), 0);
	expose_figures(&expose, &figures);
	cr_assert_eq(figures.estimate_ns, 0);
	close_memory();
}

/* A target that hangs takes no message before the pause. */
Test(expose, what_was_not_told_in_time_is_told_once_as_it_is_after_the_switch)
{
	open_memory(3 * BLOCK);
	write_pages(0, 10, 1);
	write_pages(BLOCK, 10, 1);
	write_pages(2 * BLOCK, 10, 1);
	cr_assert_eq(expose_start(&expose, &world.shared.memory, channel, note_change, &world), 0);
	while (!expose_finished(&expose))
		sem_wait(&changed);
	write_pages(10, 10, 2);
	replace_page(BLOCK + 3, 3);
	again();
	cr_assert_eq(told_count, 3);
	cr_assert_eq(atomic_load(&expose.untold), 0);
	expect_read(chunk_of(3), 3, 1);
	expect_read(chunk_of(19), 19, 2);
	expect_read(chunk_of(BLOCK + 3), BLOCK + 3, 3);
	expect_read(chunk_of(2 * BLOCK), 2 * BLOCK, 1);
	cr_assert_eq(reading_exposed(), 3, "no key that nobody knows is left");
	close_memory();
}

Test(expose, a_pass_that_was_ended_early_is_completed_by_the_next)
{
	open_memory(40 * BLOCK);
	for (uint64_t block = 0; block < 40; block++)
		write_pages(block * BLOCK, 4, 1);
	told_count = 0;
	cr_assert_eq(expose_start(&expose, &world.shared.memory, channel, note_change, &world), 0);
	expose_stop(&expose);
	cr_assert(expose_finished(&expose));
	size_t count = expose_take(&expose, told, TOLD);
	for (size_t i = 0; i < count; i++)
		expect_read(&told[i], told[i].first, 1);
	again();
	cr_assert_eq(count + told_count, 40, "each once");
	close_memory();
}

Test(expose, one_that_never_started_can_be_closed_and_asked)
{
	struct expose none = {0};
	struct expose_told out;
	struct jaunt_error why;

	cr_assert_eq(expose_take(&none, &out, 1), 0);
	cr_assert_eq(expose_freeze(&none, &out, 1), 0);
	expose_discarded(&none, 0, 0, 1);
	cr_assert_eq(expose_again(&none), 0);
	cr_assert(!expose_why(&none, &why));
	cr_assert(expose_finished(&none));
	expose_stop(&none);
	expose_close(&none);
	expose_free(&none);
}
