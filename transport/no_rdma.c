/* SPDX-License-Identifier: Apache-2.0 */
/* In the place of RDMA where its headers were missing when this was built. */
#include <errno.h>

#include "base/error.h"
#include "transport/devices.h"

int transport_ports(struct transport_port *ports, unsigned room, struct jaunt_error *error)
{
	return error_set(error, ENOTSUP, "no-rdma",
			 "built without RDMA; build with the headers of libibverbs-dev and "
			 "librdmacm-dev");
}
