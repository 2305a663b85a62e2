/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/rdma_domain.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/error.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rdma_domain *domains;

/* Whether the device takes part in on-demand paging, and READs by a peer may meet a page that is
 * not there. */
static bool can_page(struct ibv_context *device)
{
	struct verbs_context *extended = verbs_get_ctx_op(device, query_device_ex);
	struct ibv_device_attr_ex limits;

	memset(&limits, 0, sizeof(limits));
	if (!extended || extended->query_device_ex(device, NULL, &limits, sizeof(limits)))
		return false;
	return limits.odp_caps.general_caps & IBV_ODP_SUPPORT &&
	       limits.odp_caps.per_transport_caps.rc_odp_caps & IBV_ODP_SUPPORT_READ;
}

/* Under the lock. */
static int create(struct rdma_domain **out, const struct rdma_library *library,
		  struct ibv_context *device, uint64_t group)
{
	struct rdma_domain *domain = calloc(1, sizeof(*domain));
	if (!domain)
		return -ENOMEM;
	domain->library = library;
	domain->device = device;
	domain->device_name = library->verbs.get_device_name(device->device);
	domain->group = group;
	domain->pages_on_demand = can_page(device);
	int result = library->verbs.query_device(device, &domain->limits);
	if (!result) {
		domain->pd = library->verbs.alloc_pd(device);
		result = domain->pd ? 0 : errno ? errno : ENOMEM;
	}
	if (result) {
		free(domain);
		return -result;
	}
	domain->references = 1;
	domain->next = domains;
	domains = domain;
	*out = domain;
	return 0;
}

int rdma_domain_get(struct rdma_domain **out, struct ibv_context *device, uint64_t group,
		    struct jaunt_error *error)
{
	const struct rdma_library *library = rdma_library(error);
	int result = 0;

	if (!library)
		return -ENOSYS;
	pthread_mutex_lock(&lock);
	struct rdma_domain *domain = domains;
	while (domain && (domain->device != device || domain->group != group))
		domain = domain->next;
	if (domain)
		domain->references++;
	else
		result = create(&domain, library, device, group);
	pthread_mutex_unlock(&lock);
	*out = domain;
	return result ? error_set(error, -result, "rdma",
				  "RDMA device %s does not answer: %s; see `jaunt doctor'",
				  library->verbs.get_device_name(device->device), strerror(-result))
		      : 0;
}

void rdma_domain_hold(struct rdma_domain *domain)
{
	pthread_mutex_lock(&lock);
	domain->references++;
	pthread_mutex_unlock(&lock);
}

void rdma_domain_put(struct rdma_domain *domain)
{
	pthread_mutex_lock(&lock);
	if (--domain->references == 0) {
		struct rdma_domain **link = &domains;
		while (*link != domain)
			link = &(*link)->next;
		*link = domain->next;
		domain->library->verbs.dealloc_pd(domain->pd);
		free(domain);
	}
	pthread_mutex_unlock(&lock);
}

static void refused(const struct rdma_domain *domain, size_t bytes, const char *what, int code,
		    struct jaunt_error *error)
{
	struct rlimit limit = {.rlim_cur = RLIM_INFINITY};

	getrlimit(RLIMIT_MEMLOCK, &limit);
	if ((code == ENOMEM || code == EAGAIN || code == EPERM) && limit.rlim_cur != RLIM_INFINITY)
		error_set(error, code, "memory-lock",
			  "%s: %s refuses to register %zu KiB: %s; the limit of locked memory is "
			  "%llu KiB for each process, and all that the peer may read and 1 MiB "
			  "for each channel must fit: raise it with `ulimit -l unlimited', or "
			  "LimitMEMLOCK=infinity in a systemd unit",
			  what, domain->device_name, bytes >> 10, strerror(code),
			  (unsigned long long)limit.rlim_cur >> 10);
	else
		error_set(error, code, "expose",
			  "%s: %s refuses to register %zu KiB: %s; free memory, raise the limit of "
			  "the control group, and see the limits of the device in `jaunt doctor'",
			  what, domain->device_name, bytes >> 10, strerror(code));
}

struct ibv_mr *rdma_domain_register(struct rdma_domain *domain, void *memory, size_t bytes,
				    int access, const char *what, struct jaunt_error *error)
{
	errno = 0;
	struct ibv_mr *region = domain->library->verbs.reg_mr(domain->pd, memory, bytes, access);
	if (!region) {
		int code = errno ? errno : ENOMEM;
		refused(domain, bytes, what, code, error);
		errno = code;
	}
	return region;
}
