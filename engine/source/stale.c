/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * What rounds brought and the VM has written since is told to the target as stale runs: most of
 * them while the VM runs, so that the pause has only those to tell that were written in the last
 * moments. When the rounds are over they are told until few are left; and if the VM's state is
 * begun while it runs, which may take seconds, every few milliseconds until that is done.
 *
 * A page that was told is stale for good, so it is told once, whatever is written to it later.
 *
 * The barrier: stale runs are told only after every stream's last ROUND was acknowledged, that is,
 * after everything sent before is placed. Else an older copy could arrive behind the word that it
 * is stale, and pass for the page.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/source/source.h"

#define STALE_BATCH  8192u         /* runs in one message */
#define STALE_FEW    1024u         /* pages that may as well be told in the pause */
#define STALE_PASSES 4u            /* until few are left */
#define STALE_RUN_NS UINT64_C(150) /* that the target takes to apply one */
#define RUN_BYTES    16u           /* of a message, for one */

/* Between two looks beside the VM's state. The VM may be stopped in the middle of one: so they take
 * a small part of the time. And each arms what it finds, which costs the VM a fault where it writes
 * to that again: so these, too. */
#define BESIDE_NS    5e6
#define BESIDE_TIMES 8.
#define FAULT_TIMES  10.

static int send_runs(struct source *source, uint32_t epoch, Jaunt__Run **runs, size_t count)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Freeze freeze = JAUNT__FREEZE__INIT;

	freeze.epoch = epoch;
	freeze.dirty = runs;
	freeze.n_dirty = count;
	message.message_case = JAUNT__CONTROL__MESSAGE_FREEZE;
	message.freeze = &freeze;
	return count ? link_send(&source->link, &message) : 0;
}

/* Tells all that is dirty, and takes it. How many pages, or -errno; adds to *bytes what it sends.
 */
static int64_t tell(struct source *source, uint32_t epoch, size_t *bytes, struct jaunt_error *error)
{
	struct source_shared *shared = &source->shared;
	Jaunt__Run *runs = malloc(STALE_BATCH * sizeof(*runs));
	Jaunt__Run **list = malloc(STALE_BATCH * sizeof(*list));
	size_t count = 0;
	int64_t told = 0;
	int result = runs && list ? 0 : -ENOMEM;

	for (size_t i = 0; result == 0 && i < shared->memory.region_count; i++) {
		uint64_t first, pages;
		for (uint64_t from = 0;
		     result == 0 &&
		     dirty_take(&shared->dirty, i, from, UINT64_MAX, UINT64_MAX, &first, &pages);) {
			jaunt__run__init(&runs[count]);
			runs[count].region = (uint32_t)i;
			runs[count].first_page = first;
			runs[count].page_count = pages;
			list[count] = &runs[count];
			from = first + pages;
			told += (int64_t)pages;
			*bytes += RUN_BYTES;
			if (!epoch) /* else it was the last time */
				dirty_mark(&source->stale.told, i, first, pages);
			if (++count < STALE_BATCH)
				continue;
			result = send_runs(source, epoch, list, count);
			count = 0;
		}
	}
	if (result == 0)
		result = send_runs(source, epoch, list, count);
	free(runs);
	free(list);
	if (result == -ENOMEM)
		return error_set(error, ENOMEM, "no-memory", "out of memory for stale runs");
	return result < 0 ? link_why(&source->link, error) : told;
}

/* What was told is applied while the VM runs here, or FREEZE would wait behind it. Where that is
 * sooner done than asked about, the question would only give the VM time to write more. */
static int await_applied(struct source *source, int64_t pages, struct jaunt_error *error)
{
	uint64_t took_ns;

	if ((uint64_t)pages * STALE_RUN_NS <= source->round_trip_ns)
		return 0;
	return source_ping(source, &took_ns, error);
}

uint64_t source_stale_rest_ns(uint64_t took_ns, uint64_t again, double tracking_ns, unsigned vcpus)
{
	double faults_ns = (double)again * tracking_ns / vcpus;

	return (uint64_t)fmax(BESIDE_NS,
			      fmax(BESIDE_TIMES * (double)took_ns, FAULT_TIMES * faults_ns));
}

/* Marks what was written while the VM runs, and was not told. */
static int look(struct source *source, struct jaunt_error *error)
{
	const struct policy_input *known = &source->precopy.input;
	struct stale *stale = &source->stale;
	uint64_t before = clock_ns();
	int result = source_collect_stale(source, error);

	if (result < 0)
		return result;
	uint64_t now = clock_ns();
	uint64_t again = dirty_subtract(&source->shared.dirty, &stale->told);
	stale->next_ns = now + source_stale_rest_ns(now - before, again, known->costs.tracking_ns,
						    known->vcpus);
	return 0;
}

int source_tell_stale(struct source *source, struct jaunt_error *error)
{
	struct source_shared *shared = &source->shared;
	size_t bytes = 0;

	if (dirty_open(&source->stale.told, &shared->memory) < 0)
		return error_set(error, ENOMEM, "no-memory", "out of memory for stale runs");
	for (unsigned i = 0; i < STALE_PASSES; i++) {
		if (i && dirty_count_all(&shared->dirty) <= STALE_FEW)
			break;
		int64_t pages = tell(source, 0, &bytes, error);
		int result = pages < 0 ? (int)pages : await_applied(source, pages, error);
		if (result == 0)
			result = look(source, error);
		if (result < 0)
			return result;
	}
	return 0;
}

int source_tell_stale_beside(struct source *source, size_t *unanswered, struct jaunt_error *error)
{
	struct stale *stale = &source->stale;

	if (!atomic_load(&source->shared.tracking) || clock_ns() < stale->next_ns ||
	    tracker_pauses(source->tracker))
		return 0;
	if (*unanswered >= CONTROL_STATE_CHUNK || !link_room(&source->link))
		return 0;
	int result = look(source, error);
	if (result < 0)
		return result;
	stale->looks++;
	int64_t pages = tell(source, 0, unanswered, error);
	if (pages < 0)
		return (int)pages;
	stale->beside += (uint64_t)pages;
	return 0;
}

int source_tell_last_stale(struct source *source, uint32_t epoch, struct jaunt_error *error)
{
	size_t bytes = 0;

	if (!atomic_load(&source->shared.tracking))
		return 0;
	int result = source_collect(source, error);
	if (result < 0)
		return result;
	dirty_subtract(&source->shared.dirty, &source->stale.told);
	int64_t pages = tell(source, epoch, &bytes, error);
	if (pages < 0)
		return (int)pages;
	source->stale.last = (uint64_t)pages;
	return 0;
}
