/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: a sample of the dirty log
 *
 * KVM can switch its log on with every page noted as written already, and then none is protected
 * (KVM_DIRTY_LOG_INITIALLY_SET, Linux 5.7). Clearing the bits of some pages protects these alone:
 * the guest pays for its first write to each of them, and for no other.
 *
 * A log that was begun so protects pages that are mapped as part of huge ones only when they are
 * cleared, which takes the option: it stays until the log is off. But slots whose log is switched
 * on behind the sample begin as usual, without it: no page of theirs was written.
 *
 * Which pages they are follows from their numbers, by a hash that spreads them evenly, so that
 * nothing has to be kept. Slots in which the memory file holds nothing stay out of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/microvm/machine.h"
#include "vmm/microvm/track.h"

static uint64_t hash(uint64_t value)
{
	value = (value + 1) * UINT64_C(0xd6e8feb86659fd93);
	value = (value ^ (value >> 32)) * UINT64_C(0xd6e8feb86659fd93);
	return value ^ (value >> 29);
}

/* The sampled ones of 64 pages: one in each group of `every`, or one in some groups of 64. */
static uint64_t sample_word(uint64_t index, unsigned every)
{
	uint64_t drawn = hash(index), word = 0;

	if (every > 64)
		return (drawn >> 8) % (every / 64) ? 0 : UINT64_C(1) << (drawn % 64);
	for (unsigned first = 0; first < 64; first += every) {
		word |= UINT64_C(1) << (first + drawn % every);
		drawn = hash(drawn);
	}
	return word;
}

static uint64_t slot_words(const struct microvm *vm, unsigned slot)
{
	return (cpu_slot(vm, slot).memory_size / GUEST_PAGE_BYTES + 63) / 64;
}

static uint64_t word_at(const struct microvm *vm, unsigned slot, uint64_t i)
{
	return sample_word(slot * (vm->slot_bytes / GUEST_PAGE_BYTES / 64) + i, vm->track.every);
}

int track_sample_option(struct microvm *vm, bool on)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				     .args = {KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
					      (on ? KVM_DIRTY_LOG_INITIALLY_SET : 0)}};

	return ioctl(vm->vm_fd, KVM_ENABLE_CAP, &cap) ? -errno : 0;
}

static int sample_slot(struct microvm *vm, unsigned slot)
{
	uint64_t words = slot_words(vm, slot);
	int failed = track_set_slot(vm, slot, true);

	if (failed)
		return failed;
	vm->track.sampled_slots |= UINT64_C(1) << slot;
	for (uint64_t i = 0; i < words; i++)
		vm->track.log[i] = word_at(vm, slot, i);
	return track_log_clear(vm, slot);
}

int track_sample(void *context, unsigned every)
{
	struct microvm *vm = context;
	struct jaunt_error error = {0};
	int failed;

	if (vm->thread_backed || !vm->track.samples)
		return -ENOTSUP;
	if (vm->track.on || vm->track.every)
		return -EALREADY;
	if (vm->track.half_on && (failed = track_stop(vm, &error)))
		return failed;
	vm->track.log = malloc(vm->slot_bytes / GUEST_PAGE_BYTES / 8 + 8);
	if (!vm->track.log)
		return -ENOMEM;
	vm->track.every = every;
	vm->track.sampled_slots = 0;
	failed = track_sample_option(vm, true);
	for (unsigned i = track_log_next(vm, 0); !failed && i < vm->slot_count;
	     i = track_log_next(vm, i + 1))
		failed = sample_slot(vm, i);
	if (failed)
		track_stop(vm, &error);
	return failed;
}

int64_t track_sampled(void *context)
{
	struct microvm *vm = context;
	int64_t found = 0;

	if (!vm->track.every)
		return -EINVAL;
	for (unsigned slot = 0; slot < vm->slot_count; slot++) {
		struct kvm_dirty_log get = {.slot = slot, .dirty_bitmap = vm->track.log};
		if (!(vm->track.sampled_slots >> slot & 1))
			continue;
		if (ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &get))
			return -errno;
		for (uint64_t i = 0; i < slot_words(vm, slot); i++)
			found += __builtin_popcountll(vm->track.log[i] & word_at(vm, slot, i));
	}
	return found;
}

int track_sample_widen(struct microvm *vm)
{
	int failed = 0;

	for (unsigned slot = 0; !failed && slot < vm->slot_count; slot++) {
		if (!(vm->track.sampled_slots >> slot & 1))
			continue;
		memset(vm->track.log, 0xff, slot_words(vm, slot) * 8);
		failed = track_log_clear(vm, slot);
	}
	vm->track.every = 0;
	failed = failed ? failed : track_sample_option(vm, false);
	failed = failed ? failed : track_set_logging(vm, true);
	return failed ? failed : track_sample_option(vm, true);
}
