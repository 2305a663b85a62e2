/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Loading device state may touch guest memory, and then waits for pages that only the source has.
 * If they stop coming, the thread that loads is stuck in a fault that nobody will answer, and with
 * it everything that would end the migration. So a thread of its own looks on. When the pages
 * cannot come any more it dooms the VM and unregisters its memory: the kernel then fills the fault
 * with zeros and the loader returns.
 *
 * No vCPU can ever run with those zeros. `state` changes under the mutex: it is the looker-on who
 * finds LOADING and makes it DOOMED *before* it unregisters anything, or the loader who leaves
 * LOADING first, after which nothing is unregistered. A doomed load counts as failed whatever the
 * driver says of it, LOADED is not sent, and without LOADED the source never commits: the VM here
 * is destroyed, as after every other failure before COMMIT, and goes on at the source.
 */
#include "engine/target/load.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/target/target.h"

#define MS_NS   1000000u
#define LOOK_NS 50000000u

/* Whether what the loader may be waiting for will not come: true and `why`. */
static bool is_hopeless(struct load *load, uint64_t now, struct jaunt_error *why)
{
	struct target *target = load->target;
	struct session *session = &target->shared.session;

	if (atomic_load(&target->base.cancel) || atomic_load(&target->base.abandon)) {
		error_set(why, ECANCELED, "cancelled", "cancelled here");
		return true;
	}
	if (atomic_load(&session->lost)) {
		pthread_mutex_lock(&session->mutex);
		*why = session->why;
		pthread_mutex_unlock(&session->mutex);
		return true;
	}
	if (now - load->since_ns > (uint64_t)target->base.options.peer_timeout_ms * MS_NS) {
		/* The source waits no longer for the word that it is loaded. */
		error_set(why, ETIMEDOUT, "load-timeout",
			  "the VM's state could not be loaded within %u ms: the source does not "
			  "send the pages that this needs, or loading hangs",
			  target->base.options.peer_timeout_ms);
		return true;
	}
	return false;
}

static void wait_until(struct load *load, uint64_t until_ns)
{
	struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000),
				 .tv_nsec = (long)(until_ns % 1000000000)};

	pthread_cond_timedwait(&load->changed, &load->mutex, &until);
}

static void *look_on(void *argument)
{
	struct load *load = argument;

	pthread_setname_np(pthread_self(), "jaunt-load");
	pthread_mutex_lock(&load->mutex);
	/* The loader does not signal: the guest stands still while it would wake this thread. */
	while (load->state == LOAD_WAITING || load->state == LOAD_LOADING) {
		uint64_t now = clock_ns();
		if (load->state == LOAD_LOADING && is_hopeless(load, now, &load->why))
			load->state = LOAD_DOOMED;
		else
			wait_until(load, now + LOOK_NS);
	}
	bool doomed = load->state == LOAD_DOOMED;
	pthread_mutex_unlock(&load->mutex);
	if (doomed)
		target_release_memory(load->target);
	return NULL;
}

int load_prepare(struct load *load, struct target *target)
{
	pthread_condattr_t monotonic;
	sigset_t all, before;

	memset(load, 0, sizeof(*load));
	load->target = target;
	pthread_mutex_init(&load->mutex, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&load->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	/* Signals are the application's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int result = -pthread_create(&load->thread, NULL, look_on, load);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (result < 0) {
		pthread_mutex_destroy(&load->mutex);
		pthread_cond_destroy(&load->changed);
	}
	load->prepared = result == 0;
	return result;
}

/* False: the VM is doomed, and stays so. */
static bool set_state(struct load *load, enum load_state state)
{
	pthread_mutex_lock(&load->mutex);
	bool doomed = load->state == LOAD_DOOMED;
	if (!doomed)
		load->state = state;
	pthread_mutex_unlock(&load->mutex);
	return !doomed;
}

int load_run(struct load *load, uint64_t *took_ns, struct jaunt_error *error)
{
	struct target *target = load->target;

	load->since_ns = clock_ns();
	set_state(load, LOAD_LOADING); /* nothing can have been doomed before */
	int result =
		target->factory->ops->load(target->vm, target->state, target->state_bytes, error);
	*took_ns = clock_ns() - load->since_ns;
	if (!set_state(load, LOAD_ENDED)) {
		*error = load->why;
		result = -error->code;
	}
	return result < 0 ? error_context(error, "load the VM's state") : 0;
}

void load_end(struct load *load)
{
	if (!load->prepared)
		return;
	set_state(load, LOAD_ENDED);
	pthread_cond_signal(&load->changed);
	pthread_join(load->thread, NULL);
	pthread_mutex_destroy(&load->mutex);
	pthread_cond_destroy(&load->changed);
	load->prepared = false;
}
