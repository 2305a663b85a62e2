/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU that is a thread of this process: the guest program compiled for the host, run step by
 * step. Its "registers" are a struct outside guest memory, whole between two steps; that is where
 * it stops.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/guest/program.h"
#include "vmm/microvm/machine.h"

static uint32_t call(void *context, unsigned port, const uint64_t arguments[6])
{
	return vcpu_port(context, port, arguments);
}

static void become(struct vcpu *vcpu)
{
	vcpu->guest.parameters = memory_parameters(vcpu);
	vcpu->guest.memory = vcpu->vm->view;
	vcpu->guest.memory_bytes = vcpu->vm->memory_bytes;
	vcpu->guest.call = call;
	vcpu->guest.context = vcpu;
	guest_thread = &vcpu->guest;
}

void thread_begin(struct vcpu *vcpu)
{
	become(vcpu);
	memset(&vcpu->guest.registers, 0, sizeof vcpu->guest.registers);
	guest_begin(memory_block(vcpu));
	guest_thread = NULL;
}

void thread_run(struct vcpu *vcpu)
{
	become(vcpu);
	vcpu_entering(vcpu);
	while (vcpu_may_run(vcpu) && !vcpu->crashed) {
		if (atomic_load_explicit(&vcpu->vm->throttle.hold, memory_order_relaxed))
			throttle_wait(vcpu);
		guest_step();
	}
	vcpu->left_ns = clock_ns();
}

/* What the kernel calibrated is not to be had without KVM; this is good to 0.1 %. */
int thread_tsc_khz(uint64_t *khz, struct jaunt_error *error)
{
	uint64_t from_ns = clock_ns(), from = __builtin_ia32_rdtsc(), to_ns;
	do
		to_ns = clock_ns();
	while (to_ns - from_ns < 5000000);
	uint64_t cycles = __builtin_ia32_rdtsc() - from;
	*khz = (uint64_t)((double)cycles * 1e6 / (double)(to_ns - from_ns));
	if (*khz)
		return 0;
	return error_set(error, ENOTSUP, "no-tsc",
			 "the time stamp counter of this CPU stands still");
}
