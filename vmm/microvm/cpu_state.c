/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A KVM vCPU's state, out of the kernel and into it again. The order of loading matters: XCR0 must
 * allow what the xsave area holds, EFER and control registers come before MSRs that depend on them,
 * the TSC comes last of the MSRs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"
#include "vmm/microvm/state.h"

#define MSR_TSC 0x10

#define MOST_MSRS (sizeof((struct microvm *)0)->msrs / sizeof(uint32_t))

/* As struct kvm_msrs, with room for its entries. */
struct msrs {
	__u32 nmsrs, pad;
	struct kvm_msr_entry entries[MOST_MSRS];
};

static int refused(struct jaunt_error *error, const struct vcpu *vcpu, const char *what)
{
	int code = errno;
	return error_set(error, code, "kvm", "vCPU %u: %s: %s", vcpu->index, what, strerror(code));
}

/* --- Saving
 * --------------------------------------------------------------------------------------- */

/* KVM stops at the first MSR that it does not want to read. */
int cpu_probe_msrs(struct vcpu *vcpu, struct jaunt_error *error)
{
	struct microvm *vm = vcpu->vm;
	unsigned kept = 0;
	bool tsc = false;
	for (unsigned i = 0; i < vm->msr_count; i++) {
		struct msrs msrs = {.nmsrs = 1};
		msrs.entries[0].index = vm->msrs[i];
		if (ioctl(vcpu->fd, KVM_GET_MSRS, &msrs) != 1)
			continue;
		tsc |= vm->msrs[i] == MSR_TSC;
		vm->msrs[kept++] = vm->msrs[i];
	}
	vm->msr_count = kept;
	if (!tsc)
		return error_set(
			error, ENOTSUP, "no-tsc",
			"this host's KVM does not tell a guest's TSC, which must go with it");
	return 0;
}

static int save_msrs(struct vcpu *vcpu, struct state_writer *writer, struct jaunt_error *error)
{
	struct msrs msrs = {.nmsrs = vcpu->vm->msr_count};
	struct state_msr saved[MOST_MSRS];
	struct state_clock clock = {0};
	unsigned count = 0;
	for (unsigned i = 0; i < msrs.nmsrs; i++)
		msrs.entries[i].index = vcpu->vm->msrs[i];
	int got = ioctl(vcpu->fd, KVM_GET_MSRS, &msrs);
	if (got < 0)
		return refused(error, vcpu, "KVM_GET_MSRS");
	clock.monotonic_ns = clock_ns();
	if (got != (int)msrs.nmsrs)
		return error_set(error, EIO, "kvm", "vCPU %u: KVM does not tell MSR 0x%x any more",
				 vcpu->index, msrs.entries[got].index);
	for (int i = 0; i < got; i++) {
		if (msrs.entries[i].index == MSR_TSC)
			clock.tsc = msrs.entries[i].data;
		else
			saved[count++] = (struct state_msr){.index = msrs.entries[i].index,
							    .value = msrs.entries[i].data};
	}
	state_put(writer, STATE_CLOCK, &clock, sizeof clock);
	state_put(writer, STATE_MSRS, saved, count * sizeof saved[0]);
	return 0;
}

static int save_xsave(struct vcpu *vcpu, struct state_writer *writer, struct jaunt_error *error)
{
	size_t bytes = vcpu->vm->xsave_bytes;
	struct kvm_xsave *xsave = calloc(1, bytes);
	if (!xsave)
		return error_set(error, ENOMEM, "no-memory", "save vCPUs: out of memory");
	bool large = bytes > sizeof *xsave;
	int failed = ioctl(vcpu->fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, xsave)
			     ? refused(error, vcpu, "KVM_GET_XSAVE")
			     : 0;
	if (!failed)
		state_put(writer, STATE_XSAVE, xsave, bytes);
	free(xsave);
	return failed;
}

#define SAVE(tag, request, type)                                                                   \
	do {                                                                                       \
		type object = {0};                                                                 \
		if (ioctl(vcpu->fd, request, &object))                                             \
			return refused(error, vcpu, #request);                                     \
		state_put(writer, tag, &object, sizeof object);                                    \
	} while (0)

int cpu_save(struct vcpu *vcpu, struct state_writer *writer, struct jaunt_error *error)
{
	int failed = save_msrs(vcpu, writer, error);
	if (failed)
		return failed;
	SAVE(STATE_REGISTERS, KVM_GET_REGS, struct kvm_regs);
	SAVE(STATE_SYSTEM, KVM_GET_SREGS, struct kvm_sregs);
	SAVE(STATE_XCRS, KVM_GET_XCRS, struct kvm_xcrs);
	failed = save_xsave(vcpu, writer, error);
	if (failed)
		return failed;
	SAVE(STATE_EVENTS, KVM_GET_VCPU_EVENTS, struct kvm_vcpu_events);
	SAVE(STATE_DEBUG, KVM_GET_DEBUGREGS, struct kvm_debugregs);
	SAVE(STATE_MP, KVM_GET_MP_STATE, struct kvm_mp_state);
	return 0;
}

/* --- Loading
 * -------------------------------------------------------------------------------------- */

static int set_msr(struct vcpu *vcpu, uint32_t index, uint64_t value, struct jaunt_error *error)
{
	struct msrs msrs = {.nmsrs = 1};
	msrs.entries[0].index = index;
	msrs.entries[0].data = value;
	int set = ioctl(vcpu->fd, KVM_SET_MSRS, &msrs);
	if (set < 0)
		return refused(error, vcpu, "KVM_SET_MSRS");
	if (set == 1)
		return 0;
	/* Some cannot be set to what they say: no harm where that is what they are. */
	msrs.entries[0].data = 0;
	if (ioctl(vcpu->fd, KVM_GET_MSRS, &msrs) == 1 && msrs.entries[0].data == value)
		return 0;
	return error_set(error, EIO, "cpu-lacks",
			 "vCPU %u: this host's KVM does not take the value 0x%" PRIx64
			 " of MSR 0x%x, as the source has it",
			 vcpu->index, value, index);
}

static bool is_saved_msr(const struct microvm *vm, uint32_t index)
{
	for (unsigned i = 0; i < vm->msr_count; i++)
		if (vm->msrs[i] == index)
			return true;
	return false;
}

/* All at once; one by one only to find out which one KVM does not like. */
static int load_msrs(struct vcpu *vcpu, const uint8_t *bytes, size_t count, uint64_t tsc,
		     struct jaunt_error *error)
{
	struct msrs msrs = {0};
	size_t number = count / sizeof(struct state_msr);
	if (count % sizeof(struct state_msr) || number >= MOST_MSRS)
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u: %zu bytes of MSRs make no sense",
				 vcpu->index, count);
	for (size_t i = 0; i < number; i++) {
		struct state_msr msr;
		memcpy(&msr, bytes + i * sizeof msr, sizeof msr);
		if (msr.index == MSR_TSC || !is_saved_msr(vcpu->vm, msr.index))
			return error_set(error, ENOTSUP, "cpu-lacks",
					 "saved state of vCPU %u has MSR 0x%x, which this host's "
					 "KVM does not save or load",
					 vcpu->index, msr.index);
		msrs.entries[i].index = msr.index;
		msrs.entries[i].data = msr.value;
	}
	msrs.entries[number].index = MSR_TSC;
	msrs.entries[number].data = tsc;
	msrs.nmsrs = (uint32_t)number + 1;
	int set = ioctl(vcpu->fd, KVM_SET_MSRS, &msrs), failed = 0;
	if (set < 0)
		return refused(error, vcpu, "KVM_SET_MSRS");
	for (size_t i = (size_t)set; i <= number && !failed; i++)
		failed = set_msr(vcpu, msrs.entries[i].index, msrs.entries[i].data, error);
	return failed;
}

static int load_xsave(struct vcpu *vcpu, const uint8_t *bytes, size_t count,
		      struct jaunt_error *error)
{
	size_t room = vcpu->vm->xsave_bytes;
	struct kvm_xsave *xsave;
	if (count < sizeof *xsave || count > room)
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u has an xsave area of %zu bytes, this host "
				 "takes %zu to %zu",
				 vcpu->index, count, sizeof *xsave, room);
	xsave = calloc(1, room);
	if (!xsave)
		return error_set(error, ENOMEM, "no-memory", "load vCPUs: out of memory");
	memcpy(xsave, bytes, count);
	int failed =
		ioctl(vcpu->fd, KVM_SET_XSAVE, xsave) ? refused(error, vcpu, "KVM_SET_XSAVE") : 0;
	free(xsave);
	return failed;
}

#define LOAD(tag, request, type)                                                                   \
	do {                                                                                       \
		type object;                                                                       \
		if ((failed = state_take_object(reader, tag, &object, sizeof object, error)))      \
			return failed;                                                             \
		if (ioctl(vcpu->fd, request, &object))                                             \
			return refused(error, vcpu, #request);                                     \
	} while (0)

int cpu_load(struct vcpu *vcpu, struct state_reader *reader, uint64_t tsc,
	     struct jaunt_error *error)
{
	const uint8_t *msrs, *xsave;
	size_t msrs_bytes, xsave_bytes;
	int failed = state_take(reader, STATE_MSRS, &msrs, &msrs_bytes, error);
	if (failed)
		return failed;
	struct kvm_regs registers;
	failed = state_take_object(reader, STATE_REGISTERS, &registers, sizeof registers, error);
	if (failed)
		return failed;
	LOAD(STATE_SYSTEM, KVM_SET_SREGS, struct kvm_sregs);
	if (ioctl(vcpu->fd, KVM_SET_REGS, &registers))
		return refused(error, vcpu, "KVM_SET_REGS");
	LOAD(STATE_XCRS, KVM_SET_XCRS, struct kvm_xcrs);
	failed = state_take(reader, STATE_XSAVE, &xsave, &xsave_bytes, error);
	if (!failed)
		failed = load_xsave(vcpu, xsave, xsave_bytes, error);
	if (!failed)
		failed = load_msrs(vcpu, msrs, msrs_bytes, tsc, error);
	if (failed)
		return failed;
	LOAD(STATE_EVENTS, KVM_SET_VCPU_EVENTS, struct kvm_vcpu_events);
	LOAD(STATE_DEBUG, KVM_SET_DEBUGREGS, struct kvm_debugregs);
	LOAD(STATE_MP, KVM_SET_MP_STATE, struct kvm_mp_state);
	return 0;
}
