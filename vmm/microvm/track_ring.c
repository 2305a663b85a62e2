/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: KVM's dirty ring
 *
 * Each vCPU notes the pages it dirties in a ring of its own: slot and offset. Whoever harvests
 * marks entries as to be reset, and one call to KVM arms these pages again and frees the entries. A
 * vCPU whose ring is nearly full leaves the guest until that has happened. Costs grow with what is
 * dirtied, never with memory.
 *
 * Two kinds of threads harvest: vCPUs with a full ring, and the engine's when it collects. A page
 * that was harvested and not yet reset can be written without a note, so it must not be emitted:
 * `lock` is held from the harvest until after the reset, and whatever is emitted is emitted under
 * it. What a vCPU harvested waits in `noted`.
 *
 * Resetting is most of what a collect costs, so it is left out while the vCPUs stand still. What
 * was harvested stays noted then, and is told again by the collect that resets.
 *
 * A CPU may hold the last notes of a running vCPU back (Intel's page modification log); they reach
 * the ring when it leaves the guest. The collect of a VM that is paused sees all of them.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/bits.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"
#include "vmm/microvm/track.h"

#define RING_MOST   UINT32_C(65536) /* entries, 16 bytes each */
#define GROUP_PAGES UINT64_C(4096)
/* So many signals, one after the other, are none. */
#define RESETS_IN_VAIN 10000u

static uint64_t pages_of(const struct microvm *vm)
{
	return vm->memory_bytes / GUEST_PAGE_BYTES;
}

static uint64_t noted_bytes(const struct microvm *vm)
{
	return round_up(pages_of(vm), GROUP_PAGES) / 8;
}

static uint64_t group_count(const struct microvm *vm)
{
	return round_up(pages_of(vm), GROUP_PAGES) / GROUP_PAGES;
}

int track_ring_open(struct microvm *vm, struct jaunt_error *error)
{
	int most = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING);
	if (most <= 0)
		return error_set(error, ENOTSUP, "no-dirty-ring",
				 "this host's KVM has no dirty ring (Linux 5.11): use the dirty "
				 "log");
	uint64_t entries = (uint64_t)most / sizeof(struct kvm_dirty_gfn);
	if (!vm->track.ring_entries || vm->track.ring_entries > entries)
		vm->track.ring_entries = entries < RING_MOST ? (uint32_t)entries : RING_MOST;
	struct kvm_enable_cap rings = {
		.cap = KVM_CAP_DIRTY_LOG_RING,
		.args = {vm->track.ring_entries * sizeof(struct kvm_dirty_gfn)}};
	if (!ioctl(vm->vm_fd, KVM_ENABLE_CAP, &rings))
		return 0;
	return error_set(error, errno, "kvm", "switch KVM's dirty rings on: %s", strerror(errno));
}

int track_create_vcpu(struct vcpu *vcpu, struct jaunt_error *error)
{
	struct track *track = &vcpu->vm->track;
	if (!track->ring)
		return 0;
	void *ring = mmap(NULL, track->ring_entries * sizeof(struct kvm_dirty_gfn),
			  PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd,
			  KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	if (ring == MAP_FAILED)
		return error_set(error, errno, "kvm", "map a vCPU's dirty ring: %s",
				 strerror(errno));
	vcpu->dirty_ring = ring;
	return 0;
}

void track_close_vcpu(struct vcpu *vcpu)
{
	if (vcpu->dirty_ring)
		munmap(vcpu->dirty_ring,
		       vcpu->vm->track.ring_entries * sizeof(struct kvm_dirty_gfn));
	vcpu->dirty_ring = NULL;
}

static void note(struct microvm *vm, uint32_t slot, uint64_t offset)
{
	uint64_t page = slot * (vm->slot_bytes / GUEST_PAGE_BYTES) + offset;
	if (page >= pages_of(vm) || !vm->track.noted)
		return;
	vm->track.noted[page / 64] |= UINT64_C(1) << (page % 64);
	vm->track.noted_groups[page / GROUP_PAGES] = 1;
}

/* Under the lock. */
static void harvest(struct vcpu *vcpu)
{
	for (;; vcpu->dirty_next++) {
		struct kvm_dirty_gfn *entry =
			&vcpu->dirty_ring[vcpu->dirty_next % vcpu->vm->track.ring_entries];
		/* Pairs with the kernel's, which writes the entry before the flag; and it reads the
		 * flag we write before it overwrites the entry. */
		if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			return;
		note(vcpu->vm, entry->slot & 0xffff, entry->offset);
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		vcpu->vm->track.unreset++;
	}
}

/* How often this thread has gone to sleep. */
static long sleeps(void)
{
	struct rusage usage;
	return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nvcsw;
}

/* Under the lock: until it returned, what was harvested is not armed. In Linux 6.16 and newer a
 * signal, such as the kick of a pause, ends the call early: it says how many entries it has reset,
 * and not that there are more; and some of those that it counts it has not armed (6.18, as tried).
 * So signals wait; and should a call have ended early all the same, nothing that was noted is
 * forgotten any more. What no mask keeps off (SIGSTOP, a debugger, a frozen control group) leaves
 * its trace in that the thread has slept. */
static void reset(struct microvm *vm)
{
	unsigned in_vain = 0;
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	do {
		long slept = sleeps();
		int result = ioctl(vm->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
		vm->track.cut_short |= sleeps() != slept;
		if (result < 0 && errno != EINTR && errno != EAGAIN)
			vm->track.broken = true;
		uint64_t done = result > 0 ? (uint64_t)result : 0;
		in_vain = done ? 0 : in_vain + 1;
		vm->track.unreset -= done < vm->track.unreset ? done : vm->track.unreset;
		vm->track.cut_short |= vm->track.unreset != 0;
	} while (vm->track.unreset && !vm->track.broken && in_vain < RESETS_IN_VAIN);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (vm->track.unreset)
		vm->track.broken = true;
}

void track_ring_full(struct vcpu *vcpu)
{
	struct microvm *vm = vcpu->vm;
	pthread_mutex_lock(&vm->track.lock);
	harvest(vcpu);
	reset(vm);
	bool broken = vm->track.broken;
	pthread_mutex_unlock(&vm->track.lock);
	if (broken)
		vcpu_crash(vcpu, "has a full dirty ring that KVM does not reset");
}

static void harvest_all(struct microvm *vm)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		harvest(&vm->vcpus[i]);
}

/* Emits what was noted, and forgets it if it is armed again. Under the lock. */
static void emit_noted(struct microvm *vm, jaunt_dirty_run *emit, void *context)
{
	bool forget_it = !vm->track.unreset && !vm->track.cut_short;
	const uint64_t words = GROUP_PAGES / 64;
	for (uint64_t group = 0; group < group_count(vm); group++) {
		if (!vm->track.noted_groups[group])
			continue;
		uint64_t *bits = vm->track.noted + group * words;
		track_emit_bits(vm, bits, words, group * GROUP_PAGES, emit, context);
		if (!forget_it)
			continue;
		vm->track.noted_groups[group] = 0;
		memset(bits, 0, words * 8);
	}
}

static void *map_zeros(uint64_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return at == MAP_FAILED ? NULL : at;
}

/* Under the lock. */
static void forget(struct microvm *vm)
{
	if (vm->track.noted)
		munmap(vm->track.noted, noted_bytes(vm));
	if (vm->track.noted_groups)
		munmap(vm->track.noted_groups, group_count(vm));
	vm->track.noted = NULL;
	vm->track.noted_groups = NULL;
}

static int not_reset(struct jaunt_error *error)
{
	return error_set(error, EIO, "kvm", "KVM does not reset its dirty rings");
}

int track_ring_start(struct microvm *vm, struct jaunt_error *error)
{
	pthread_mutex_lock(&vm->track.lock);
	harvest_all(vm); /* what was left over when it was switched off */
	vm->track.broken = false;
	reset(vm);
	vm->track.cut_short = false; /* logging starts behind this: all is armed then */
	vm->track.noted = map_zeros(noted_bytes(vm));
	vm->track.noted_groups = map_zeros(group_count(vm));
	bool broken = vm->track.broken;
	bool ready = vm->track.noted && vm->track.noted_groups && !broken;
	if (!ready)
		forget(vm);
	pthread_mutex_unlock(&vm->track.lock);
	if (broken)
		return not_reset(error);
	if (!ready)
		return error_set(error, ENOMEM, "no-memory", "dirty ring: out of memory");
	int failed = track_set_logging(vm, true);
	if (!failed)
		return 0;
	return error_set(error, -failed, "kvm", "switch KVM's dirty ring on: %s",
			 strerror(-failed));
}

int track_ring_collect(struct microvm *vm, jaunt_dirty_run *emit, void *context,
		       struct jaunt_error *error)
{
	bool running = atomic_load(&vm->parked) < vm->vcpu_count;
	pthread_mutex_lock(&vm->track.lock);
	harvest_all(vm);
	if (running && vm->track.unreset)
		reset(vm);
	bool broken = vm->track.broken;
	if (!broken)
		emit_noted(vm, emit, context);
	pthread_mutex_unlock(&vm->track.lock);
	return broken ? not_reset(error) : 0;
}

int track_ring_stop(struct microvm *vm)
{
	int failed = track_set_logging(vm, false);
	pthread_mutex_lock(&vm->track.lock);
	harvest_all(vm);
	reset(vm);
	forget(vm);
	pthread_mutex_unlock(&vm->track.lock);
	return failed;
}
