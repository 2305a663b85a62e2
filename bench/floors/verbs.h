/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reliable connection over RDMA between the two processes of a floor program: one queue pair made
 * through RDMA-CM, on which one end READs the other's memory. It waits for completions by event,
 * the CPU being left to others meanwhile. Any error ends the program.
 */
#ifndef BENCH_FLOORS_VERBS_H
#define BENCH_FLOORS_VERBS_H

#include <stdint.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

/* The end that reads. One thread. */
struct verbs {
	struct rdma_cm_id *id;
	struct ibv_comp_channel *events;
	struct ibv_cq *completions;
	uint64_t address; /* of the peer's memory */
	uint32_t key;
};

struct verbs_listener {
	struct rdma_event_channel *events;
	struct rdma_cm_id *id;
};

/* Listens at an address of this host, on a port that the kernel chooses. */
void verbs_listen(struct verbs_listener *listener, const char *host, uint16_t *port);
/* Lets one peer READ the memory, and whatever else is registered in the domain that it returns. */
struct ibv_pd *verbs_accept(struct verbs_listener *listener, void *memory, uint64_t bytes);
void verbs_await_end(struct verbs_listener *listener); /* the peer disconnects */

/* `depth`: READs that will be under way at most. */
void verbs_connect(struct verbs *verbs, const char *host, uint16_t port, unsigned depth);
void verbs_disconnect(struct verbs *verbs);

struct ibv_mr *verbs_register(struct verbs *verbs, void *memory, uint64_t bytes);
/* Starts a READ of [offset, offset + bytes) of the peer's memory to `to` of a registration. */
void verbs_read(struct verbs *verbs, const struct ibv_mr *landing, void *to, uint64_t offset,
		uint32_t bytes);
/* Waits until READs are done; returns how many. */
unsigned verbs_wait(struct verbs *verbs);

#endif
