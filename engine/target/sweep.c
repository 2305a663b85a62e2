/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/sweep.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

#define SLICE_PAGES    1024u /* looked at before the thread listens again */
#define RELEASE_SLICES 16u
#define IDLE_NS        20000000 /* how often to look for parts that became complete */

int sweep_open(struct sweep *sweep, struct target_shared *shared)
{
	memset(sweep, 0, sizeof(*sweep));
	sweep->shared = shared;
	sweep->open = true;
	for (size_t i = 0; i < shared->memory.region_count; i++) {
		uint64_t parts = shared->map.regions[i].parts;
		sweep->released[i] = calloc(parts, sizeof(bool));
		if (!sweep->released[i]) {
			sweep_close(sweep);
			return -ENOMEM;
		}
		sweep->left += parts;
	}
	return 0;
}

/* How many parts from `part` on are complete and can leave in one call. */
static uint64_t complete_run(const struct sweep *sweep, size_t region, uint64_t part)
{
	const struct target_shared *shared = sweep->shared;
	uint64_t parts = shared->map.regions[region].parts, run = 0;
	/* With several userfaultfds each GiB has another. */
	uint64_t most = shared->install.shards == 1 ? parts : 1;

	while (part + run < parts && run < most && !sweep->released[region][part + run] &&
	       pagemap_part_complete(&shared->map, region, part + run))
		run++;
	return run;
}

static void release(struct sweep *sweep, size_t index, uint64_t part, uint64_t parts)
{
	struct target_shared *shared = sweep->shared;
	const struct guest_region *region = &shared->memory.regions[index];
	uint64_t part_pages = shared->map.regions[index].part_pages;
	uint64_t first = part * part_pages;
	uint64_t end = (part + parts) * part_pages;

	if (end > region->pages)
		end = region->pages;
	/* Whoever waits there is woken. */
	uffd_unregister(&shared->install.uffds[install_shard(&shared->install, region, first)],
			guestmem_vm_address(region, first), (end - first) * region->page_bytes);
	memset(sweep->released[index] + part, true, parts);
	sweep->left -= parts;
}

void sweep_release(struct sweep *sweep, unsigned calls)
{
	for (size_t i = 0; sweep->open && i < sweep->shared->memory.region_count; i++) {
		uint64_t parts = sweep->shared->map.regions[i].parts, run;
		for (uint64_t part = 0; part < parts && calls; part += run ? run : 1) {
			run = complete_run(sweep, i, part);
			if (!run)
				continue;
			release(sweep, i, part, run);
			calls--;
		}
	}
}

/* Maps a run of present pages; what is mapped, or was given back, is passed over. */
static void map_run(struct sweep *sweep, const struct guest_region *region, uint64_t first,
		    uint64_t count)
{
	struct install *install = &sweep->shared->install;
	const struct uffd *uffd = &install->uffds[install_shard(install, region, first)];

	while (count && !atomic_load(&sweep->worker.stop)) {
		int64_t done = uffd_continue(uffd, guestmem_vm_address(region, first),
					     count * region->page_bytes, UFFD_WAKE);
		uint64_t pages = done > 0 ? (uint64_t)done / region->page_bytes : 1;
		if (done == -EAGAIN) {
			sched_yield();
			continue;
		}
		if (done > 0)
			counter_add(&sweep->mapped, pages);
		else if (done != -EEXIST && done != -EFAULT)
			return; /* the guest's own faults map them */
		first += pages;
		count -= pages;
	}
}

/* Maps what rounds brought to the next pages. */
static void map_slice(struct sweep *sweep)
{
	struct target_shared *shared = sweep->shared;

	if (sweep->region == shared->memory.region_count) {
		sweep->mapped_all = true;
		return;
	}
	const struct guest_region *region = &shared->memory.regions[sweep->region];
	const struct pagemap_region *map = &shared->map.regions[sweep->region];
	for (unsigned looked = 0; looked < SLICE_PAGES && sweep->page < region->pages;
	     looked += 64, sweep->page += 64) {
		uint64_t part = sweep->page / map->part_pages;
		if (sweep->released[sweep->region][part]) {
			sweep->page = (part + 1) * map->part_pages - 64;
			continue;
		}
		/* Of small pages a word lies within one chunk. */
		if (!region->hugetlb &&
		    !install_in_file(&shared->install, sweep->region, sweep->page))
			continue;
		uint64_t present = atomic_load(&map->present[sweep->page / 64]);
		for (struct bits_run run = bits_take_run(&present); run.count;
		     run = bits_take_run(&present))
			map_run(sweep, region, sweep->page + run.first, run.count);
	}
	if (sweep->page >= region->pages) {
		sweep->region++;
		sweep->page = 0;
	}
}

static int64_t sweep_pump(void *user)
{
	struct sweep *sweep = user;

	/* Looking for a part that has become complete is a walk over all of them. */
	if (sweep->mapped_all || sweep->slices++ % RELEASE_SLICES == 0)
		sweep_release(sweep, 1);
	if (!sweep->left)
		return -1;
	if (sweep->mapped_all)
		return IDLE_NS;
	map_slice(sweep);
	return 0;
}

static const struct worker_ops sweep_ops = {.pump = sweep_pump};

int sweep_start(struct sweep *sweep)
{
	return sweep->open
		       ? worker_start(&sweep->worker, "jaunt-sweep", WORKER_BULK, &sweep_ops, sweep)
		       : 0;
}

void sweep_close(struct sweep *sweep)
{
	if (!sweep->open)
		return;
	worker_stop(&sweep->worker);
	for (size_t i = 0; i < JAUNT_MAX_REGIONS; i++) {
		free(sweep->released[i]);
		sweep->released[i] = NULL;
	}
	sweep->open = false;
}
