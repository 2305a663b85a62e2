/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/owner.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "cli/guest_qemu.h"
#include "cli/host.h"
#include "cli/vmname.h"

struct owner {
	struct guest_qemu qemu;
	struct host host;
	pthread_t thread;
};

static void *run(void *argument)
{
	struct owner *owner = argument;

	pthread_setname_np(pthread_self(), "jaunt-owner");
	host_run(&owner->host);
	return NULL;
}

static int take_hold(struct owner *owner, const char *name, struct jaunt_error *error)
{
	char own[RUNTIME_NAME_MAX + 1];
	struct guest_facts facts;
	void *vm = NULL;
	int result = host_open(&owner->host, "migrate", false, error);

	owner->host.quiet = true;
	owner->host.label = name;
	if (result == 0)
		result = vmname_runtime(own, name, error);
	if (result == 0)
		result = host_claim(&owner->host, own, error);
	if (result == 0)
		result = guest_qemu_place(&owner->qemu, name, error);
	if (result == 0)
		result = guest_qemu_open(&owner->qemu, &vm, &facts, error);
	if (result)
		return result;
	host_adopt(&owner->host, &guest_qemu_kind, vm, &facts);
	int code = pthread_create(&owner->thread, NULL, run, owner);
	return code ? error_set(error, code, "no-threads", "cannot start a thread: %s",
				strerror(code))
		    : 0;
}

int owner_start(struct owner **out, const char *name, struct jaunt_error *error)
{
	struct owner *owner = calloc(1, sizeof(*owner));

	if (!owner)
		return error_set(error, ENOMEM, "no-memory", "not enough memory");
	int result = take_hold(owner, name, error);
	if (result) {
		host_close(&owner->host);
		free(owner);
		return result;
	}
	*out = owner;
	return 0;
}

void owner_end(struct owner *owner)
{
	if (!owner)
		return;
	host_leave(&owner->host);
	pthread_join(owner->thread, NULL);
	host_close(&owner->host);
	free(owner);
}
