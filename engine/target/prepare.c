/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Order matters here (docs/theory.md, "Nothing may make a page visible behind the handler's back"):
 * the skeleton VM is created without touching its memory; both views are kept out of forks; the
 * VM's view is REGISTERed; then the files are emptied and the view is unmapped, so that whatever
 * was there before REGISTER is gone; only then may a page arrive.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/target/target.h"
#include "engine/trace.h"

static void all_present(void *user)
{
	struct target *target = user;
	session_wake(&target->shared.session);
}

static int create_vm(struct target *target, const Jaunt__Configure *configure,
		     struct jaunt_error *error)
{
	struct jaunt_property *properties =
		calloc(configure->n_properties + 1, sizeof(*properties));
	struct jaunt_region *regions = calloc(configure->n_regions, sizeof(*regions));
	struct jaunt_description wanted = {.name = configure->vm_name,
					   .properties = properties,
					   .property_count = configure->n_properties,
					   .regions = regions,
					   .region_count = configure->n_regions,
					   .allowed = (const char *const *)configure->allowed,
					   .allowed_count = configure->n_allowed,
					   .rounds = configure->rounds};
	int result;

	if (!properties || !regions) {
		free(properties);
		free(regions);
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	}
	for (size_t i = 0; i < configure->n_properties; i++) {
		properties[i].key = configure->properties[i]->key;
		properties[i].value = configure->properties[i]->value;
	}
	for (size_t i = 0; i < configure->n_regions; i++)
		regions[i] =
			(struct jaunt_region){.name = configure->regions[i]->name,
					      .guest_address = configure->regions[i]->guest_address,
					      .bytes = configure->regions[i]->bytes,
					      .page_bytes = configure->regions[i]->page_bytes,
					      .fd = -1};
	result = target->factory->create(target->context, &wanted, &target->vm, error);
	target->differ = result < 0;
	if (result == 0)
		result = target->factory->ops->describe(target->vm, &target->description, error);
	if (result == 0 && target->description.region_count != wanted.region_count)
		result = error_set(error, EINVAL, "bad-region",
				   "the VM created here has other memory regions");
	for (size_t i = 0; result == 0 && i < wanted.region_count; i++) {
		const struct jaunt_region *here = &target->description.regions[i];
		if (here->bytes != regions[i].bytes || here->page_bytes != regions[i].page_bytes ||
		    here->guest_address != regions[i].guest_address)
			result = error_set(error, EINVAL, "bad-region",
					   "memory region %zu of the VM created here differs from "
					   "the source's",
					   i);
	}
	free(properties);
	free(regions);
	return result;
}

static int register_region(struct target *target, const struct guest_region *region,
			   struct jaunt_error *error)
{
	struct install *install = &target->shared.install;
	uint64_t step = install->shards == 1 ? region->pages : GIB(1) / region->page_bytes;

	for (uint64_t page = 0; page < region->pages; page += step) {
		uint64_t count = region->pages - page < step ? region->pages - page : step;
		int result = uffd_register(&install->uffds[install_shard(install, region, page)],
					   guestmem_vm_address(region, page),
					   count * region->page_bytes, error);
		if (result < 0)
			return result;
	}
	return 0;
}

static int open_uffds(struct target *target, struct jaunt_error *error)
{
	const struct jaunt_vm_ops *ops = target->factory->ops;
	struct install *install = &target->shared.install;
	bool hugetlb = false;

	for (size_t i = 0; i < target->shared.memory.region_count; i++)
		hugetlb |= target->shared.memory.regions[i].hugetlb;
	for (install->shards = 0; install->shards < target->shards; install->shards++) {
		struct uffd *uffd = &install->uffds[install->shards];
		int result;
		if (ops->userfaultfd) {
			int fd = ops->userfaultfd(target->vm, error);
			result = fd < 0 ? fd : uffd_adopt(uffd, fd, hugetlb, error);
		} else {
			result = uffd_open(uffd, error);
		}
		if (result < 0)
			return result;
	}
	return 0;
}

static int note_demanded(struct target *target)
{
	if (!target->base.options.note_demanded)
		return 0;
	for (size_t i = 0; i < target->shared.memory.region_count; i++) {
		void *bits = mmap(NULL, round_up(target->shared.memory.regions[i].pages, 64) / 8,
				  PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (bits == MAP_FAILED)
			return -ENOMEM;
		target->shared.demanded[i] = bits;
	}
	return 0;
}

/* The page map, in the ledger if there is one: that of a process before, or a new one. */
static int open_map(struct target *target, struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;
	struct ledger *ledger = &target->ledger;
	int result = 0;

	if (!ledger_is_open(ledger) && target->factory->ops->keep && ledger_fits(&shared->memory))
		result = ledger_create(ledger, &shared->memory, NULL, error);
	if (result == -ENOMEM)
		return result;
	if (result < 0) {
		trace_event(target->base.lane, "ledger", "none, it cannot be taken up: %s",
			    error->text);
		error_clear(error);
	}
	result = ledger_is_open(ledger) ? pagemap_open_ledger(&shared->map, &shared->memory, ledger)
					: pagemap_open(&shared->map, &shared->memory);
	return result < 0 ? error_set(error, -result, "no-memory", "room for the page map: %s",
				      strerror(-result))
			  : 0;
}

int target_open_memory(struct target *target, struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;
	const struct jaunt_vm_ops *ops = target->factory->ops;
	bool elsewhere = ops->process && ops->process(target->vm);
	int result = guestmem_open(&shared->memory, &target->description, elsewhere, error);
	if (result < 0)
		return result;
	target->memory_open = true;
	if (ledger_is_open(&target->ledger) && !ledger_matches(&target->ledger, &shared->memory))
		return error_set(error, EINVAL, "bad-ledger",
				 "what was kept of the migration is about other memory than the "
				 "VM's");
	if ((result = open_map(target, error)) < 0)
		return result;
	target->map_open = true;
	const struct ledger *ledger = ledger_is_open(&target->ledger) ? &target->ledger : NULL;
	if ((result = install_open_ledger(&shared->install, &shared->memory, &shared->map,
					  ledger)) < 0 ||
	    (result = note_demanded(target)) < 0 || (result = target_open_reads(target)) < 0)
		return error_set(error, -result, "no-memory", "room for the engine: %s",
				 strerror(-result));
	target->install_open = true;
	if (atomic_load(&shared->placing) && (result = place_open(shared)) < 0)
		return error_set(error, -result, "no-memory", "room for the digests: %s",
				 strerror(-result));
	shared->install.complete = all_present;
	shared->install.user = target;
	prefetch_init(&shared->prefetch, &shared->map, &shared->memory);
	shared->hint_count = target->shards;
	return open_uffds(target, error);
}

/* What nobody has touched yet becomes the engine's. */
static int take_memory(struct target *target, struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;
	int result = target_open_memory(target, error);

	for (size_t i = 0; result == 0 && i < shared->memory.region_count; i++)
		result = register_region(target, &shared->memory.regions[i], error);
	if (result == 0)
		result = guestmem_empty(&shared->memory, error);
	return result;
}

int target_prepare(struct target *target, const Jaunt__Configure *configure,
		   struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;
	int result;

	if (strcmp(configure->driver, target->factory->ops->driver) != 0)
		return error_set(error, EINVAL, "driver",
				 "the source's VM is of kind \"%s\", this side takes \"%s\"",
				 configure->driver, target->factory->ops->driver);
	pthread_mutex_lock(&target->base.mutex);
	snprintf(target->base.status.mode, sizeof(target->base.status.mode), "%s", configure->mode);
	pthread_mutex_unlock(&target->base.mutex);
	memcpy(shared->session.id, configure->session.data, sizeof(shared->session.id));
	memcpy(shared->session.secret, configure->secret.data, sizeof(shared->session.secret));
	shared->session.verify = configure->verify;
	atomic_store(&shared->placing, configure->rounds);
	target->copied = 0;
	atomic_store(&shared->session.epoch, 0);
	atomic_store(&shared->session.lost, false);
	atomic_store(&shared->push, configure->push);
	atomic_store(&shared->granting, false);
	shared->trace = target->base.trace;
	target->streams = shared->streams = configure->streams;
	target->shards = target->base.options.fault_threads;
	result = create_vm(target, configure, error);
	if (result == 0)
		process_watch(&target->process, target->factory->ops, target->vm, target->ring);
	if (result == 0)
		result = take_memory(target, error);
	if (result == 0 && (result = load_prepare(&target->load, target)) < 0)
		error_set(error, -result, "start", "start a thread: %s", strerror(-result));
	if (result < 0) {
		target_unprepare(target);
		return result;
	}
	target_keep_ledger(target);
	/* Only now may other threads look: creating a large VM takes its time, and status must not
	 * wait for it. */
	pthread_mutex_lock(&target->base.mutex);
	target->prepared = true;
	target->base.moving_ns = configure->rounds ? clock_ns() : 0; /* they begin at once */
	pthread_mutex_unlock(&target->base.mutex);
	return 0;
}

/* Keeps the channel if it is one that is waited for. */
static bool keep(struct channel **place, struct channel *channel)
{
	if (*place)
		return false;
	*place = channel;
	return true;
}

static int start_demand(struct target *target, unsigned index)
{
	struct channel *channel = target->waiting_urgent[index];
	struct channel *check = target->waiting_urgent_check[index];
	uint32_t attachment = atomic_load(&target->shared.session.attachment);

	if (target->demands[index]) {
		demand_reattach(target->demands[index], channel, check, attachment);
		target->waiting_urgent[index] = target->waiting_urgent_check[index] = NULL;
		target->has_urgent[index] = true;
		return 0;
	}
	struct demand *demand = calloc(1, sizeof(*demand));
	if (!demand)
		return -ENOMEM;
	target->waiting_urgent[index] = target->waiting_urgent_check[index] = NULL;
	target->has_urgent[index] = true;
	int result = demand_start(demand, &target->shared, index, channel, check);
	pthread_mutex_lock(&target->base.mutex);
	target->demands[index] = demand;
	pthread_mutex_unlock(&target->base.mutex);
	return result;
}

static int start_fill(struct target *target, unsigned index)
{
	struct channel *channel = target->waiting_stream[index];
	struct channel *check = target->waiting_stream_check[index];
	uint32_t attachment = atomic_load(&target->shared.session.attachment);

	if (target->fills[index]) {
		fill_reattach(target->fills[index], channel, check, attachment);
		target->waiting_stream[index] = target->waiting_stream_check[index] = NULL;
		target->has_stream[index] = true;
		return 0;
	}
	struct fill *fill = calloc(1, sizeof(*fill));
	if (!fill)
		return -ENOMEM;
	target->waiting_stream[index] = target->waiting_stream_check[index] = NULL;
	target->has_stream[index] = true;
	int result = fill_start(fill, &target->shared, index, channel, check);
	pthread_mutex_lock(&target->base.mutex);
	target->fills[index] = fill;
	pthread_mutex_unlock(&target->base.mutex);
	return result;
}

void target_attach(struct target *target, struct channel *channel, const struct attach *attach)
{
	struct target_shared *shared = &target->shared;
	bool verify = shared->session.verify;
	bool kept = false;
	unsigned index = attach->index;
	int result = 0;

	if (!target->channels_wanted ||
	    !session_equal(attach->session, shared->session.id, SESSION_ID_BYTES) ||
	    !session_equal(attach->secret, shared->session.secret, SESSION_SECRET_BYTES) ||
	    attach->epoch != target->link_epoch) {
		channel_drop(channel);
		return;
	}
	channel_timeout(channel, target->base.options.peer_timeout_ms);
	if (attach->role == ATTACH_URGENT && index < target->shards && !target->has_urgent[index])
		kept = keep(&target->waiting_urgent[index], channel);
	else if (attach->role == ATTACH_STREAM && index < target->streams &&
		 !target->has_stream[index])
		kept = keep(&target->waiting_stream[index], channel);
	else if (attach->role == ATTACH_VERIFY && verify && index < target->shards)
		kept = keep(&target->waiting_urgent_check[index], channel);
	else if (attach->role == ATTACH_VERIFY && verify &&
		 index - target->shards < target->streams)
		kept = keep(&target->waiting_stream_check[index - target->shards], channel);
	if (!kept) {
		channel_drop(channel);
		return;
	}
	for (unsigned i = 0; result == 0 && i < target->shards; i++)
		if (target->waiting_urgent[i] && (!verify || target->waiting_urgent_check[i]))
			result = start_demand(target, i);
	for (unsigned i = 0; result == 0 && i < target->streams; i++)
		if (target->waiting_stream[i] && (!verify || target->waiting_stream_check[i]))
			result = start_fill(target, i);
	if (result < 0)
		session_lose(&shared->session, "start", "serve a channel: %s", strerror(-result));
}

bool target_attached(const struct target *target)
{
	for (unsigned i = 0; i < target->shards; i++)
		if (!target->has_urgent[i])
			return false;
	for (unsigned i = 0; i < target->streams; i++)
		if (!target->has_stream[i])
			return false;
	return true;
}

static void free_waiting(struct channel **channels, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		channel_drop(channels[i]);
		channels[i] = NULL;
	}
}

static void free_all_waiting(struct target *target)
{
	free_waiting(target->waiting_urgent, INSTALL_SHARDS_MAX);
	free_waiting(target->waiting_urgent_check, INSTALL_SHARDS_MAX);
	free_waiting(target->waiting_stream, TARGET_STREAMS_MAX);
	free_waiting(target->waiting_stream_check, TARGET_STREAMS_MAX);
}

/* Each thread was given channels of the last attachment, and has taken them: so none has in hand
 * what it looked up before. */
static bool is_quiet(const struct target *target)
{
	bool pending = !target_attached(target);

	for (unsigned i = 0; i < target->shards; i++)
		pending |= target->demands[i] && atomic_load(&target->demands[i]->handover.pending);
	for (unsigned i = 0; i < target->streams; i++)
		pending |= target->fills[i] && atomic_load(&target->fills[i]->handover.pending);
	return !pending;
}

void target_reattach(struct target *target, uint32_t epoch)
{
	bool quiet = is_quiet(target);

	free_all_waiting(target);
	memset(target->has_urgent, 0, sizeof(target->has_urgent));
	memset(target->has_stream, 0, sizeof(target->has_stream));
	reads_restart(&target->shared.reads, quiet);
	session_reattach(&target->shared.session, epoch);
	target->channels_wanted = true;
}

void target_stop_threads(struct target *target)
{
	load_end(&target->load);
	atomic_store(&target->shared.install.stop, true);
	sweep_close(&target->sweep);
	for (unsigned i = 0; i < TARGET_STREAMS_MAX; i++)
		if (target->fills[i])
			worker_tell_to_stop(&target->fills[i]->worker);
	for (unsigned i = 0; i < TARGET_STREAMS_MAX; i++)
		if (target->fills[i])
			fill_stop(target->fills[i]);
	for (unsigned i = 0; i < INSTALL_SHARDS_MAX; i++)
		if (target->demands[i])
			demand_stop(target->demands[i]);
	free_all_waiting(target);
}

void target_release_memory(struct target *target)
{
	struct target_shared *shared = &target->shared;

	/* Wakes every waiter; while some part is still registered the fault threads serve it. */
	for (size_t i = 0; i < shared->memory.region_count; i++) {
		const struct guest_region *region = &shared->memory.regions[i];
		uint64_t step =
			shared->install.shards == 1 ? region->pages : GIB(1) / region->page_bytes;
		for (uint64_t page = 0; page < region->pages; page += step) {
			uint64_t count = region->pages - page < step ? region->pages - page : step;
			uffd_unregister(
				&shared->install
					 .uffds[install_shard(&shared->install, region, page)],
				guestmem_vm_address(region, page), count * region->page_bytes);
		}
	}
}

void target_unprepare(struct target *target)
{
	struct target_shared *shared = &target->shared;

	target_stop_threads(target);
	process_unwatch(&target->process);
	pthread_mutex_lock(&target->base.mutex);
	target->prepared = false;
	pthread_mutex_unlock(&target->base.mutex);
	for (unsigned i = 0; i < TARGET_STREAMS_MAX; i++) {
		free(target->fills[i]);
		target->fills[i] = NULL;
	}
	for (unsigned i = 0; i < INSTALL_SHARDS_MAX; i++) {
		free(target->demands[i]);
		target->demands[i] = NULL;
	}
	for (size_t i = 0; i < shared->memory.region_count; i++) {
		if (shared->demanded[i])
			munmap((void *)shared->demanded[i],
			       round_up(shared->memory.regions[i].pages, 64) / 8);
		shared->demanded[i] = NULL;
	}
	memset(target->has_urgent, 0, sizeof(target->has_urgent));
	memset(target->has_stream, 0, sizeof(target->has_stream));
	target->channels_wanted = false;
	if (!target->ran) {
		pthread_mutex_lock(&target->base.mutex);
		void *vm = target->vm;
		target->vm = NULL;
		pthread_mutex_unlock(&target->base.mutex);
		if (vm && target->factory->destroy)
			target->factory->destroy(target->context, vm);
	}
	if (shared->install.memory)
		install_close(&shared->install);
	if (target->map_open) {
		checker_forget_suspects(shared);
		pagemap_close(&shared->map);
	}
	ledger_close(&target->ledger);
	reads_close(&shared->reads);
	place_close(shared);
	if (target->memory_open)
		guestmem_close(&shared->memory);
	target->install_open = target->map_open = target->memory_open = false;
	atomic_store(&shared->condemned, 0);
	for (size_t i = 0; i < JAUNT_MAX_REGIONS; i++)
		atomic_store(&shared->told[i], 0);
	memset(shared->hints, 0, sizeof(shared->hints));
	free(target->state);
	target->state = NULL;
	target->state_bytes = target->ahead_bytes = 0;
}
