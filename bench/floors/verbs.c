/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors/verbs.h"
#include "bench/floors/program.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MS  5000
#define OUTSTANDING 16 /* READs that the device works on at once, of what it offers at most */

/* What the end with the memory says when it accepts. */
struct offer {
	uint64_t address;
	uint32_t key;
};

static struct sockaddr_in address_of(const char *host, uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		program_usage("%s is not an IPv4 address", host);
	return address;
}

/* The next event, which must be this one; acknowledged by the caller. */
static struct rdma_cm_event *expect(struct rdma_event_channel *events,
				    enum rdma_cm_event_type wanted)
{
	struct rdma_cm_event *event;
	if (rdma_get_cm_event(events, &event))
		program_fail("wait for %s", rdma_event_str(wanted));
	if (event->event != wanted) {
		errno = event->status < 0 ? -event->status : EPROTO;
		program_fail("%s instead of %s", rdma_event_str(event->event),
			     rdma_event_str(wanted));
	}
	return event;
}

static uint8_t outstanding(const struct rdma_cm_id *id, bool serving)
{
	struct ibv_device_attr attributes;
	if (ibv_query_device(id->verbs, &attributes))
		program_fail("query the device");
	int most = serving ? attributes.max_qp_rd_atom : attributes.max_qp_init_rd_atom;
	return (uint8_t)(most < OUTSTANDING ? most : OUTSTANDING);
}

static void make_queue_pair(struct rdma_cm_id *id, struct ibv_cq *completions, unsigned depth)
{
	struct ibv_qp_init_attr attributes = {.send_cq = completions,
					      .recv_cq = completions,
					      .qp_type = IBV_QPT_RC,
					      .cap = {.max_send_wr = depth,
						      .max_recv_wr = 1,
						      .max_send_sge = 1,
						      .max_recv_sge = 1}};
	if (rdma_create_qp(id, NULL, &attributes))
		program_fail("make a queue pair of depth %u", depth);
}

void verbs_listen(struct verbs_listener *listener, const char *host, uint16_t *port)
{
	struct sockaddr_in address = address_of(host, 0);
	listener->events = rdma_create_event_channel();
	if (!listener->events ||
	    rdma_create_id(listener->events, &listener->id, NULL, RDMA_PS_TCP) ||
	    rdma_bind_addr(listener->id, (struct sockaddr *)&address) ||
	    rdma_listen(listener->id, 1))
		program_fail("listen at %s over RDMA", host);
	*port = ntohs(rdma_get_src_port(listener->id));
}

struct ibv_pd *verbs_accept(struct verbs_listener *listener, void *memory, uint64_t bytes)
{
	struct rdma_cm_event *event = expect(listener->events, RDMA_CM_EVENT_CONNECT_REQUEST);
	struct rdma_cm_id *id = event->id;
	rdma_ack_cm_event(event);
	struct ibv_cq *completions = ibv_create_cq(id->verbs, 1, NULL, NULL, 0);
	if (!completions)
		program_fail("make a completion queue");
	make_queue_pair(id, completions, 1);
	struct ibv_mr *registration = ibv_reg_mr(id->pd, memory, bytes, IBV_ACCESS_REMOTE_READ);
	if (!registration)
		program_fail("register %lu bytes", bytes);
	struct offer offer = {(uintptr_t)memory, registration->rkey};
	struct rdma_conn_param parameters = {.private_data = &offer,
					     .private_data_len = sizeof(offer),
					     .responder_resources = outstanding(id, true),
					     .rnr_retry_count = 7};
	if (rdma_accept(id, &parameters))
		program_fail("accept");
	rdma_ack_cm_event(expect(listener->events, RDMA_CM_EVENT_ESTABLISHED));
	return id->pd;
}

void verbs_await_end(struct verbs_listener *listener)
{
	rdma_ack_cm_event(expect(listener->events, RDMA_CM_EVENT_DISCONNECTED));
}

void verbs_connect(struct verbs *verbs, const char *host, uint16_t port, unsigned depth)
{
	struct sockaddr_in address = address_of(host, port);
	struct rdma_event_channel *events = rdma_create_event_channel();
	if (!events || rdma_create_id(events, &verbs->id, NULL, RDMA_PS_TCP) ||
	    rdma_resolve_addr(verbs->id, NULL, (struct sockaddr *)&address, TIMEOUT_MS))
		program_fail("connect to %s over RDMA", host);
	rdma_ack_cm_event(expect(events, RDMA_CM_EVENT_ADDR_RESOLVED));
	if (rdma_resolve_route(verbs->id, TIMEOUT_MS))
		program_fail("find a route to %s", host);
	rdma_ack_cm_event(expect(events, RDMA_CM_EVENT_ROUTE_RESOLVED));
	verbs->events = ibv_create_comp_channel(verbs->id->verbs);
	verbs->completions =
		verbs->events ? ibv_create_cq(verbs->id->verbs, (int)depth, NULL, verbs->events, 0)
			      : NULL;
	if (!verbs->completions || ibv_req_notify_cq(verbs->completions, 0))
		program_fail("make a completion queue");
	make_queue_pair(verbs->id, verbs->completions, depth);
	struct rdma_conn_param parameters = {.initiator_depth = outstanding(verbs->id, false),
					     .retry_count = 7,
					     .rnr_retry_count = 7};
	if (rdma_connect(verbs->id, &parameters))
		program_fail("connect to %s over RDMA", host);
	struct rdma_cm_event *event = expect(events, RDMA_CM_EVENT_ESTABLISHED);
	struct offer offer;
	if (event->param.conn.private_data_len < sizeof(offer))
		program_usage("the peer offers no memory");
	memcpy(&offer, event->param.conn.private_data, sizeof(offer));
	verbs->address = offer.address;
	verbs->key = offer.key;
	rdma_ack_cm_event(event);
}

void verbs_disconnect(struct verbs *verbs)
{
	if (rdma_disconnect(verbs->id))
		program_fail("disconnect");
}

struct ibv_mr *verbs_register(struct verbs *verbs, void *memory, uint64_t bytes)
{
	struct ibv_mr *registration =
		ibv_reg_mr(verbs->id->pd, memory, bytes, IBV_ACCESS_LOCAL_WRITE);
	if (!registration)
		program_fail("register %lu bytes", bytes);
	return registration;
}

void verbs_read(struct verbs *verbs, const struct ibv_mr *landing, void *to, uint64_t offset,
		uint32_t bytes)
{
	struct ibv_sge part = {(uintptr_t)to, bytes, landing->lkey};
	struct ibv_send_wr *refused,
		request = {.opcode = IBV_WR_RDMA_READ,
			   .sg_list = &part,
			   .num_sge = 1,
			   .send_flags = IBV_SEND_SIGNALED,
			   .wr.rdma = {.remote_addr = verbs->address + offset, .rkey = verbs->key}};
	int error = ibv_post_send(verbs->id->qp, &request, &refused);
	if (error) {
		errno = error;
		program_fail("post a READ");
	}
}

static unsigned take(struct verbs *verbs)
{
	struct ibv_wc done[16];
	int count = ibv_poll_cq(verbs->completions, 16, done);
	if (count < 0)
		program_fail("poll for completions");
	for (int i = 0; i < count; i++)
		if (done[i].status != IBV_WC_SUCCESS)
			program_usage("a READ failed: %s", ibv_wc_status_str(done[i].status));
	return (unsigned)count;
}

/* Armed whenever it returns nothing, and whenever nobody waits. */
unsigned verbs_wait(struct verbs *verbs)
{
	struct ibv_cq *from;
	void *context;
	unsigned count;
	while (!(count = take(verbs))) {
		if (ibv_get_cq_event(verbs->events, &from, &context))
			program_fail("wait for completions");
		ibv_ack_cq_events(from, 1);
		if (ibv_req_notify_cq(verbs->completions, 0))
			program_fail("ask for an event");
	}
	return count;
}
