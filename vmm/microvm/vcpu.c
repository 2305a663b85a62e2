/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Each vCPU is a thread that is either parked or in its run function (vcpu_kvm.c, vcpu_thread.c).
 * One order holds for all of them: PARK, RUN, EXIT. It is written under the VM's lock and read
 * without it before every entry into the guest. A change of order is followed by a kick of every
 * vCPU that is not parked. The kick first sets the vCPU's immediate_exit and then sends a signal: a
 * vCPU that has not looked at the former yet does not enter, one that has is interrupted by the
 * latter; the flag is cleared only by the vCPU itself, under the lock, while the order is RUN.
 *
 * Whoever waits for all to park sleeps: a vCPU on the same core must run once more to park, and
 * every microsecond of spinning came on top (p50 30 us asleep, 44 us with 20 us of spinning before,
 * two vCPUs on two cores). Whoever waits for the first to enter spins for a moment: a core that is
 * given away then is a vCPU's for milliseconds (p50 0.1 ms against 1.5 to 12 ms on a loaded
 * machine).
 *
 * Port calls of the guest end up in vcpu_port(), on the vCPU's thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"

/* A vCPU answers a kick within microseconds, unless the kernel holds it (reclaim, a dead disk). */
#define PARK_TIMEOUT_NS UINT64_C(10000000000)
/* One that is a thread cannot be kicked, and looks before each of its operations. */
#define PARK_THREAD_NS UINT64_C(4000000000)
/* What takes longer to stop waits for a page: see memory_release(). */
#define STUCK_NS        UINT64_C(300000000)
#define ENTRY_SPIN_NS   UINT64_C(100000)
#define LONGEST_IDLE_NS UINT64_C(200000000)

static struct timespec timespec_of(uint64_t ns)
{
	return (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

void vcpu_crash(struct vcpu *vcpu, const char *format, ...)
{
	struct microvm *vm = vcpu->vm;
	va_list arguments;
	if (atomic_load(&vm->released))
		return;
	va_start(arguments, format);
	pthread_mutex_lock(&vm->lock);
	vcpu->crashed = true;
	vsnprintf(vcpu->crash, sizeof vcpu->crash, format, arguments);
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	va_end(arguments);
}

void vcpu_allow_entry(struct vcpu *vcpu)
{
	if (vcpu->run)
		__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
}

static void *vcpu_main(void *argument)
{
	struct vcpu *vcpu = argument;
	struct microvm *vm = vcpu->vm;
	pthread_mutex_lock(&vm->lock);
	for (;;) {
		vcpu->parked = true;
		atomic_fetch_add(&vm->parked, 1);
		pthread_cond_broadcast(&vm->changed);
		while (vm->order == MACHINE_PARK || (vm->order == MACHINE_RUN && vcpu->crashed))
			pthread_cond_wait(&vm->wake, &vm->lock);
		if (vm->order == MACHINE_EXIT)
			break;
		vcpu->parked = false;
		atomic_fetch_sub(&vm->parked, 1);
		vcpu_allow_entry(vcpu);
		pthread_mutex_unlock(&vm->lock);
		if (!vm->loaded) {
			vcpu_entering(vcpu);
			memory_populate(vcpu);
		}
		if (vm->thread_backed)
			thread_run(vcpu);
		else
			cpu_run(vcpu);
		pthread_mutex_lock(&vm->lock);
	}
	pthread_mutex_unlock(&vm->lock);
	return NULL;
}

int vcpu_start_threads(struct microvm *vm, struct jaunt_error *error)
{
	/* Signals are for the program's own threads, but for the kick. */
	sigset_t all, before;
	sigfillset(&all);
	sigdelset(&all, MICROVM_KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int failed = 0;
	for (unsigned i = 0; i < vm->vcpu_count && !failed; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];
		failed = pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
		vcpu->started = !failed;
		if (!failed) {
			char name[16];
			snprintf(name, sizeof name, "vcpu%u", i);
			pthread_setname_np(vcpu->thread, name);
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed)
		return error_set(
			error, failed, "no-threads",
			"start a vCPU's thread: %s; raise the limit of processes (ulimit -u)",
			strerror(failed));
	return 0;
}

/* Under the lock. */
static void give_order(struct microvm *vm, enum machine_order order)
{
	atomic_store(&vm->order, (int)order);
	pthread_cond_broadcast(&vm->wake);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];
		if (!vcpu->started || vcpu->parked || vm->thread_backed)
			continue;
		if (order == MACHINE_RUN)
			vcpu_allow_entry(vcpu);
		else
			cpu_kick(vcpu);
	}
}

/* Waits until all are parked; under the lock. False after that time. */
static bool wait_parked(struct microvm *vm, unsigned started, uint64_t timeout_ns)
{
	struct timespec until = timespec_of(clock_ns() + timeout_ns);
	int result = 0;
	while (vm->parked < started && result != ETIMEDOUT)
		result = pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
	return vm->parked >= started;
}

void vcpu_end_threads(struct microvm *vm)
{
	unsigned started = 0;
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		started += vm->vcpus[i].started;
	pthread_mutex_lock(&vm->lock);
	give_order(vm, MACHINE_EXIT);
	bool stuck = !wait_parked(vm, started, STUCK_NS);
	pthread_mutex_unlock(&vm->lock);
	if (stuck) {
		memory_release(vm);
		for (unsigned i = 0; i < vm->vcpu_count; i++)
			if (vm->vcpus[i].started)
				pthread_kill(vm->vcpus[i].thread, MICROVM_KICK_SIGNAL);
	}
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i].started)
			pthread_join(vm->vcpus[i].thread, NULL);
		vm->vcpus[i].started = false;
	}
	atomic_store(&vm->parked, 0);
}

int vcpu_park_all(struct microvm *vm, struct jaunt_error *error)
{
	uint64_t timeout_ns = vm->thread_backed ? PARK_THREAD_NS : PARK_TIMEOUT_NS;

	pthread_mutex_lock(&vm->lock);
	give_order(vm, MACHINE_PARK);
	if (!wait_parked(vm, vm->vcpu_count, timeout_ns)) {
		/* The order stands. One that waits for a page takes no step more once it has it:
		 * whoever could not stop the VM is going to destroy it, or to resume it. */
		pthread_mutex_unlock(&vm->lock);
		return error_set(error, ETIMEDOUT, "vcpu-stuck",
				 "a vCPU did not stop within %u s: it may wait for a page that is "
				 "still missing",
				 (unsigned)(timeout_ns / 1000000000));
	}
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

void vcpu_entering(struct vcpu *vcpu)
{
	struct microvm *vm = vcpu->vm;
	if (atomic_load_explicit(&vm->first_entry_ns, memory_order_relaxed))
		return;
	pthread_mutex_lock(&vm->lock);
	if (!vm->first_entry_ns) {
		uint64_t now = clock_ns(), not_yet = 0;
		if (vm->loaded)
			atomic_compare_exchange_strong(&vm->arrived_ns, &not_yet, now);
		atomic_store(&vm->first_entry_ns, now);
		pthread_cond_broadcast(&vm->changed);
	}
	pthread_mutex_unlock(&vm->lock);
}

int vcpu_run_all(struct microvm *vm, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	pthread_mutex_lock(&vm->lock);
	bool alive = false;
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		alive |= !vm->vcpus[i].crashed;
	if (!alive) {
		int failed = error_set(error, EIO, "vcpu-crashed", "every vCPU has crashed: %s",
				       vm->vcpus[0].crash);
		pthread_mutex_unlock(&vm->lock);
		return failed;
	}
	atomic_store(&vm->first_entry_ns, 0);
	vm->has_run = true;
	give_order(vm, MACHINE_RUN);
	pthread_mutex_unlock(&vm->lock);
	/* Without giving the core away: vCPUs that got it would keep it for milliseconds. */
	uint64_t spin_end = clock_ns() + ENTRY_SPIN_NS, entered;
	while (!atomic_load(&vm->first_entry_ns) && clock_ns() < spin_end)
		__builtin_ia32_pause();
	pthread_mutex_lock(&vm->lock);
	while (!(entered = vm->first_entry_ns))
		pthread_cond_wait(&vm->changed, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
	if (first_entry_ns)
		*first_entry_ns = entered;
	return 0;
}

/* --- What the guest asks for
 * ---------------------------------------------------------------------- */

static void idle(struct vcpu *vcpu, uint64_t cycles)
{
	struct microvm *vm = vcpu->vm;
	double ns = (double)cycles * 1e6 / (double)vm->tsc_khz;
	uint64_t wait = ns < (double)LONGEST_IDLE_NS ? (uint64_t)ns : LONGEST_IDLE_NS;
	struct timespec until = timespec_of(clock_ns() + wait);
	pthread_mutex_lock(&vm->lock);
	int result = 0;
	while (!result && vm->order == MACHINE_RUN && vcpu->command == GUEST_GO_ON)
		result = pthread_cond_timedwait(&vm->wake, &vm->lock, &until);
	pthread_mutex_unlock(&vm->lock);
	/* A vCPU that sleeps has not stopped yet. */
	vcpu->left_ns = clock_ns();
}

/* As a balloon would: through the VM's own view. */
static void give_back(struct vcpu *vcpu, uint64_t page, uint64_t pages)
{
	struct microvm *vm = vcpu->vm;
	uint64_t limit = vm->memory_bytes / GUEST_PAGE_BYTES;
	uint64_t unit = vm->page_bytes / GUEST_PAGE_BYTES;
	if (page >= limit || pages > limit - page || !pages || page % unit || pages % unit) {
		vcpu_crash(vcpu, "gave back pages that it does not have (%" PRIu64 ", %" PRIu64 ")",
			   page, pages);
		return;
	}
	uint64_t address = page * GUEST_PAGE_BYTES, bytes = pages * GUEST_PAGE_BYTES;
	if (madvise(vm->view + address, bytes, MADV_REMOVE)) {
		vcpu_crash(vcpu, "madvise(MADV_REMOVE): %s", strerror(errno));
		return;
	}
	track_discarded(vm, address, bytes);
}

static void report(struct vcpu *vcpu, const uint64_t arguments[6])
{
	struct microvm *vm = vcpu->vm;
	if (arguments[0] == GUEST_REPORT_READY)
		account_ready(vcpu, arguments);
	else
		account_swept(vcpu, arguments);
	if (arguments[0] == GUEST_REPORT_SWEPT)
		return;
	pthread_mutex_lock(&vm->lock);
	if (arguments[0] == GUEST_REPORT_READY)
		vcpu->ready = true;
	else
		vcpu->checked = true;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
}

uint32_t vcpu_port(struct vcpu *vcpu, unsigned port, const uint64_t arguments[6])
{
	switch (port) {
	case GUEST_PORT_POLL:
		account_poll(vcpu, arguments);
		/* Told once: the guest begins the check, or is not ready for it and is told again.
		 */
		return vcpu->ready ? atomic_exchange(&vcpu->command, GUEST_GO_ON) : GUEST_GO_ON;
	case GUEST_PORT_REPORT:
		report(vcpu, arguments);
		return 0;
	case GUEST_PORT_DISCARD:
		give_back(vcpu, arguments[0], arguments[1]);
		return 0;
	case GUEST_PORT_IDLE:
		idle(vcpu, arguments[0]);
		return 0;
	case GUEST_PORT_ERROR:
		account_error(vcpu, arguments);
		return 0;
	}
	vcpu_crash(vcpu, "used port 0x%x, which does not exist", port);
	return 0;
}
