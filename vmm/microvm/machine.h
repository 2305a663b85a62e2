/* SPDX-License-Identifier: Apache-2.0 */
/* The built-in VM from within: what its modules share. */
#ifndef VMM_MICROVM_MACHINE_H
#define VMM_MICROVM_MACHINE_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#include "vmm/microvm/account.h"
#include "vmm/microvm/guest/abi.h"
#include "vmm/microvm/guest/registers.h"
#include "vmm/microvm/microvm.h"
#include "vmm/microvm/track.h"

/* What the vCPU threads are to do. */
enum machine_order { MACHINE_PARK, MACHINE_RUN, MACHINE_EXIT };

struct vcpu {
	struct microvm *vm;
	unsigned index;
	pthread_t thread;
	bool started;        /* the thread exists */
	bool parked;         /* vm->lock: takes no more steps until told to */
	bool crashed;        /* vm->lock: and never will again */
	char crash[256];     /* vm->lock */
	uint64_t left_ns;    /* when it last left the guest; its thread, or anybody while parked */
	bool ready, checked; /* vm->lock: what it reported last */
	atomic_uint command; /* enum guest_command, for its next poll */
	uint64_t restored_tsc, restored_ns; /* load(): what its TSC is meant to be, and when */
	struct account account;
	uint64_t populated; /* bytes of its share that are; its thread, for a VM that starts here */
	/* KVM */
	int fd;
	struct kvm_run *run;
	struct kvm_dirty_gfn *dirty_ring; /* track.lock; NULL: the VM has none */
	uint32_t dirty_next;              /* track.lock: to be harvested next */
	/* A thread of this process */
	struct guest_thread guest;
};

#define MACHINE_BOOT_ID_BYTES 36

struct microvm {
	char name[64];
	char boot_id[MACHINE_BOOT_ID_BYTES]; /* of this host; empty where the kernel does not tell
					      */
	uint64_t memory_bytes, page_bytes;
	unsigned vcpu_count;
	bool thread_backed;
	struct microvm_workload workload;
	microvm_discarded *discarded;
	void *discarded_context;

	/* memory */
	int memory_fd;
	uint8_t *view;
	uint64_t pages_start, pages_end; /* guest addresses of the workload's pages */

	/* cpu */
	int kvm_fd, vm_fd;
	size_t run_bytes, xsave_bytes;
	bool sync_registers;
	uint64_t tsc_khz;
	struct kvm_cpuid2 *cpuid; /* what the guest sees, but for the vCPU's number */
	uint32_t msrs[64];        /* those that are saved */
	unsigned msr_count;
	uint64_t slot_bytes; /* of memory in one slot of KVM's */
	unsigned slot_count;
	struct track track;

	/* vcpus */
	pthread_mutex_t lock;
	pthread_cond_t changed;          /* a vCPU parked, crashed, or reported */
	pthread_cond_t wake;             /* an order or a command for vCPUs */
	atomic_int order;                /* enum machine_order; written under lock */
	atomic_uint parked;              /* vCPUs; written under lock, read by a spinning pause */
	_Atomic uint64_t first_entry_ns; /* 0: none entered since the last resume */
	/* By load(); orders operations_per_s_before for whoever asks for the account meanwhile. */
	atomic_bool loaded;
	bool has_run; /* by start() or resume() */
	atomic_bool
		released; /* the view is no longer the guest's memory: nothing it finds counts */
	struct vcpu *vcpus;
	struct {
		unsigned percent; /* lock */
		atomic_bool hold; /* written under lock */
		pthread_cond_t changed;
		pthread_t thread;
		bool running; /* of whoever calls throttle_set() */
	} throttle;

	/* description */
	struct jaunt_region region;
	struct jaunt_property *properties;
	size_t property_count;
	char *property_text;

	/* arrival, written by load() */
	double operations_per_s_before;
	_Atomic uint64_t arrived_ns; /* first entry after load; 0: did not arrive */
};

/* --- memory.c: the memory file and what the monitor puts into it */
/* Creates file and view, touches neither; what is not yet created is -1 and NULL. */
int memory_create(struct microvm *vm, struct jaunt_error *error);
void memory_destroy(struct microvm *vm);
/* Where the workload's pages are; or -EINVAL where the memory or the working set does not fit. */
int memory_layout(struct microvm *vm, struct jaunt_error *error);
/* Writes page tables, program and parameters of a VM that starts here. */
int memory_load_program(struct microvm *vm, struct jaunt_error *error);
/* Has the kernel allocate a vCPU's share of the working set, in bulk and so more than twice as fast
 * as by its faults (1 GiB, two vCPUs: 2.4 s against 5.9 s). Goes on where it was interrupted. */
void memory_populate(struct vcpu *vcpu);
/* Lets whoever waits for a missing page go on, at the cost of all contents. */
void memory_release(struct microvm *vm);
/* What a vCPU's guest program is told; the same at source and target. */
struct guest_parameters memory_parameters(const struct vcpu *vcpu);
/* What the memory file takes of the host's memory. */
uint64_t memory_resident_bytes(const struct microvm *vm);
static inline uint64_t memory_block(const struct vcpu *vcpu)
{
	return GUEST_BLOCKS + vcpu->index * GUEST_BLOCK_BYTES;
}
#define MEMORY_TABLES(vcpus) round_up(GUEST_BLOCKS + (vcpus)*GUEST_BLOCK_BYTES, 4096)

/* --- cpu.c: KVM itself */
int cpu_open(struct microvm *vm, struct jaunt_error *error);
void cpu_close(struct microvm *vm);
int cpu_create_vcpu(struct vcpu *vcpu, struct jaunt_error *error);
/* What KVM is told of the i-th part of memory. */
struct kvm_userspace_memory_region cpu_slot(const struct microvm *vm, unsigned index);
/* Registers of a vCPU that begins with the guest program. */
int cpu_begin(struct vcpu *vcpu, struct jaunt_error *error);

/* --- cpu_state.c, state.c: what is saved */
struct state_writer;
struct state_reader;
/* Leaves out of vm->msrs what KVM does not let one read. */
int cpu_probe_msrs(struct vcpu *vcpu, struct jaunt_error *error);
int cpu_save(struct vcpu *vcpu, struct state_writer *writer, struct jaunt_error *error);
/* With a TSC of `tsc` when it is loaded. */
int cpu_load(struct vcpu *vcpu, struct state_reader *reader, uint64_t tsc,
	     struct jaunt_error *error);
int state_save(struct microvm *vm, void **state, size_t *bytes, struct jaunt_error *error);
int state_load(struct microvm *vm, const void *state, size_t bytes, struct jaunt_error *error);

/* --- vcpu.c: the threads */
int vcpu_start_threads(struct microvm *vm, struct jaunt_error *error);
void vcpu_end_threads(struct microvm *vm);
/* Both wait; run returns the time of the first entry. park: -ETIMEDOUT when a vCPU does not stop in
 * time; the order to stop stands all the same, until run takes it back.
 */
int vcpu_park_all(struct microvm *vm, struct jaunt_error *error);
int vcpu_run_all(struct microvm *vm, uint64_t *first_entry_ns, struct jaunt_error *error);
/* Answers a port call, on the vCPU's thread. */
uint32_t vcpu_port(struct vcpu *vcpu, unsigned port, const uint64_t arguments[6]);
/* Marks the first entry into the guest since the last resume; right before each entry. */
void vcpu_entering(struct vcpu *vcpu);
void vcpu_crash(struct vcpu *vcpu, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline bool vcpu_may_run(const struct vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->vm->order, memory_order_relaxed) == MACHINE_RUN;
}
/* Lets it enter the guest after a kick. Its thread, under the lock, while the order is to run. */
void vcpu_allow_entry(struct vcpu *vcpu);
/* throttle.c: what struct jaunt_vm_ops says, and where a vCPU waits while it is held; after every
 * kick, or where it finds `hold` set. */
int throttle_set(void *vm, unsigned percent, struct jaunt_error *error);
void throttle_wait(struct vcpu *vcpu);
/* Runs the guest until the order changes or it crashes. */
void cpu_run(struct vcpu *vcpu);    /* vcpu_kvm.c */
void cpu_kick(struct vcpu *vcpu);   /* vcpu_kvm.c: out of KVM_RUN, and not in again */
void thread_run(struct vcpu *vcpu); /* vcpu_thread.c */
/* Puts the registers of a thread where a vCPU starts. */
void thread_begin(struct vcpu *vcpu);
int thread_tsc_khz(uint64_t *khz, struct jaunt_error *error);

#endif
