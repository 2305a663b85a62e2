/* SPDX-License-Identifier: Apache-2.0 */
/* What this host has of RDMA, and what it lacks for `rdma:` addresses. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/bits.h"
#include "base/room.h"
#include "engine/findings.h"
#include "transport/devices.h"

#define PORTS_SHOWN 8u

/* The finding of a port has a name of its own. */
static const char *const names[PORTS_SHOWN] = {
	"rdma.port-1", "rdma.port-2", "rdma.port-3", "rdma.port-4",
	"rdma.port-5", "rdma.port-6", "rdma.port-7", "rdma.port-8",
};

static void check_ports(struct findings *findings, const struct transport_port *ports,
			unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct jaunt_check *check =
			findings_add(findings, names[i], OPTIONAL, ports[i].active);
		finding_found(check, "%s", ports[i].text);
		finding_advise(check,
			       "set the link up (ip link, rdma link), and on InfiniBand have "
			       "a subnet manager run");
	}
}

/* What the devices may pin: the memory of a guest at the source. */
static void check_memory(struct findings *findings, bool exempt)
{
	struct rlimit limit = {0};

	getrlimit(RLIMIT_MEMLOCK, &limit);
	uint64_t bytes = limit.rlim_cur == RLIM_INFINITY ? ROOM_UNLIMITED : limit.rlim_cur;
	bool ok = exempt || bytes == ROOM_UNLIMITED;
	struct jaunt_check *check = findings_add(findings, "rdma.memlock", OPTIONAL, ok);
	if (ok)
		finding_found(check, "as much as a guest has may be registered");
	else
		finding_found(check, "no more than %s may be registered, channels included",
			      finding_amount(bytes).text);
	finding_advise(check, "what of a guest is not registered is moved with the source's help: "
			      "ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, or "
			      "memlock in /etc/security/limits.conf");
}

void doctor_rdma(struct findings *findings, bool exempt)
{
	struct transport_port ports[PORTS_SHOWN];
	struct jaunt_error error = {.code = 0};
	int count = transport_ports(ports, PORTS_SHOWN, &error);
	unsigned shown = count < 0                       ? 0
			 : (unsigned)count < PORTS_SHOWN ? (unsigned)count
							 : PORTS_SHOWN;
	unsigned active = 0;

	for (unsigned i = 0; i < shown; i++)
		active += ports[i].active;
	struct jaunt_check *check = findings_add(findings, "rdma", OPTIONAL, active > 0);
	if (count < 0) {
		const char *advice = strchr(error.text, ';');
		size_t length = advice ? (size_t)(advice - error.text) : strlen(error.text);
		finding_found(check, "%.*s", (int)length, error.text);
		finding_advise(check, "rdma: addresses need it: %.400s",
			       advice ? advice + 2 : "see the kernel log");
		return;
	}
	finding_found(check, "%d port%s, %u active", count, count == 1 ? "" : "s", active);
	finding_advise(check,
		       "rdma: addresses need a device: load its driver and rdma_ucm; where there "
		       "is none, soft RoCE will do for trying: modprobe rdma_rxe; rdma link add "
		       "rxe0 type rxe netdev eth0");
	check_ports(findings, ports, shown);
	if (shown)
		check_memory(findings, exempt);
}
