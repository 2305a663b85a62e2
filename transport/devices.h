/* SPDX-License-Identifier: Apache-2.0 */
/* What RDMA devices this host has, for whoever tells the user. */
#ifndef TRANSPORT_DEVICES_H
#define TRANSPORT_DEVICES_H

#include <stdbool.h>

#include "jaunt.h"

struct transport_port {
	bool active;
	char text[200]; /* "mlx5_0 port 1: active, RoCE, MTU 4096, 16 reads at once, GID …" */
};

/* Fills up to `room` ports; returns how many there are, or -errno and `error` (reason "no-rdma"):
 * built without RDMA, no library, or the kernel has none. Any thread. */
int transport_ports(struct transport_port *ports, unsigned room, struct jaunt_error *error);

#endif
