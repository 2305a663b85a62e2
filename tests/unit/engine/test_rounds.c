/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/rounds.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/source/holes.h"

TestSuite(rounds, .timeout = 60);

#define STRIPE 512u
#define PAGES  (7 * STRIPE + 100)

static struct source_shared shared;
static struct rounds rounds;
static struct round_walk walks[4];
static unsigned sent[PAGES], sender[PAGES];

static void no_wake(void *user)
{
	(void)user;
}

static void open_rounds(unsigned streams)
{
	memset(&shared, 0, sizeof(shared));
	shared.streams = streams;
	shared.memory.region_count = 1;
	shared.memory.pages = shared.memory.regions[0].pages = PAGES;
	shared.memory.regions[0].page_bytes = 4096;
	cr_assert_eq(dirty_open(&shared.dirty, &shared.memory), 0);
	rounds_init(&rounds, &shared, no_wake, NULL);
	memset(walks, 0, sizeof(walks));
	memset(sent, 0, sizeof(sent));
}

/* Everything that the stream has to do now; what it ended with. */
static enum round_step work(unsigned stream)
{
	struct round_walk *walk = &walks[stream];
	enum round_step step;

	while ((step = rounds_next(&rounds, walk, stream, 64)) == ROUND_RUN) {
		uint64_t count = walk->count > 3 ? 3 : walk->count; /* not all of it at once */
		for (uint64_t i = 0; i < count; i++) {
			sent[walk->first + i]++;
			sender[walk->first + i] = stream;
		}
		rounds_sent(walk, count);
	}
	if (step == ROUND_END)
		rounds_ended(walk);
	return step;
}

Test(rounds, before_the_first_there_is_nothing_to_do)
{
	open_rounds(1);
	dirty_mark(&shared.dirty, 0, 0, PAGES);
	cr_assert_eq(work(0), ROUND_IDLE);
	dirty_close(&shared.dirty);
}

Test(rounds, each_dirty_page_is_sent_once_by_the_stream_that_owns_its_stripe)
{
	for (unsigned streams = 1; streams <= 3; streams++) {
		open_rounds(streams);
		rounds_search_over(&rounds); /* all of it is data */
		rounds_begin(&rounds);
		for (unsigned i = 0; i < streams; i++)
			cr_assert_eq(work(i), ROUND_END);
		for (unsigned page = 0; page < PAGES; page++) {
			cr_assert_eq(sent[page], 1, "page %u: %u times", page, sent[page]);
			cr_assert_eq(sender[page], page / STRIPE % streams);
		}
		cr_assert_eq(dirty_count_all(&shared.dirty), 0);
		dirty_close(&shared.dirty);
	}
}

Test(rounds, the_next_round_sends_what_was_written_since_and_nothing_else)
{
	open_rounds(2);
	rounds_search_over(&rounds);
	rounds_begin(&rounds);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(work(i), ROUND_END);
		cr_assert_eq(work(i), ROUND_IDLE, "its end is said once");
		cr_assert_geq(rounds_acknowledged(&rounds, &walks[i], 0), 0);
	}
	cr_assert(rounds_over(&rounds));
	memset(sent, 0, sizeof(sent));
	dirty_mark(&shared.dirty, 0, 5, 1);
	dirty_mark(&shared.dirty, 0, STRIPE - 1, 2); /* across two streams' stripes */
	cr_assert_eq(work(0), ROUND_IDLE, "not before it has begun");
	rounds_begin(&rounds);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(work(i), ROUND_END);
	for (unsigned page = 0; page < PAGES; page++)
		cr_assert_eq(sent[page], page == 5 || page == STRIPE - 1 || page == STRIPE);
	dirty_close(&shared.dirty);
}

Test(rounds, no_stream_passes_the_search_and_holes_are_not_sent)
{
	open_rounds(1);
	rounds_begin(&rounds);
	cr_assert_eq(work(0), ROUND_IDLE);
	struct hole_run hole = {.first = 100, .count = 300, .told = 400};
	rounds_searched(&rounds, &hole);
	cr_assert_eq(work(0), ROUND_IDLE, "there is more to come");
	cr_assert_eq(walks[0].page, 400);
	cr_assert(rounds_search_over(&rounds));
	cr_assert_not(rounds_search_over(&rounds));
	cr_assert_eq(work(0), ROUND_END);
	for (unsigned page = 0; page < PAGES; page++)
		cr_assert_eq(sent[page], page < 100 || page >= 400);
	dirty_close(&shared.dirty);
}

Test(rounds, a_hole_that_was_written_before_it_is_told_is_not_lost)
{
	open_rounds(1);
	rounds_begin(&rounds);
	dirty_mark(&shared.dirty, 0, 200, 1); /* reported, while the hole is on its way */
	struct hole_run hole = {.first = 100, .count = 300, .told = 400};
	rounds_searched(&rounds, &hole);
	work(0);
	cr_assert_eq(sent[200], 1);
	dirty_close(&shared.dirty);
}

Test(rounds, a_round_that_is_cut_ends_where_it_stands_and_forgets_nothing)
{
	open_rounds(1);
	rounds_search_over(&rounds);
	rounds_begin(&rounds);
	cr_assert_eq(rounds_next(&rounds, &walks[0], 0, 64), ROUND_RUN);
	uint64_t taken = walks[0].count;
	rounds_cut(&rounds);
	cr_assert_eq(rounds_next(&rounds, &walks[0], 0, 64), ROUND_RUN, "what was taken is sent");
	cr_assert_eq(work(0), ROUND_END);
	cr_assert_eq(dirty_count_all(&shared.dirty), PAGES - taken, "and the rest is still dirty");
	dirty_close(&shared.dirty);
}

Test(rounds, an_acknowledgement_that_makes_no_sense_is_refused)
{
	open_rounds(1);
	rounds_search_over(&rounds);
	cr_assert_eq(rounds_acknowledged(&rounds, &walks[0], 0), -EPROTO, "of no round");
	rounds_begin(&rounds);
	rounds_next(&rounds, &walks[0], 0, 64);
	cr_assert_eq(rounds_acknowledged(&rounds, &walks[0], 0), -EPROTO, "before its end");
	work(0);
	cr_assert_eq(rounds_acknowledged(&rounds, &walks[0], 1), -EPROTO, "of the next one");
	cr_assert_eq(rounds_acknowledged(&rounds, &walks[0], 0), 1);
	cr_assert_eq(rounds_acknowledged(&rounds, &walks[0], 0), -EPROTO, "twice");
	cr_assert(rounds_over(&rounds));
	dirty_close(&shared.dirty);
}
