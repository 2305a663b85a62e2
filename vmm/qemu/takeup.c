/* SPDX-License-Identifier: Apache-2.0 */
/* What lies with the agent for whoever goes on after the death of Jaunt's process at the target. */
#include <errno.h>
#include <unistd.h>

#include "base/error.h"
#include "vmm/qemu/vm.h"

#define LOOK_MS 2000

int qemu_keep(void *context, int fd, struct jaunt_error *error)
{
	struct qemu *vm = context;

	attach_drop(&vm->attach, AGENT_LEDGER_SLOT, NULL); /* empty or not */
	return fd < 0 ? 0 : attach_keep(&vm->attach, AGENT_LEDGER_SLOT, fd, error);
}

int qemu_kept(void *context, struct jaunt_error *error)
{
	struct qemu *vm = context;

	return attach_take(&vm->attach, AGENT_LEDGER_SLOT, error);
}

bool qemu_can_be_taken_up(const struct qemu_place *place)
{
	char path[256];
	struct attach attach;
	struct qmp *qmp;
	int fd = -1;

	if (qmp_open(&qmp, place->monitor, LOOK_MS, NULL))
		return false;
	if (attach_path(qmp_process(qmp), path, sizeof(path), NULL) == 0 &&
	    attach_open(&attach, path, NULL) == 0) {
		fd = attach_take(&attach, AGENT_LEDGER_SLOT, NULL);
		attach_close(&attach);
	}
	qmp_close(qmp);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}
