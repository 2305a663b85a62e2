/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libibverbs and librdmacm, opened at run time: a host without them lacks nothing but `rdma:`
 * addresses. The inline functions of their headers (ibv_post_send(), ibv_poll_cq(), …) go through
 * the opened device and are called by their own names.
 */
#ifndef TRANSPORT_RDMA_LIBRARY_H
#define TRANSPORT_RDMA_LIBRARY_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "jaunt.h"

/* The functions used, without their prefixes: some of the full names are macros. */
#define RDMA_VERBS_FUNCTIONS(function)                                                             \
	function(ack_cq_events) function(alloc_pd) function(close_device) function(                \
		create_comp_channel) function(create_cq) function(dealloc_pd) function(dereg_mr)   \
		function(destroy_comp_channel) function(destroy_cq) function(free_device_list)     \
			function(get_cq_event) function(get_device_list) function(get_device_name) \
				function(modify_qp) function(open_device) function(query_device)   \
					function(query_gid) function(query_port)                   \
						function(query_qp) function(reg_mr)                \
							function(wc_status_str)

#define RDMA_CM_FUNCTIONS(function)                                                                \
	function(accept) function(ack_cm_event) function(bind_addr) function(connect)              \
		function(create_event_channel) function(create_id) function(create_qp)             \
			function(destroy_event_channel) function(destroy_id) function(destroy_qp)  \
				function(disconnect) function(event_str) function(get_cm_event)    \
					function(get_src_port) function(listen)                    \
						function(migrate_id) function(reject)              \
							function(resolve_addr)                     \
								function(resolve_route)            \
									function(set_option)

struct rdma_library {
#define RDMA_FIELD(name) typeof (&ibv_##name)(name);
	struct {
		RDMA_VERBS_FUNCTIONS(RDMA_FIELD)
	} verbs;
#undef RDMA_FIELD
#define RDMA_FIELD(name) typeof (&rdma_##name)(name);
	struct {
		RDMA_CM_FUNCTIONS(RDMA_FIELD)
	} cm;
#undef RDMA_FIELD
};

/* The table, or NULL and `error` (reason "no-rdma") says which library is missing. Opens them at
 * the first call and keeps them. Any thread. */
const struct rdma_library *rdma_library(struct jaunt_error *error);

#endif
