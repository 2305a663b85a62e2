/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "transport/devices.h"
#include "transport/rdma_library.h"

static const char *kind_of(const struct ibv_context *device, const struct ibv_port_attr *port)
{
	if (device->device->transport_type == IBV_TRANSPORT_IWARP)
		return "iWARP (cannot be used)";
	return port->link_layer == IBV_LINK_LAYER_ETHERNET ? "RoCE" : "InfiniBand";
}

static const char *state_of(const struct ibv_port_attr *port)
{
	switch (port->state) {
	case IBV_PORT_ACTIVE:
		return "active";
	case IBV_PORT_DOWN:
		return "down";
	case IBV_PORT_INIT:
	case IBV_PORT_ARMED:
		return "waiting for a subnet manager";
	default:
		return "not active";
	}
}

/* The last GID that is set: on RoCE those of addresses stand behind those of the link. */
static bool find_gid(const struct rdma_library *library, struct ibv_context *device, uint8_t port,
		     const struct ibv_port_attr *attributes, union ibv_gid *gid)
{
	static const union ibv_gid none;
	union ibv_gid at;
	bool found = false;

	for (int i = 0; i < attributes->gid_tbl_len && i < 64; i++) {
		if (library->verbs.query_gid(device, port, i, &at) ||
		    !memcmp(&at, &none, sizeof(at)))
			continue;
		*gid = at;
		found = true;
	}
	return found;
}

static void describe(const struct rdma_library *library, struct ibv_context *device,
		     const struct ibv_device_attr *limits, uint8_t number,
		     struct transport_port *out)
{
	struct ibv_port_attr port;
	union ibv_gid gid;
	int used, room = sizeof(out->text);

	memset(&port, 0, sizeof(port));
	memset(out, 0, sizeof(*out));
	/* By its old name it fills the front of the structure, which is all that is used here. */
	if (library->verbs.query_port(device, number, (void *)&port)) {
		snprintf(out->text, sizeof(out->text), "%s port %u: does not answer",
			 library->verbs.get_device_name(device->device), number);
		return;
	}
	out->active = port.state == IBV_PORT_ACTIVE &&
		      device->device->transport_type != IBV_TRANSPORT_IWARP;
	used = snprintf(out->text, sizeof(out->text),
			"%s port %u: %s, %s, MTU %u, %d reads at once, GID ",
			library->verbs.get_device_name(device->device), number, state_of(&port),
			kind_of(device, &port), port.active_mtu ? 128u << port.active_mtu : 0,
			limits->max_qp_init_rd_atom);
	if (!find_gid(library, device, number, &port, &gid)) {
		snprintf(out->text + used, (size_t)(room - used), "none");
		return;
	}
	for (unsigned i = 0; i < 16 && used < room; i += 2)
		used += snprintf(out->text + used, (size_t)(room - used), "%s%02x%02x",
				 i ? ":" : "", gid.raw[i], gid.raw[i + 1]);
}

static unsigned ports_of(const struct rdma_library *library, struct ibv_device *listed,
			 struct transport_port *ports, unsigned room)
{
	struct ibv_device_attr limits;
	struct ibv_context *device = library->verbs.open_device(listed);
	unsigned count = 0;

	if (!device || library->verbs.query_device(device, &limits)) {
		if (room)
			snprintf(ports->text, sizeof(ports->text), "%s: cannot be opened: %s",
				 library->verbs.get_device_name(listed), strerror(errno));
		count = 1;
	} else {
		for (; count < limits.phys_port_cnt; count++)
			if (count < room)
				describe(library, device, &limits, (uint8_t)(count + 1),
					 &ports[count]);
	}
	if (device)
		library->verbs.close_device(device);
	return count;
}

int transport_ports(struct transport_port *ports, unsigned room, struct jaunt_error *error)
{
	const struct rdma_library *library = rdma_library(error);
	unsigned count = 0;
	int devices = 0;

	if (!library)
		return -ENOSYS;
	struct ibv_device **list = library->verbs.get_device_list(&devices);
	if (!list)
		return error_set(error, errno ? errno : ENODEV, "no-rdma",
				 "the kernel has no RDMA; load ib_uverbs and rdma_ucm, and the "
				 "driver of the device");
	for (int i = 0; i < devices; i++) {
		unsigned taken = count < room ? count : room;
		count += ports_of(library, list[i], ports + taken, room - taken);
	}
	library->verbs.free_device_list(list);
	return (int)count;
}
