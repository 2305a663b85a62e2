/* SPDX-License-Identifier: Apache-2.0 */
/* A vCPU in KVM: entering and leaving, port calls, and what else KVM comes back with. */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "vmm/microvm/machine.h"

static int enter(struct vcpu *vcpu)
{
	int result;
	vcpu_entering(vcpu);
	do
		result = ioctl(vcpu->fd, KVM_RUN, 0) ? -errno : 0;
	while (result == -EAGAIN);
	return result;
}

static void answer_port(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs fetched, *registers = &run->s.regs.regs;
	if (run->io.direction != KVM_EXIT_IO_IN || run->io.size != 4 || run->io.count != 1) {
		vcpu_crash(vcpu, "wrote to port 0x%x", run->io.port);
		return;
	}
	if (!vcpu->vm->sync_registers) {
		registers = &fetched;
		if (ioctl(vcpu->fd, KVM_GET_REGS, registers)) {
			vcpu_crash(vcpu, "KVM_GET_REGS: %s", strerror(errno));
			return;
		}
	}
	const uint64_t arguments[6] = {registers->rdi, registers->rsi, registers->rcx,
				       registers->r8,  registers->r9,  registers->r10};
	uint32_t answer = vcpu_port(vcpu, run->io.port, arguments);
	memcpy((uint8_t *)run + run->io.data_offset, &answer, sizeof answer);
}

static void report_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs registers = {0};
	ioctl(vcpu->fd, KVM_GET_REGS, &registers);
	switch (run->exit_reason) {
	case KVM_EXIT_SHUTDOWN:
		vcpu_crash(vcpu,
			   "shut down by a fault at rip 0x%llx: its program, page tables or "
			   "parameters are damaged",
			   registers.rip);
		break;
	case KVM_EXIT_MMIO:
		vcpu_crash(vcpu, "touched guest address 0x%llx, where no memory is, at rip 0x%llx",
			   run->mmio.phys_addr, registers.rip);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		vcpu_crash(vcpu, "KVM could not emulate (suberror %u) at rip 0x%llx",
			   run->internal.suberror, registers.rip);
		break;
	default:
		vcpu_crash(vcpu, "unexpected KVM exit %u at rip 0x%llx", run->exit_reason,
			   registers.rip);
	}
}

/* A port call is complete, its answer in eax and rip behind it, only after KVM_RUN was called
 * again: without that a saved vCPU would make the call twice. */
static void complete_port(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
	while (!ioctl(vcpu->fd, KVM_RUN, 0))
		continue;
}

void cpu_run(struct vcpu *vcpu)
{
	bool port_open = false;
	while (vcpu_may_run(vcpu) && !vcpu->crashed) {
		int result = enter(vcpu);
		vcpu->left_ns = clock_ns();
		port_open = false;
		if (result == -EINTR) {
			throttle_wait(vcpu);
			continue;
		}
		if (result) {
			vcpu_crash(vcpu, "KVM_RUN: %s%s", strerror(-result),
				   result == -EFAULT ? ": a page of guest memory cannot be had"
						     : "");
		} else if (vcpu->run->exit_reason == KVM_EXIT_IO) {
			answer_port(vcpu);
			port_open = true;
		} else if (vcpu->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			track_ring_full(vcpu);
		} else if (vcpu->run->exit_reason != KVM_EXIT_INTR) {
			report_exit(vcpu);
		}
	}
	if (port_open)
		complete_port(vcpu);
}

void cpu_kick(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELEASE);
	pthread_kill(vcpu->thread, MICROVM_KICK_SIGNAL);
}
