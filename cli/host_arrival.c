/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A waiting receive has a name of its own until a VM comes. The VM's name is claimed on the
 * migration's thread, before the VM is made, so that a name that is taken is a refusal like any
 * other and the VM runs on at the source; the loop takes the claim over. If the attempt comes to
 * nothing the engine waits for the next source, and the loop goes back to the former name.
 */
#include "cli/host.h"

#include <string.h>
#include <unistd.h>

#include "base/error.h"

static void wake(const struct host *host)
{
	uint64_t one = 1;
	if (write(host->wake_fd, &one, sizeof(one)) < 0)
		return; /* EAGAIN: it is awake already */
}

/* --- On the migration's thread -------------------------------------------------------------------
 */

static int vm_arriving(void *context, const char *name, struct jaunt_error *error)
{
	struct host *host = context;
	struct runtime_claim claim;

	pthread_mutex_lock(&host->lock);
	bool have = strcmp(name, host->claim.name) == 0;
	if (have)
		host->go_back = false;
	pthread_mutex_unlock(&host->lock);
	if (have)
		return 0;
	int result = runtime_claim(&claim, name, error);
	if (result)
		return error_context(error,
				     "the target's host cannot take it in as %s "
				     "(`jaunt receive --as` gives it another name)",
				     name);
	pthread_mutex_lock(&host->lock);
	host->pending = claim;
	pthread_mutex_unlock(&host->lock);
	wake(host);
	return 0;
}

static void vm_created(void *context, void *vm, const struct guest_facts *facts)
{
	struct host *host = context;

	pthread_mutex_lock(&host->lock);
	host->vm = vm;
	host->facts = *facts;
	pthread_mutex_unlock(&host->lock);
}

static void vm_gone(void *context)
{
	struct host *host = context;

	pthread_mutex_lock(&host->lock);
	host->vm = NULL;
	struct runtime_claim unused = host->pending;
	host->pending = RUNTIME_NO_CLAIM;
	host->go_back = true;
	pthread_mutex_unlock(&host->lock);
	runtime_release(&unused);
	wake(host);
}

/* --- On the loop's -------------------------------------------------------------------------------
 */

static void open_guests(struct host *host, const char *name, const struct guest_qemu *qemu,
			bool thread_backed)
{
	if (qemu)
		host->kind = &guest_qemu_kind;
	host->guests = (struct guest_host){.name = name,
					   .qemu = qemu,
					   .thread_backed = thread_backed,
					   .arriving = vm_arriving,
					   .created = vm_created,
					   .gone = vm_gone,
					   .context = host};
}

int host_receive(struct host *host, const char *name, const struct guest_qemu *qemu,
		 bool thread_backed, const struct jaunt_options *options, struct jaunt_error *error)
{
	open_guests(host, name, qemu, thread_backed);
	host->shown = JAUNT_PHASE_WAITING;
	return job_start_target(&host->job, host->kind->factory, &host->guests, options,
				host->wake_fd, error);
}

int host_take_up(struct host *host, const char *name, const struct guest_qemu *qemu,
		 const struct jaunt_options *options, struct jaunt_error *error)
{
	open_guests(host, name, qemu, false);
	return job_start_take_up(&host->job, host->kind->factory, &host->guests, options,
				 host->wake_fd, error);
}

void host_settle_name(struct host *host)
{
	struct runtime_claim former = RUNTIME_NO_CLAIM;
	bool go_back;

	pthread_mutex_lock(&host->lock);
	go_back = host->go_back;
	host->go_back = false;
	if (host->pending.lock_fd >= 0) {
		former = host->claim;
		host->claim = host->pending;
		host->pending = RUNTIME_NO_CLAIM;
		go_back = false;
	}
	pthread_mutex_unlock(&host->lock);
	if (go_back && strcmp(host->claim.name, host->waiting_name) != 0) {
		struct runtime_claim again;
		/* Taken by somebody else meanwhile: then it stays known by the VM's name. */
		if (runtime_claim(&again, host->waiting_name, NULL))
			return;
		pthread_mutex_lock(&host->lock);
		former = host->claim;
		host->claim = again;
		pthread_mutex_unlock(&host->lock);
	}
	if (former.lock_fd < 0)
		return;
	server_listen(host->server, host->claim.listen_fd);
	runtime_release(&former);
}
