/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a workload: what must not live in migrated memory, since a page and its table that
 * are stale together would go unnoticed.
 *
 * In the freestanding build these are the vCPU's registers: the busy ones in general registers that
 * the compiler leaves alone, the others in xmm registers, which it never uses for itself
 * (-mgeneral-regs-only). In the host build, for vCPUs that are threads, they are fields of a struct
 * outside guest memory. To be included before anything else that has code in it.
 */
#ifndef VMM_MICROVM_GUEST_REGISTERS_H
#define VMM_MICROVM_GUEST_REGISTERS_H

#include <stdint.h>

#include "abi.h"

/*
 * block            address of this vCPU's block
 * mode             enum guest_mode
 * errors           memory errors found
 * poll_due         tsc
 * operation_end    tsc at the end of the last step
 * stall            longest since the last poll, in cycles
 * stall_end        tsc
 * operation_due    tsc; paced workloads
 * touches          recorded since the last poll
 * touches_dropped  for want of room since the last poll
 * window_tail      discard: units written again so far
 * window_page      discard: page of the tail unit to write next
 */
#define GUEST_COLD_REGISTERS(each)                                                                 \
	each(block, "xmm15") each(mode, "xmm14") each(errors, "xmm13") each(poll_due, "xmm12")     \
		each(operation_end, "xmm11") each(stall, "xmm10") each(stall_end, "xmm9")          \
			each(operation_due, "xmm8") each(touches, "xmm7")                          \
				each(touches_dropped, "xmm6") each(window_tail, "xmm5")            \
					each(window_page, "xmm4")

#ifdef GUEST_FREESTANDING

register uint64_t guest_hash __asm__("rbx");         /* sum of (page, version) over all pages */
register uint64_t guest_operations __asm__("rbp");   /* done since the first start */
register uint64_t guest_random __asm__("r12");       /* state of the generator, never 0 */
register uint64_t guest_cursor __asm__("r13");       /* sweep, discard: writes so far */
register uint64_t guest_sum __asm__("r14");          /* guest_hash as the running check finds it */
register uint64_t guest_check_cursor __asm__("r15"); /* pages the running check has seen */

#define GUEST_COLD(name, register)                                                                 \
	static inline uint64_t guest_##name(void)                                                  \
	{                                                                                          \
		uint64_t value = 0;                                                                \
		__asm__ volatile("movq %%" register ", %0" : "=r"(value));                         \
		return value;                                                                      \
	}                                                                                          \
	static inline void guest_set_##name(uint64_t value)                                        \
	{                                                                                          \
		__asm__ volatile("movq %0, %%" register : : "r"(value));                           \
	}

static inline uint64_t guest_tsc_offset(void)
{
	return 0;
}

#else

struct guest_thread {
	struct {
		uint64_t hash, operations, random, cursor, sum, check_cursor;
#define GUEST_COLD_FIELD(name, register) uint64_t name;
		GUEST_COLD_REGISTERS(GUEST_COLD_FIELD)
		uint64_t tsc_offset; /* what a hypervisor would add to the host's TSC */
	} registers;
	/* A copy: the one in guest memory came from another host, and no page fault of the guest's
	 * own would end a program that is led astray. */
	struct guest_parameters parameters;
	uint8_t *memory; /* where guest address 0 is */
	uint64_t memory_bytes;
	uint32_t (*call)(void *context, unsigned port, const uint64_t arguments[6]);
	void *context;
};

/* Set by the thread that is a vCPU before its first step. */
extern _Thread_local struct guest_thread *guest_thread;

#define guest_hash         (guest_thread->registers.hash)
#define guest_operations   (guest_thread->registers.operations)
#define guest_random       (guest_thread->registers.random)
#define guest_cursor       (guest_thread->registers.cursor)
#define guest_sum          (guest_thread->registers.sum)
#define guest_check_cursor (guest_thread->registers.check_cursor)

#define GUEST_COLD(name, register)                                                                 \
	static inline uint64_t guest_##name(void)                                                  \
	{                                                                                          \
		return guest_thread->registers.name;                                               \
	}                                                                                          \
	static inline void guest_set_##name(uint64_t value)                                        \
	{                                                                                          \
		guest_thread->registers.name = value;                                              \
	}

static inline uint64_t guest_tsc_offset(void)
{
	return guest_thread->registers.tsc_offset;
}

#endif

GUEST_COLD_REGISTERS(GUEST_COLD)

#endif
