/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: holding vCPUs for a share of the time
 *
 * A thread divides time into periods. For the first part of each it holds all vCPUs: they are
 * kicked out of the guest and wait where they would enter it again; for the rest they run. An order
 * to stop wakes those that are held, so that a pause takes no longer than without.
 *
 * A kick leaves immediate_exit set. Only the vCPU clears it, under the lock and while the order is
 * to run, as in vcpu.c: the kick of a pause is not lost.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"

#define PERIOD_NS UINT64_C(20000000)
#define MOST      99u

/* Sets who may run, and waits that long or until it is all over. Under the lock. */
static void hold_for(struct microvm *vm, bool hold, uint64_t ns)
{
	uint64_t end = clock_ns() + ns;
	struct timespec until = {(time_t)(end / 1000000000), (long)(end % 1000000000)};
	atomic_store(&vm->throttle.hold, hold);
	for (unsigned i = 0; i < vm->vcpu_count && hold; i++)
		if (vm->vcpus[i].started && !vm->vcpus[i].parked && !vm->thread_backed)
			cpu_kick(&vm->vcpus[i]);
	if (!hold)
		pthread_cond_broadcast(&vm->wake);
	int result = 0;
	while (vm->throttle.percent && !result)
		result = pthread_cond_timedwait(&vm->throttle.changed, &vm->lock, &until);
}

static void *throttle_main(void *argument)
{
	struct microvm *vm = argument;
	pthread_mutex_lock(&vm->lock);
	while (vm->throttle.percent) {
		uint64_t held_ns = PERIOD_NS * vm->throttle.percent / 100;
		hold_for(vm, true, held_ns);
		hold_for(vm, false, PERIOD_NS - held_ns);
	}
	atomic_store(&vm->throttle.hold, false);
	pthread_cond_broadcast(&vm->wake);
	pthread_mutex_unlock(&vm->lock);
	return NULL;
}

void throttle_wait(struct vcpu *vcpu)
{
	struct microvm *vm = vcpu->vm;
	pthread_mutex_lock(&vm->lock);
	while (vm->throttle.hold && vm->order == MACHINE_RUN)
		pthread_cond_wait(&vm->wake, &vm->lock);
	if (vm->order == MACHINE_RUN)
		vcpu_allow_entry(vcpu);
	pthread_mutex_unlock(&vm->lock);
}

int throttle_set(void *context, unsigned percent, struct jaunt_error *error)
{
	struct microvm *vm = context;
	if (percent > MOST)
		return error_set(error, EINVAL, "bad-option",
				 "hold vCPUs for %u %% of the time: at most %u %%", percent, MOST);
	pthread_mutex_lock(&vm->lock);
	vm->throttle.percent = percent;
	pthread_cond_broadcast(&vm->throttle.changed);
	pthread_mutex_unlock(&vm->lock);
	if (!percent && vm->throttle.running) {
		pthread_join(vm->throttle.thread, NULL);
		vm->throttle.running = false;
	} else if (percent && !vm->throttle.running) {
		sigset_t all, before;
		sigfillset(&all); /* signals are the application's */
		pthread_sigmask(SIG_SETMASK, &all, &before);
		int failed = pthread_create(&vm->throttle.thread, NULL, throttle_main, vm);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
		if (failed) {
			vm->throttle.percent = 0;
			return error_set(error, failed, "no-threads",
					 "start the thread that throttles vCPUs: %s",
					 strerror(failed));
		}
		vm->throttle.running = true;
	}
	return 0;
}
