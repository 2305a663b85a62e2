/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that devices read and write for others: exposures and landings. Both hold the protection
 * domain they were registered in, and so outlive the channel that they came from. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "transport/rdma_channel.h"

/* --- Exposures ----------------------------------------------------------------------- */

struct rdma_exposure {
	struct exposure_private base;
	struct rdma_domain *domain;
	struct ibv_mr *region;
};

static void withdraw(struct exposure *exposure)
{
	struct rdma_exposure *own = container_of(exposure->private, struct rdma_exposure, base);

	own->domain->library->verbs.dereg_mr(own->region);
	rdma_domain_put(own->domain);
	free(own);
}

enum on_demand rdma_memory_on_demand(const struct channel *base)
{
	const struct rdma_channel *channel = rdma_channel_of_const(base);

	return channel->domain->pages_on_demand ? channel->odp : ON_DEMAND_NO;
}

int rdma_memory_expose(struct exposure *out, const struct channel *base, void *memory, size_t bytes,
		       bool on_demand, struct jaunt_error *error)
{
	struct rdma_domain *domain = rdma_channel_of_const(base)->domain;
	struct rdma_exposure *own = calloc(1, sizeof(*own));

	if (!own)
		return error_set(error, ENOMEM, "expose", "out of memory");
	int paged = on_demand && rdma_memory_on_demand(base) ? IBV_ACCESS_ON_DEMAND : 0;
	own->region = rdma_domain_register(domain, memory, bytes, IBV_ACCESS_REMOTE_READ | paged,
					   "exposing memory to the peer", error);
	if (!own->region) {
		int code = errno;
		free(own);
		return -code;
	}
	rdma_domain_hold(domain);
	own->domain = domain;
	own->base.withdraw = withdraw;
	out->address = (uintptr_t)memory;
	out->key = own->region->rkey;
	out->private = &own->base;
	return 0;
}

/* --- Landings ------------------------------------------------------------------------ */

struct rdma_landing {
	struct landing_private base;
	struct rdma_domain *domain;
	struct ibv_mr *region;
	bool brought; /* the memory is the caller's */
};

static void free_landing(struct landing *landing)
{
	struct rdma_landing *own = container_of(landing->private, struct rdma_landing, base);

	own->domain->library->verbs.dereg_mr(own->region);
	if (!own->brought)
		munmap(landing->bytes, landing->size);
	rdma_domain_put(own->domain);
	free(own);
}

/* Not for children: between fork() and exec() theirs would be the pages that the device knows. */
static void *own_memory(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		return NULL;
	madvise(memory, bytes, MADV_DONTFORK);
	return memory;
}

int rdma_memory_land(struct landing *out, struct channel *base, void *memory, size_t bytes,
		     struct jaunt_error *error)
{
	struct rdma_domain *domain = rdma_channel_of(base)->domain;
	struct rdma_landing *own = calloc(1, sizeof(*own));
	size_t size = memory ? bytes : round_up(bytes, (uint64_t)sysconf(_SC_PAGESIZE));
	void *at = memory ? memory : own_memory(size);
	int code = ENOMEM;

	if (!own || !at) {
		error_set(error, ENOMEM, "expose", "out of memory");
		goto out;
	}
	own->region = rdma_domain_register(domain, at, size, IBV_ACCESS_LOCAL_WRITE,
					   "preparing memory to read into", error);
	if (!own->region) {
		code = errno;
		goto out;
	}
	rdma_domain_hold(domain);
	own->domain = domain;
	own->brought = memory;
	own->base.free = free_landing;
	out->bytes = at;
	out->size = size;
	out->private = &own->base;
	return 0;
out:
	if (at && !memory)
		munmap(at, size);
	free(own);
	return -code;
}

bool rdma_memory_key(const struct landing *landing, size_t offset, size_t bytes, uint32_t *key)
{
	if (!landing->private || offset > landing->size || bytes > landing->size - offset)
		return false;
	*key = container_of(landing->private, struct rdma_landing, base)->region->lkey;
	return true;
}
