/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A protection domain of a device, shared by the channels, exposures and landings that must be able
 * to name each other's memory.
 *
 * There is one for each group of channels that this process dialed, which is a session, and one for
 * all that it accepted. A key is good for channels of its domain alone: neither whoever merely
 * connects to a listener nor the peer of another session can use it, even if they know it; and
 * after the session its domain is gone.
 */
#ifndef TRANSPORT_RDMA_DOMAIN_H
#define TRANSPORT_RDMA_DOMAIN_H

#include <stdbool.h>
#include <stddef.h>

#include "transport/rdma_library.h"

struct rdma_domain {
	const struct rdma_library *library;
	struct ibv_context *device;
	struct ibv_pd *pd;
	struct ibv_device_attr limits;
	const char *device_name;
	bool pages_on_demand; /* it can expose memory without pinning it */
	uint64_t group;       /* RDMA_GROUP_ACCEPTED: accepted */
	/* Guarded by the lock of rdma_domain.c. */
	unsigned references;
	struct rdma_domain *next;
};

/* Any thread. -errno; fills `error`. */
int rdma_domain_get(struct rdma_domain **out, struct ibv_context *device, uint64_t group,
		    struct jaunt_error *error);
void rdma_domain_hold(struct rdma_domain *domain); /* one more reference */
void rdma_domain_put(struct rdma_domain *domain);

/* Registers memory; NULL: errno, and `error` says what to raise. `what`: for the message. */
struct ibv_mr *rdma_domain_register(struct rdma_domain *domain, void *memory, size_t bytes,
				    int access, const char *what, struct jaunt_error *error);

#endif
