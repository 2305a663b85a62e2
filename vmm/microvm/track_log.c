/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: KVM's dirty log
 *
 * A bitmap a slot. Reading one costs its size, dirty or not (about 5 us per GiB of guest memory),
 * so memory lies in several slots (cpu_slot()), and one in which the memory file holds nothing is
 * passed over: what is written is in the file. A page that was written and given back since is in
 * no slot's data, but the discard was reported.
 *
 * With manual protection (Linux 5.0) reading leaves the bitmap alone; a second call clears bits and
 * protects these pages again, here in pieces, so that vCPUs that fault meanwhile do not wait for
 * all of a slot (KVM's MMU lock). While the vCPUs stand still nothing is cleared: the pause is
 * shorter by that, and whatever comes after it is told these pages once more, which is never wrong.
 * Without manual protection reading is clearing and protecting in one.
 *
 * Readers and clearers of one VM's slots wait for each other in the kernel (slots_lock), so more
 * threads would gain nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"
#include "vmm/microvm/track.h"

#define CLEAR_PAGES UINT64_C(16384) /* in one piece: 64 MiB; a multiple of 64 */

int track_log_start(struct microvm *vm, struct jaunt_error *error)
{
	bool sampling = vm->track.every;
	if (!sampling)
		vm->track.log = malloc(vm->slot_bytes / GUEST_PAGE_BYTES / 8 + 8);
	if (!vm->track.log)
		return error_set(error, ENOMEM, "no-memory", "dirty log: out of memory");
	int failed = sampling ? track_sample_widen(vm) : track_set_logging(vm, true);
	if (!failed)
		return 0;
	return error_set(error, -failed, "kvm", "switch KVM's dirty log on: %s", strerror(-failed));
}

int track_log_stop(struct microvm *vm)
{
	int failed = track_set_logging(vm, false);

	/* A log that is still on may need the option. */
	if (!failed && vm->track.samples)
		failed = track_sample_option(vm, false);
	free(vm->track.log);
	vm->track.log = NULL;
	return failed;
}

/* In pieces, none without any. */
int track_log_clear(struct microvm *vm, unsigned index)
{
	uint64_t pages = cpu_slot(vm, index).memory_size / GUEST_PAGE_BYTES;
	for (uint64_t first = 0; first < pages; first += CLEAR_PAGES) {
		uint64_t count = pages - first < CLEAR_PAGES ? pages - first : CLEAR_PAGES;
		uint64_t *words = vm->track.log + first / 64, any = 0;
		for (uint64_t i = 0; i < (count + 63) / 64; i++)
			any |= words[i];
		struct kvm_clear_dirty_log piece = {.slot = index,
						    .first_page = first,
						    .num_pages = (uint32_t)count,
						    .dirty_bitmap = words};
		if (any && ioctl(vm->vm_fd, KVM_CLEAR_DIRTY_LOG, &piece))
			return -errno;
	}
	return 0;
}

static int collect_slot(struct microvm *vm, unsigned index, bool running, jaunt_dirty_run *emit,
			void *context)
{
	struct kvm_userspace_memory_region slot = cpu_slot(vm, index);
	struct kvm_dirty_log get = {.slot = index, .dirty_bitmap = vm->track.log};
	uint64_t pages = slot.memory_size / GUEST_PAGE_BYTES;

	if (ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &get))
		return -errno;
	int failed = vm->track.manual && running ? track_log_clear(vm, index) : 0;
	if (failed)
		return failed;
	track_emit_bits(vm, vm->track.log, (pages + 63) / 64,
			slot.guest_phys_addr / GUEST_PAGE_BYTES, emit, context);
	return 0;
}

unsigned track_log_next(const struct microvm *vm, unsigned index)
{
	off_t data = lseek(vm->memory_fd, (off_t)(index * vm->slot_bytes), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? vm->slot_count : index;
	return (unsigned)((uint64_t)data / vm->slot_bytes);
}

int track_log_collect(struct microvm *vm, jaunt_dirty_run *emit, void *context,
		      struct jaunt_error *error)
{
	bool running = atomic_load(&vm->parked) < vm->vcpu_count;

	for (unsigned i = track_log_next(vm, 0); i < vm->slot_count;
	     i = track_log_next(vm, i + 1)) {
		int failed = collect_slot(vm, i, running, emit, context);
		if (failed)
			return error_set(error, -failed, "kvm", "read KVM's dirty log: %s",
					 strerror(-failed));
	}
	return 0;
}
