/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A pass hands out the blocks of guest memory one after the other to its threads; each finds the
 * chunk of its block (chunks.h) and registers it. The thread that talks to the target takes what is
 * done and tells it.
 *
 * Registering pins pages. If the guest gives one back afterwards and touches it again, the file has
 * another page there than the device: READ would bring the old one. So a block is marked stale when
 * the VMM reports a discard in it. The mark is cleared before the chunk is registered: a discard at
 * the same moment leaves it stale, never the other way round. At the pause the chunks with the mark
 * are taken back: the target forgets them before it may READ at all, and so nobody uses their keys
 * when the second pass revokes them and registers the memory as it is then. Nothing is discarded
 * after the pause. For a VM whose discards nobody reports there is the second pass alone.
 *
 * Where the second pass finds data beyond a chunk that is good, it registers the block once more.
 * The old key stays good until the end, since READs may be under way with it.
 *
 * Where the device asks for pages on demand nothing is pinned: nothing goes stale, no hole is
 * filled and no limit counts. Pages that are pinned are read sooner, so that is for where they
 * cannot be.
 *
 * A pass that meets a limit stops there: what is not registered is fetched by message.
 */
#include "engine/source/expose.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/room.h"

#define BLOCKS_A_THREAD 16u    /* at least: below that another thread is not worth it */
#define PROBE_BYTES     MIB(2) /* registered once to see how long it takes */

/* Written by the pass's thread that took the block, before `state` (release), and by the taking
 * thread; read (acquire) by whoever saw the state. */
enum block_state { BLOCK_NONE, BLOCK_READY, BLOCK_TOLD };

struct expose_block {
	struct chunk chunk;
	struct exposure exposure;
	struct exposure old; /* replaced, and perhaps being READ */
	_Atomic uint8_t state;
	_Atomic bool stale; /* set by anyone; cleared before registering */
};

static size_t region_of(const struct expose *expose, uint64_t block)
{
	size_t region = 0;

	while (region + 1 < expose->memory->region_count &&
	       expose->region_block[region + 1] <= block)
		region++;
	return region;
}

static void say_why(struct expose *expose, const struct jaunt_error *why)
{
	pthread_mutex_lock(&expose->mutex);
	if (!expose->why.code)
		expose->why = *why;
	pthread_mutex_unlock(&expose->mutex);
}

/* Takes room for a chunk; false: there is not as much, and from here on none is looked for. */
static bool reserve(struct expose *expose, uint64_t bytes, uint64_t holes)
{
	struct jaunt_error why = {0};

	if (atomic_fetch_add(&expose->bytes, bytes) + bytes > expose->room_bytes)
		error_set(&why, ENOMEM, "memory-lock",
			  "this process may pin %" PRIu64 " MiB: raise the limit of locked memory "
			  "(ulimit -l, LimitMEMLOCK= of a systemd unit) to the size of the guest, "
			  "or give CAP_IPC_LOCK; what is beyond it is fetched by message",
			  expose->room_bytes >> 20);
	else if (atomic_fetch_add(&expose->hole_bytes, holes) + holes > expose->hole_room_bytes)
		error_set(&why, ENOMEM, "memory",
			  "registering more of the guest's memory would fill holes with memory "
			  "that this host, or the control group, has not; what is beyond it is "
			  "fetched by message");
	else
		return true;
	if (strcmp(why.reason, "memory") == 0)
		atomic_fetch_sub(&expose->hole_bytes, holes);
	atomic_fetch_sub(&expose->bytes, bytes);
	say_why(expose, &why);
	atomic_store(&expose->refuse, true);
	return false;
}

static void withdraw(struct expose *expose, size_t region, struct expose_block *block)
{
	if (!block->exposure.private)
		return;
	uint64_t page_bytes = expose->memory->regions[region].page_bytes;

	transport_unexpose(&block->exposure);
	atomic_fetch_sub(&expose->bytes, block->chunk.count * page_bytes);
}

/* Whether the second pass has anything to do about it. */
static bool is_good(const struct expose_block *block, const struct chunk *now)
{
	return block->exposure.private && now->first >= block->chunk.first &&
	       now->first + now->count <= block->chunk.first + block->chunk.count;
}

static void register_block(struct expose *expose, size_t region, struct expose_block *block,
			   const struct chunk *chunk)
{
	const struct guest_region *of = &expose->memory->regions[region];
	uint64_t bytes = chunk->count * of->page_bytes;
	struct jaunt_error error = {0};
	struct exposure exposure;

	uint64_t holes = expose->on_demand ? 0 : (chunk->count - chunk->data) * of->page_bytes;

	if (!reserve(expose, bytes, holes))
		return;
	atomic_store(&block->stale, false);
	if (transport_expose(&exposure, expose->channel, of->view + chunk->first * of->page_bytes,
			     bytes, expose->on_demand, &error) < 0) {
		atomic_fetch_sub(&expose->bytes, bytes);
		atomic_fetch_sub(&expose->hole_bytes, holes);
		error_context(&error, "register guest memory");
		say_why(expose, &error);
		atomic_store(&expose->refuse, true); /* what one is refused, so is the next */
		return;
	}
	if (block->exposure.private)
		block->old = block->exposure;
	block->exposure = exposure;
	block->chunk = *chunk;
	atomic_store_explicit(&block->state, BLOCK_READY, memory_order_release);
	if (atomic_fetch_add(&expose->untold, 1) == 0)
		expose->ready(expose->user);
}

static void take_block(struct expose *expose, uint64_t index)
{
	struct expose_block *block = &expose->blocks[index];
	size_t region = region_of(expose, index);
	struct chunk chunk;

	if (expose->after && block->exposure.private && atomic_load(&block->stale)) {
		withdraw(expose, region, block);
		atomic_store(&block->state, BLOCK_NONE);
		atomic_fetch_add(&expose->stale, 1);
	}
	if (!chunk_find(&expose->memory->regions[region], index - expose->region_block[region],
			&chunk))
		return;
	if (is_good(block, &chunk) || block->old.private)
		return;
	register_block(expose, region, block, &chunk);
}

static void *expose_main(void *argument)
{
	struct expose *expose = argument;

	pthread_setname_np(pthread_self(), "jaunt-expose");
	while (!atomic_load(&expose->stop) && !atomic_load(&expose->refuse)) {
		uint64_t index = atomic_fetch_add(&expose->next, 1);
		if (index >= expose->block_count)
			break;
		take_block(expose, index);
	}
	if (atomic_fetch_sub(&expose->working, 1) == 1) {
		atomic_fetch_add(&expose->took_ns, clock_ns() - atomic_load(&expose->started_ns));
		atomic_store(&expose->started_ns, 0);
		expose->ready(expose->user);
	}
	return NULL;
}

static unsigned threads_wanted(const struct expose *expose)
{
	uint64_t enough = expose->block_count / BLOCKS_A_THREAD + 1;
	int cpus = get_nprocs();
	unsigned wanted = cpus > 0 ? (unsigned)cpus : 1;

	if (wanted > EXPOSE_THREADS_MAX)
		wanted = EXPOSE_THREADS_MAX;
	return wanted > enough ? (unsigned)enough : wanted;
}

/* Registers the first pages there are, for as long as it takes to see how long the whole will. What
 * is refused here is refused again where somebody is told. */
static void estimate(struct expose *expose)
{
	struct jaunt_error ignored;
	struct exposure exposure;
	struct chunk chunk = {0};
	size_t region = 0;

	for (uint64_t i = 0; i < expose->block_count && !chunk.count; i++) {
		region = region_of(expose, i);
		if (!chunk_find(&expose->memory->regions[region], i - expose->region_block[region],
				&chunk))
			chunk.count = 0;
	}
	const struct guest_region *of = &expose->memory->regions[region];
	uint64_t most = PROBE_BYTES / of->page_bytes,
		 count = chunk_dense(of, &chunk, most ? most : 1);
	uint64_t bytes = count * of->page_bytes, started = clock_ns();
	if (!count || bytes > expose->room_bytes ||
	    transport_expose(&exposure, expose->channel, of->view + chunk.first * of->page_bytes,
			     bytes, expose->on_demand, &ignored) < 0)
		return;
	double all = (double)(clock_ns() - started) / (double)bytes *
		     (double)atomic_load(&expose->wanted);
	transport_unexpose(&exposure);
	atomic_store(&expose->estimate_ns, (uint64_t)(all / threads_wanted(expose)) + 1);
}

static int start_pass(struct expose *expose)
{
	unsigned wanted = threads_wanted(expose);
	sigset_t all, before;
	int result = 0;

	atomic_store(&expose->next, 0);
	atomic_store(&expose->refuse, false);
	atomic_store(&expose->started_ns, clock_ns());
	/* Counted before they run, so that none believes to be the last before all have begun. */
	atomic_store(&expose->working, wanted);
	expose->thread_count = wanted;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (unsigned i = 0; i < wanted; i++) {
		result = -pthread_create(&expose->threads[i], NULL, expose_main, expose);
		if (result < 0) {
			expose->thread_count = i;
			atomic_fetch_sub(&expose->working, wanted - i);
			break;
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return expose->thread_count ? 0 : result;
}

static int make_blocks(struct expose *expose)
{
	uint64_t count = 0;

	for (size_t i = 0; i < expose->memory->region_count; i++) {
		expose->region_block[i] = count;
		count += chunk_blocks(&expose->memory->regions[i]);
	}
	void *blocks = mmap(NULL, count * sizeof(*expose->blocks), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (blocks == MAP_FAILED)
		return -ENOMEM;
	expose->blocks = blocks;
	expose->block_count = count;
	/* Before anything is registered (seq_cst): a discard whose report does not see it came
	 * before, so what is registered is what the file has since. */
	atomic_store(&expose->exposing, true);
	return 0;
}

/* Half of what is free: the guest, and others, need some too. */
static void look_at_limits(struct expose *expose, bool reports)
{
	enum on_demand way = channel_on_demand(expose->channel);
	struct jaunt_error why = {0};
	struct room room;

	expose->room_bytes = room_lockable();
	expose->hole_room_bytes =
		room_measure(&room, NULL) == 0 ? room_for_pages(&room) / 2 : ROOM_UNLIMITED;
	bool fits = expose->room_bytes >= atomic_load(&expose->wanted);
	expose->on_demand =
		way == ON_DEMAND_ALWAYS || (way == ON_DEMAND_MAY && (!fits || !reports));
	if (expose->on_demand)
		expose->room_bytes = expose->hole_room_bytes = ROOM_UNLIMITED;
	if (fits || expose->on_demand)
		return;
	error_set(&why, ENOMEM, "memory-lock",
		  "this process may pin %" PRIu64 " MiB, and the guest has %" PRIu64
		  " MiB: raise the limit of locked memory (ulimit -l, LimitMEMLOCK= of a systemd "
		  "unit), or give CAP_IPC_LOCK; what is beyond it is fetched by message",
		  expose->room_bytes >> 20, atomic_load(&expose->wanted) >> 20);
	say_why(expose, &why);
}

static int begin(struct expose *expose, const struct guestmem *memory,
		 const struct channel *channel, bool reports, void (*ready)(void *user), void *user)
{
	memset(expose, 0, sizeof(*expose));
	expose->memory = memory;
	expose->channel = channel;
	expose->ready = ready;
	expose->user = user;
	pthread_mutex_init(&expose->mutex, NULL);
	atomic_store(&expose->open, true);
	atomic_store(&expose->wanted, chunks_data_bytes(memory));
	look_at_limits(expose, reports);
	int result = make_blocks(expose);
	if (result == 0)
		estimate(expose);
	if (result == 0 && (reports || expose->on_demand))
		result = start_pass(expose);
	if (result < 0)
		expose_close(expose);
	return result;
}

int expose_open(struct expose *expose, const struct guestmem *memory, const struct channel *channel,
		void (*ready)(void *user), void *user)
{
	return begin(expose, memory, channel, false, ready, user);
}

int expose_start(struct expose *expose, const struct guestmem *memory,
		 const struct channel *channel, void (*ready)(void *user), void *user)
{
	return begin(expose, memory, channel, true, ready, user);
}

bool expose_finished(const struct expose *expose)
{
	return atomic_load(&expose->working) == 0;
}

size_t expose_take(struct expose *expose, struct expose_told *out, size_t room)
{
	size_t count = 0;

	for (uint64_t seen = 0;
	     count < room && seen < expose->block_count && atomic_load(&expose->untold); seen++) {
		uint64_t index = expose->scanned++ % expose->block_count;
		struct expose_block *block = &expose->blocks[index];
		if (atomic_load_explicit(&block->state, memory_order_acquire) != BLOCK_READY)
			continue;
		size_t region = region_of(expose, index);
		bool stale = atomic_load(&block->stale); /* then it waits for the second pass */
		atomic_store(&block->state, stale ? BLOCK_NONE : BLOCK_TOLD);
		atomic_fetch_sub(&expose->untold, 1);
		if (stale)
			continue;
		out[count] = (struct expose_told){.region = region,
						  .first = block->chunk.first,
						  .count = block->chunk.count,
						  .address = block->exposure.address,
						  .key = block->exposure.key};
		count++;
	}
	return count;
}

void expose_discarded(struct expose *expose, size_t region, uint64_t first, uint64_t count)
{
	if (!atomic_load(&expose->exposing) || expose->on_demand ||
	    region >= expose->memory->region_count || !count)
		return;
	uint64_t pages = chunk_block_pages(&expose->memory->regions[region]);
	uint64_t blocks = chunk_blocks(&expose->memory->regions[region]);

	for (uint64_t block = first / pages; block < blocks && block * pages < first + count;
	     block++)
		atomic_store(&expose->blocks[expose->region_block[region] + block].stale, true);
	atomic_store(&expose->discards, true);
}

/* Appends a run, or lengthens the last one: where it ends at this one, and where only as many are
 * left as there are regions. */
static size_t add_run(const struct expose *expose, struct expose_told *out, size_t used,
		      size_t room, size_t region, const struct chunk *chunk)
{
	struct expose_told *last = used ? &out[used - 1] : NULL;

	if (last && last->region == region &&
	    (last->first + last->count == chunk->first ||
	     used + expose->memory->region_count >= room)) {
		last->count = chunk->first + chunk->count - last->first;
		return used;
	}
	out[used] = (struct expose_told){
		.region = region, .first = chunk->first, .count = chunk->count};
	return used + 1;
}

size_t expose_freeze(struct expose *expose, struct expose_told *out, size_t room)
{
	size_t used = 0;

	if (!expose->blocks || !atomic_load(&expose->discards))
		return 0;
	for (uint64_t i = 0; i < expose->block_count; i++) {
		struct expose_block *block = &expose->blocks[i];
		if (!atomic_load(&block->stale) ||
		    atomic_load_explicit(&block->state, memory_order_acquire) != BLOCK_TOLD)
			continue;
		used = add_run(expose, out, used, room, region_of(expose, i), &block->chunk);
		atomic_store(&block->state, BLOCK_NONE);
	}
	return used;
}

/* What was registered and not told nobody knows the key of. It is registered anew, or a pass would
 * change the block while somebody tells it. No pass runs. */
static void withdraw_untold(struct expose *expose)
{
	for (uint64_t i = 0; i < expose->block_count && atomic_load(&expose->untold); i++) {
		struct expose_block *block = &expose->blocks[i];
		if (atomic_load(&block->state) != BLOCK_READY)
			continue;
		withdraw(expose, region_of(expose, i), block);
		atomic_store(&block->state, BLOCK_NONE);
		atomic_fetch_sub(&expose->untold, 1);
	}
}

int expose_again(struct expose *expose)
{
	if (!expose->blocks)
		return 0;
	expose_stop(expose);
	withdraw_untold(expose);
	atomic_store(&expose->stop, false);
	expose->after = true;
	return start_pass(expose);
}

void expose_stop(struct expose *expose)
{
	atomic_store(&expose->stop, true);
	for (unsigned i = 0; i < expose->thread_count; i++)
		pthread_join(expose->threads[i], NULL);
	expose->thread_count = 0;
}

void expose_close(struct expose *expose)
{
	expose_stop(expose);
	for (uint64_t i = 0; i < expose->block_count; i++) {
		transport_unexpose(&expose->blocks[i].old);
		transport_unexpose(&expose->blocks[i].exposure);
	}
}

void expose_forget(struct expose *expose)
{
	expose_close(expose);
	for (uint64_t i = 0; i < expose->block_count; i++) {
		struct expose_block *block = &expose->blocks[i];
		if (!block->chunk.count)
			continue; /* never used: untouched blocks stay untouched */
		atomic_store(&block->state, BLOCK_NONE);
		atomic_store(&block->stale, false);
	}
	atomic_store(&expose->untold, 0);
	atomic_store(&expose->bytes, 0);
	atomic_store(&expose->hole_bytes, 0);
}

void expose_use(struct expose *expose, const struct channel *channel)
{
	expose->channel = channel;
}

void expose_free(struct expose *expose)
{
	if (expose->blocks)
		munmap(expose->blocks, expose->block_count * sizeof(*expose->blocks));
	*expose = (struct expose){0};
}

void expose_figures(const struct expose *expose, struct expose_figures *figures)
{
	uint64_t started = atomic_load(&expose->started_ns);

	*figures = (struct expose_figures){.bytes = atomic_load(&expose->bytes),
					   .hole_bytes = atomic_load(&expose->hole_bytes),
					   .wanted = atomic_load(&expose->wanted),
					   .took_ns = atomic_load(&expose->took_ns),
					   .estimate_ns = atomic_load(&expose->estimate_ns),
					   .stale = atomic_load(&expose->stale)};
	if (started)
		figures->took_ns += clock_ns() - started;
}

bool expose_why(struct expose *expose, struct jaunt_error *why)
{
	if (!atomic_load(&expose->open))
		return false;
	pthread_mutex_lock(&expose->mutex);
	*why = expose->why;
	pthread_mutex_unlock(&expose->mutex);
	return why->code;
}
