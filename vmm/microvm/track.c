/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: dirty tracking, and what tracking does not see
 *
 * The order that both ways keep: what KVM noted is read, noting is armed again for these pages
 * (write protection, or a cleared dirty bit), and only then are they emitted. A write before the
 * arming is in the bytes that are read behind the emitting; a write after it is noted anew.
 * Emitting before the arming would lose a write in between: noted already, and not in what was
 * read.
 *
 * The monitor itself writes to guest memory only before a VM's first instruction
 * (memory_load_program), and its populating changes no contents. Port calls answer in registers. So
 * there is nothing to report but discards.
 *
 * vCPUs that are threads have no KVM that would note anything: -ENOTSUP, and the engine tracks the
 * view from outside.
 */
#include "vmm/microvm/track.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"

void track_init(struct microvm *vm, bool ring, uint32_t ring_entries)
{
	vm->track.ring = ring;
	vm->track.ring_entries = ring_entries;
	pthread_mutex_init(&vm->track.lock, NULL);
	pthread_mutex_init(&vm->track.report_lock, NULL);
}

void track_destroy(struct microvm *vm)
{
	struct jaunt_error ignored = {0}; /* it goes with the VM */
	track_stop(vm, &ignored);
	pthread_mutex_destroy(&vm->track.lock);
	pthread_mutex_destroy(&vm->track.report_lock);
}

int track_open(struct microvm *vm, struct jaunt_error *error)
{
	if (vm->track.ring)
		return track_ring_open(vm, error);
	struct kvm_enable_cap manual = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
					.args = {KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE}};
	int offered = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	vm->track.manual = !ioctl(vm->vm_fd, KVM_ENABLE_CAP, &manual);
	vm->track.samples = vm->track.manual && offered > 0 &&
			    (offered & KVM_DIRTY_LOG_INITIALLY_SET) &&
			    vm->page_bytes == GUEST_PAGE_BYTES;
	return 0;
}

int track_set_slot(struct microvm *vm, unsigned slot, bool on)
{
	struct kvm_userspace_memory_region region = cpu_slot(vm, slot);
	region.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	return ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0;
}

int track_set_logging(struct microvm *vm, bool on)
{
	int failed = 0;
	for (unsigned i = 0; !(failed && on) && i < vm->slot_count; i++) {
		int result = track_set_slot(vm, i, on);
		failed = failed ? failed : result;
	}
	return failed;
}

void track_emit_bits(const struct microvm *vm, const uint64_t *bits, uint64_t words, uint64_t base,
		     jaunt_dirty_run *emit, void *context)
{
	uint64_t unit = vm->page_bytes / GUEST_PAGE_BYTES;
	uint64_t first = 0, end = 0; /* the run so far, in pages of the file; empty: none */

	for (uint64_t i = 0; i < words; i++) {
		uint64_t word = bits[i];
		while (word) {
			struct bits_run run = bits_take_run(&word);
			uint64_t page = base + i * 64 + run.first;
			uint64_t from = page / unit, to = (page + run.count - 1) / unit + 1;
			if (from > end && first < end)
				emit(context, 0, first, end - first);
			if (from > end || first == end)
				first = from;
			end = to;
		}
	}
	if (first < end)
		emit(context, 0, first, end - first);
}

int track_start(void *context, struct jaunt_error *error)
{
	struct microvm *vm = context;
	if (vm->thread_backed)
		return error_set(error, ENOTSUP, "no-tracker",
				 "the VM's vCPUs are threads, which note no writes");
	if (vm->track.on)
		return error_set(error, EALREADY, "bug", "dirty tracking is on already");
	int failed = vm->track.half_on ? track_stop(vm, error) : 0;
	if (failed)
		return failed;
	failed = vm->track.ring ? track_ring_start(vm, error) : track_log_start(vm, error);
	vm->track.on = !failed;
	if (failed) {
		struct jaunt_error ignored = {0}; /* the first says why */
		vm->track.half_on = true;
		track_stop(vm, &ignored);
	}
	return failed;
}

int track_collect(void *context, jaunt_dirty_run *emit, void *user, struct jaunt_error *error)
{
	struct microvm *vm = context;
	if (!vm->track.on)
		return error_set(error, EINVAL, "bug", "dirty tracking is off");
	return vm->track.ring ? track_ring_collect(vm, emit, user, error)
			      : track_log_collect(vm, emit, user, error);
}

int track_stop(void *context, struct jaunt_error *error)
{
	struct microvm *vm = context;
	if (!vm->track.on && !vm->track.every && !vm->track.half_on)
		return 0;
	vm->track.on = false;
	vm->track.every = 0;
	int failed = vm->track.ring ? track_ring_stop(vm) : track_log_stop(vm);
	vm->track.half_on = failed;
	if (!failed)
		return 0;
	return error_set(error, -failed, "kvm",
			 "switch KVM's dirty %s off: %s; the VM may run slower until it is",
			 vm->track.ring ? "ring" : "log", strerror(-failed));
}

/* --- What tracking does not see
 * ------------------------------------------------------------------- */

void track_report_to(void *context, struct jaunt_migration *migration)
{
	struct microvm *vm = context;
	pthread_mutex_lock(&vm->track.report_lock);
	vm->track.report = migration;
	pthread_mutex_unlock(&vm->track.report_lock);
}

void track_discarded(struct microvm *vm, uint64_t guest_address, uint64_t bytes)
{
	pthread_mutex_lock(&vm->track.report_lock);
	if (vm->track.report)
		jaunt_migration_discarded(vm->track.report, 0, guest_address / vm->page_bytes,
					  bytes / vm->page_bytes);
	pthread_mutex_unlock(&vm->track.report_lock);
	if (vm->discarded)
		vm->discarded(vm->discarded_context, guest_address, bytes);
}
