/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Setting KVM up: the VM with its memory slots, vCPUs that see the CPUID leaves of vm->cpuid,
 * and the registers of a vCPU that has not run.
 *
 * The guest runs at CPL 3 from its first instruction, with IOPL 3 so that it may use ports: nested
 * KVM of the PVM kind runs user code natively and emulates the rest instruction by instruction. It
 * has no interrupt controller and no descriptor table for faults; a fault ends it with a shutdown.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "vmm/microvm/cpuid.h"
#include "vmm/microvm/machine.h"

/* State that a guest can observe, in the order of setting: the TSC last, closest to running. What a
 * CPU or KVM lacks is left out (KVM_GET_MSR_INDEX_LIST). sregs have FS and GS base, EFER and the
 * APIC's base. */
static const uint32_t wanted_msrs[] = {
	0x174,      /* SYSENTER_CS */
	0x175,      /* SYSENTER_ESP */
	0x176,      /* SYSENTER_EIP */
	0xc0000081, /* STAR */
	0xc0000082, /* LSTAR */
	0xc0000083, /* CSTAR */
	0xc0000084, /* SFMASK */
	0xc0000102, /* KERNEL_GS_BASE */
	0xc0000103, /* TSC_AUX */
	0x277,      /* PAT */
	0x1a0,      /* MISC_ENABLE */
	0x48,       /* SPEC_CTRL */
	0xe1,       /* UMWAIT_CONTROL */
	0x1c4,      /* XFD */
	0x1c5,      /* XFD_ERR */
	0xda0,      /* XSS */
	0x3b,       /* TSC_ADJUST */
	0x10,       /* TSC */
};

#define LEAST_SLOT GIB(1)
#define MOST_SLOTS 64u

static int open_kvm(struct jaunt_error *error)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	if (errno == EACCES || errno == EPERM)
		return error_set(error, errno, "kvm-permission",
				 "/dev/kvm: %s; add yourself to the group that owns it (usually "
				 "kvm), or run as root",
				 strerror(errno));
	return error_set(
		error, errno, "no-kvm",
		"/dev/kvm: %s; this host offers no hardware virtualisation: load "
		"kvm_intel or kvm_amd, enable it in the firmware, or in a VM allow nesting. "
		"Without KVM a VM can only run with thread-backed vCPUs, if asked for",
		strerror(errno));
}

int microvm_check_kvm(struct jaunt_error *error)
{
	int fd = open_kvm(error);
	if (fd < 0)
		return fd;
	int version = ioctl(fd, KVM_GET_API_VERSION, 0);
	int immediate_exit = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT);
	close(fd);
	if (version != KVM_API_VERSION || immediate_exit <= 0)
		return error_set(error, ENOTSUP, "kvm-too-old",
				 "/dev/kvm has API version %d%s; Linux 4.11 or newer is needed",
				 version, immediate_exit > 0 ? "" : " and no immediate exit");
	return 0;
}

static int find_msrs(struct microvm *vm, struct jaunt_error *error)
{
	struct kvm_msr_list none = {0}, *list;
	ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &none);
	list = calloc(1, sizeof *list + none.nmsrs * sizeof list->indices[0]);
	if (!list)
		return error_set(error, ENOMEM, "no-memory", "list of MSRs: out of memory");
	list->nmsrs = none.nmsrs;
	int failed = ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list) ? errno : 0;
	for (unsigned i = 0; !failed && i < sizeof wanted_msrs / sizeof wanted_msrs[0]; i++)
		for (unsigned j = 0; j < list->nmsrs; j++)
			if (list->indices[j] == wanted_msrs[i])
				vm->msrs[vm->msr_count++] = wanted_msrs[i];
	free(list);
	if (failed)
		return error_set(error, failed, "kvm", "KVM_GET_MSR_INDEX_LIST: %s",
				 strerror(failed));
	return 0;
}

struct kvm_userspace_memory_region cpu_slot(const struct microvm *vm, unsigned index)
{
	uint64_t start = index * vm->slot_bytes, left = vm->memory_bytes - start;
	return (struct kvm_userspace_memory_region){
		.slot = index,
		.guest_phys_addr = start,
		.memory_size = left < vm->slot_bytes ? left : vm->slot_bytes,
		.userspace_addr = (uintptr_t)vm->view + start};
}

/* Several, so that the dirty log of what a sparse VM does not use need not be read; not too many,
 * since each takes 0.3 ms to make for a VM with a TiB. */
static int create_slots(struct microvm *vm, struct jaunt_error *error)
{
	vm->slot_bytes = LEAST_SLOT;
	while (vm->slot_bytes * MOST_SLOTS < vm->memory_bytes)
		vm->slot_bytes *= 2;
	vm->slot_count = (unsigned)((vm->memory_bytes + vm->slot_bytes - 1) / vm->slot_bytes);
	for (unsigned i = 0; i < vm->slot_count; i++) {
		struct kvm_userspace_memory_region slot = cpu_slot(vm, i);
		if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot))
			return error_set(error, errno, "kvm",
					 "KVM memory slot of %" PRIu64 " MiB: %s",
					 (uint64_t)slot.memory_size >> 20, strerror(errno));
	}
	return 0;
}

int cpu_open(struct microvm *vm, struct jaunt_error *error)
{
	int failed = microvm_check_kvm(error);
	if (failed)
		return failed;
	vm->kvm_fd = open_kvm(error);
	if (vm->kvm_fd < 0)
		return vm->kvm_fd;
	do
		vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	while (vm->vm_fd < 0 && errno == EINTR);
	if (vm->vm_fd < 0)
		return error_set(error, errno, "kvm", "KVM_CREATE_VM: %s", strerror(errno));
	int run_bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (run_bytes < (int)sizeof(struct kvm_run))
		return error_set(error, EIO, "kvm", "KVM_GET_VCPU_MMAP_SIZE: %d", run_bytes);
	vm->run_bytes = (size_t)run_bytes;
	int xsave = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	vm->xsave_bytes = xsave > 4096 ? (size_t)xsave : 4096;
	int sync = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS);
	vm->sync_registers = sync > 0 && (sync & KVM_SYNC_X86_REGS);
	if (!vm->cpuid && (failed = cpuid_of_host(vm->kvm_fd, &vm->cpuid, error)))
		return failed;
	failed = cpuid_check_address(vm->cpuid, vm->memory_bytes, error);
	if (failed || (failed = find_msrs(vm, error)))
		return failed;
	failed = track_open(vm, error);
	return failed ? failed : create_slots(vm, error);
}

void cpu_close(struct microvm *vm)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		track_close_vcpu(&vm->vcpus[i]);
		if (vm->vcpus[i].run)
			munmap(vm->vcpus[i].run, vm->run_bytes);
		if (vm->vcpus[i].fd >= 0)
			close(vm->vcpus[i].fd);
	}
	if (vm->vm_fd >= 0)
		close(vm->vm_fd);
	if (vm->kvm_fd >= 0)
		close(vm->kvm_fd);
	free(vm->cpuid);
}

static int set_tsc_frequency(struct vcpu *vcpu, struct jaunt_error *error)
{
	struct microvm *vm = vcpu->vm;
	int own = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
	if (own <= 0)
		return error_set(error, ENOTSUP, "no-tsc",
				 "KVM does not know this CPU's TSC frequency: is the TSC stable?");
	if (!vm->tsc_khz)
		vm->tsc_khz = (uint64_t)own;
	/* Asking for what it has anyway would already need TSC scaling on some kernels. */
	uint64_t difference = vm->tsc_khz > (uint64_t)own ? vm->tsc_khz - (uint64_t)own
							  : (uint64_t)own - vm->tsc_khz;
	if (difference * 1000000 <= vm->tsc_khz * CPUID_TSC_TOLERANCE_PPM)
		return 0;
	if (ioctl(vcpu->fd, KVM_SET_TSC_KHZ, vm->tsc_khz))
		return error_set(error, ENOTSUP, "tsc-frequency",
				 "the source's TSC runs at %" PRIu64 " kHz, this host's at %d kHz, "
				 "and its KVM cannot scale (KVM_SET_TSC_KHZ: %s)",
				 vm->tsc_khz, own, strerror(errno));
	return 0;
}

int cpu_create_vcpu(struct vcpu *vcpu, struct jaunt_error *error)
{
	struct microvm *vm = vcpu->vm;
	vcpu->fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, (unsigned long)vcpu->index);
	if (vcpu->fd < 0)
		return error_set(error, errno, "kvm", "KVM_CREATE_VCPU: %s%s", strerror(errno),
				 errno == EINVAL ? "; this host's KVM takes fewer vCPUs" : "");
	void *run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return error_set(error, errno, "kvm", "map a vCPU's run page: %s", strerror(errno));
	vcpu->run = run;
	if (vm->sync_registers)
		vcpu->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	int failed = track_create_vcpu(vcpu, error);
	if (!failed)
		failed = set_tsc_frequency(vcpu, error);
	if (failed)
		return failed;
	struct kvm_cpuid2 *cpuid = cpuid_of_vcpu(vm->cpuid, vcpu->index);
	if (!cpuid)
		return error_set(error, ENOMEM, "no-memory", "CPUID: out of memory");
	failed = ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) ? errno : 0;
	free(cpuid);
	if (failed)
		return error_set(error, failed, "kvm", "KVM_SET_CPUID2: %s", strerror(failed));
	return 0;
}

#define SELECTOR_CODE 0x0b
#define SELECTOR_DATA 0x13

int cpu_begin(struct vcpu *vcpu, struct jaunt_error *error)
{
	struct kvm_sregs system;
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &system))
		return error_set(error, errno, "kvm", "KVM_GET_SREGS: %s", strerror(errno));
	system.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	system.cr3 = MEMORY_TABLES(vcpu->vm->vcpu_count);
	system.cr4 = 0x620;  /* PAE OSFXSR OSXMMEXCPT */
	system.efer = 0xd00; /* LME LMA NXE */
	system.gdt.base = GUEST_GDT;
	system.gdt.limit = 23;
	system.idt.base = 0;
	system.idt.limit = 0;
	struct kvm_segment segment = {.limit = 0xffffffff, .present = 1, .dpl = 3, .s = 1, .g = 1};
	system.cs = segment;
	system.cs.selector = SELECTOR_CODE;
	system.cs.type = 11;
	system.cs.l = 1;
	segment.selector = SELECTOR_DATA;
	segment.type = 3;
	segment.db = 1;
	system.ds = system.es = system.fs = system.gs = system.ss = segment;
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &system))
		return error_set(error, errno, "kvm", "KVM_SET_SREGS: %s", strerror(errno));
	uint64_t block = memory_block(vcpu);
	struct kvm_regs registers = {
		.rip = GUEST_PROGRAM,
		.rdi = block,
		.rsp = block + GUEST_BLOCK_STACK_TOP - 64,
		.rflags = 0x3002, /* IOPL 3 */
	};
	if (ioctl(vcpu->fd, KVM_SET_REGS, &registers))
		return error_set(error, errno, "kvm", "KVM_SET_REGS: %s", strerror(errno));
	return 0;
}
