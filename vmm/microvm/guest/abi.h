/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest program and its monitor agree on: workloads, ports, and what lies where in guest
 * memory. Compiled into both. Everything here is plain numbers; addresses are guest-physical.
 *
 * A port call is `in eax, dx` with up to six arguments in rdi, rsi, rcx, r8, r9 and r10 (a function
 * call where the vCPU is a thread of the host).
 */
#ifndef VMM_MICROVM_GUEST_ABI_H
#define VMM_MICROVM_GUEST_ABI_H

#include <stdint.h>

/* The unit of the guest's own checks, whatever the page size of the backing file. */
#define GUEST_PAGE_BYTES UINT64_C(4096)
#define GUEST_PAGE_LANES 512

enum guest_workload {
	GUEST_IDLE,
	GUEST_SWEEP,
	GUEST_RANDOM,
	GUEST_READ,
	GUEST_ZIPF,
	GUEST_KV,
	GUEST_DISCARD,
	GUEST_WORKLOADS
};

enum guest_port {
	/* operations, errors, tsc, longest stall since the last poll, tsc at its end,
	 * touches recorded since the last poll | touches dropped << 32 → enum guest_command */
	GUEST_PORT_POLL = 0x10,
	/* enum guest_report, operations, errors, tsc → 0 */
	GUEST_PORT_REPORT,
	/* first guest page, pages → 0; their contents are gone when it returns */
	GUEST_PORT_DISCARD,
	/* cycles → 0; returns after that time, or sooner */
	GUEST_PORT_IDLE,
	/* page, enum guest_fault, version expected (0: not known), version found, errors → 0 */
	GUEST_PORT_ERROR,
};

enum guest_command { GUEST_GO_ON, GUEST_SELF_CHECK };

enum guest_report {
	GUEST_REPORT_READY,   /* the working set is populated */
	GUEST_REPORT_SWEPT,   /* one pass of the background check is over */
	GUEST_REPORT_CHECKED, /* the self-check that was asked for is over */
};

/* What the guest found wrong with its memory. */
enum guest_fault {
	GUEST_FINE,
	GUEST_FAULT_ZERO,     /* zeros where something had been written */
	GUEST_FAULT_INDEX,    /* another page's contents, or no page of ours */
	GUEST_FAULT_OWNER,    /* another vCPU's or another run's page */
	GUEST_FAULT_VERSION,  /* valid, but not the version the registers know */
	GUEST_FAULT_CONTENTS, /* contents do not fit the header: torn or flipped */
	GUEST_FAULT_SUM,      /* the set-hash over (page, version) differs: some page is stale */
	GUEST_FAULTS
};

/* A touch that took longer than slow_cycles. */
struct guest_touch {
	uint64_t page; /* guest page */
	uint64_t tsc;  /* before the touch */
	uint64_t cycles;
};

#define GUEST_TOUCHES 65536 /* records a vCPU can hold between two polls */
#define GUEST_BUCKETS 65536 /* ticks of 1 ms */

/* One tick's operations: tick number << 32 | count. */
#define GUEST_BUCKET_TICK(bucket)  ((uint32_t)((bucket) >> 32))
#define GUEST_BUCKET_COUNT(bucket) ((uint32_t)(bucket))

/* Written once before the vCPU runs, constant from then on: what changes lives in registers. */
struct guest_parameters {
	uint64_t workload;
	uint64_t first_page; /* this vCPU's pages, disjoint from the others' */
	uint64_t pages;
	uint64_t unit_pages; /* what a discard gives back: one page of the backing file */
	uint64_t seed;
	uint64_t owner;           /* stands in every page: who wrote it, in which run */
	uint64_t tick_cycles;     /* 1 ms */
	uint64_t tick_reciprocal; /* 2^64 / tick_cycles */
	uint64_t slow_cycles;     /* a touch that takes longer is recorded */
	uint64_t interval_cycles; /* between operations, 0: full rate */
	uint64_t check_every; /* operations between two pages of the background check, 0: never */
};

/*
 * One block a vCPU, at GUEST_BLOCKS + index * GUEST_BLOCK_BYTES:
 * parameters, stack (growing down to them), buckets, touches.
 */
#define GUEST_BLOCK_STACK_TOP UINT64_C(0x4000)
#define GUEST_BLOCK_BUCKETS   GUEST_BLOCK_STACK_TOP
#define GUEST_BLOCK_TOUCHES   (GUEST_BLOCK_BUCKETS + GUEST_BUCKETS * UINT64_C(8))
#define GUEST_BLOCK_BYTES     (GUEST_BLOCK_TOUCHES + GUEST_TOUCHES * UINT64_C(24))

/* From the bottom of guest memory; page tables behind the blocks, workload pages behind those. */
#define GUEST_GDT          UINT64_C(0x1000)
#define GUEST_PROGRAM      UINT64_C(0x10000)
#define GUEST_PROGRAM_ROOM UINT64_C(0x10000)
#define GUEST_BLOCKS       UINT64_C(0x20000)

#endif
