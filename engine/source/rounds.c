/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/rounds.h"

#include <errno.h>
#include <string.h>

#include "engine/source/holes.h"

void rounds_init(struct rounds *rounds, struct source_shared *shared, void (*wake)(void *user),
		 void *user)
{
	memset(rounds, 0, sizeof(*rounds));
	rounds->shared = shared;
	rounds->wake = wake;
	rounds->user = user;
}

void rounds_begin(struct rounds *rounds)
{
	atomic_store(&rounds->to_come, rounds->shared->streams);
	atomic_store(&rounds->cut, false);
	atomic_fetch_add(&rounds->begun, 1);
}

bool rounds_over(const struct rounds *rounds)
{
	return atomic_load(&rounds->to_come) == 0;
}

void rounds_cut(struct rounds *rounds)
{
	atomic_store(&rounds->cut, true);
}

/* The first page at or behind `page` of a stripe that the stream owns. */
static uint64_t owned_from(uint64_t page, uint64_t stripe_pages, unsigned stream, unsigned streams)
{
	uint64_t stripe = page / stripe_pages;
	unsigned ahead = (stream + streams - (unsigned)(stripe % streams)) % streams;

	return ahead ? (stripe + ahead) * stripe_pages : page;
}

/* Takes the next dirty run of the region that is the stream's and has been searched. */
static bool take(struct rounds *rounds, struct round_walk *walk, unsigned stream, uint64_t most,
		 uint64_t limit)
{
	struct source_shared *shared = rounds->shared;
	uint64_t page_bytes = shared->memory.regions[walk->region].page_bytes;
	uint64_t stripe = ROUNDS_STRIPE_BYTES / page_bytes;

	if (!stripe)
		stripe = 1;
	while (walk->page < limit) {
		uint64_t next = dirty_next(&shared->dirty, walk->region, walk->page, limit);
		uint64_t own = owned_from(next, stripe, stream, shared->streams);
		uint64_t end = (own / stripe + 1) * stripe;
		walk->page = own < limit ? own : limit;
		if (own != next || next == limit)
			continue;
		if (dirty_take(&shared->dirty, walk->region, own, end < limit ? end : limit, most,
			       &walk->first, &walk->count)) {
			walk->page = walk->first + walk->count;
			return true;
		}
	}
	return false;
}

enum round_step rounds_next(struct rounds *rounds, struct round_walk *walk, unsigned stream,
			    uint64_t most)
{
	const struct guestmem *memory = &rounds->shared->memory;
	uint64_t begun = atomic_load(&rounds->begun);

	if (walk->count)
		return ROUND_RUN;
	if (walk->round != begun)
		*walk = (struct round_walk){.round = begun};
	if (!begun || walk->ended)
		return ROUND_IDLE;
	while (!atomic_load(&rounds->cut) && walk->region < memory->region_count) {
		uint64_t pages = memory->regions[walk->region].pages;
		uint64_t limit = atomic_load(&rounds->searched[walk->region]);
		if (take(rounds, walk, stream, most, limit))
			return ROUND_RUN;
		if (limit < pages)
			return atomic_load(&rounds->cut) ? ROUND_END : ROUND_IDLE;
		walk->region++;
		walk->page = 0;
	}
	return ROUND_END;
}

void rounds_sent(struct round_walk *walk, uint64_t count)
{
	walk->first += count;
	walk->count -= count;
}

void rounds_ended(struct round_walk *walk)
{
	walk->ended = true;
}

int rounds_acknowledged(struct rounds *rounds, struct round_walk *walk, uint64_t number)
{
	if (!walk->ended || walk->acknowledged || number != walk->round - 1)
		return -EPROTO;
	walk->acknowledged = true;
	return atomic_fetch_sub(&rounds->to_come, 1) == 1;
}

void rounds_searched(struct rounds *rounds, const struct hole_run *run)
{
	_Atomic uint64_t *searched = &rounds->searched[run->region];
	uint64_t from = atomic_load(searched);
	uint64_t data_end = run->count ? run->first : run->told;

	if (data_end > from)
		dirty_mark(&rounds->shared->dirty, run->region, from, data_end - from);
	atomic_fetch_add(&rounds->hole_bytes,
			 run->count * rounds->shared->memory.regions[run->region].page_bytes);
	if (run->told > from)
		atomic_store(searched, run->told);
}

bool rounds_search_over(struct rounds *rounds)
{
	const struct guestmem *memory = &rounds->shared->memory;

	if (atomic_exchange(&rounds->search_over, true))
		return false;
	for (size_t i = 0; i < memory->region_count; i++) {
		struct hole_run rest = {.region = i, .told = memory->regions[i].pages};
		rounds_searched(rounds, &rest);
	}
	return true;
}
