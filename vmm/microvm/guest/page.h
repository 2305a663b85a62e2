/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest page contains, and how to tell that it is whole.
 *
 * Lane 0 holds the page's index, lane 1 its version, lane 2 its owner, lane 3 a check value over
 * all the lanes behind. The rest follows from (owner, index, version) and does not compress. A page
 * that is zero, of another place, torn, or flipped by a bit is seen by page_verify(); one that is
 * valid but old is for the caller to see, who knows the version from registers.
 */
#ifndef VMM_MICROVM_GUEST_PAGE_H
#define VMM_MICROVM_GUEST_PAGE_H

#include "abi.h"

#define PAGE_HEADER_LANES 4

static inline uint64_t page_mix(uint64_t x)
{
	/* The finalizer of splitmix64. */
	x ^= x >> 30;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	x ^= x >> 27;
	x *= UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* What (index, version) adds to the set-hash of a vCPU's pages. */
static inline uint64_t page_element(uint64_t index, uint64_t version)
{
	return page_mix(page_mix(index + UINT64_C(0x9e3779b97f4a7c15)) ^ version);
}

static inline uint64_t page_key(uint64_t owner, uint64_t index, uint64_t version)
{
	return page_mix(owner ^ page_element(index, version));
}

/* One multiplication a lane: enough to defeat compression, cheap enough to rewrite whole pages. */
static inline uint64_t page_lane(uint64_t key, uint64_t lane)
{
	uint64_t x = key + lane * UINT64_C(0x9e3779b97f4a7c15);
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 32;
}

static inline uint64_t page_fold(uint64_t sum, uint64_t lane)
{
	return (sum << 7 | sum >> 57) + lane;
}

/* Is the header one of this page? */
static inline enum guest_fault page_verify_header(const volatile uint64_t *page, uint64_t index,
						  uint64_t owner)
{
	uint64_t found = page[0];
	if (found != index)
		return found | page[1] | page[2] | page[3] ? GUEST_FAULT_INDEX : GUEST_FAULT_ZERO;
	if (page[2] != owner)
		return GUEST_FAULT_OWNER;
	return page[1] ? GUEST_FINE : GUEST_FAULT_VERSION;
}

/* Generated contents, all of them. */
static inline enum guest_fault page_verify(const volatile uint64_t *page, uint64_t index,
					   uint64_t owner)
{
	enum guest_fault fault = page_verify_header(page, index, owner);
	if (fault)
		return fault;
	uint64_t key = page_key(owner, index, page[1]), wrong = 0, sum = 0;
	for (uint64_t i = PAGE_HEADER_LANES; i < GUEST_PAGE_LANES; i++) {
		uint64_t lane = page[i];
		wrong |= lane ^ page_lane(key, i);
		sum = page_fold(sum, lane);
	}
	return wrong || sum != page[3] ? GUEST_FAULT_CONTENTS : GUEST_FINE;
}

static inline void page_write(volatile uint64_t *page, uint64_t index, uint64_t owner,
			      uint64_t version)
{
	uint64_t key = page_key(owner, index, version), sum = 0;
	page[0] = index;
	page[1] = version;
	page[2] = owner;
	for (uint64_t i = PAGE_HEADER_LANES; i < GUEST_PAGE_LANES; i++) {
		uint64_t lane = page_lane(key, i);
		page[i] = lane;
		sum = page_fold(sum, lane);
	}
	page[3] = sum;
}

static inline int page_is_zero(const volatile uint64_t *page)
{
	uint64_t any = 0;
	for (unsigned i = 0; i < GUEST_PAGE_LANES; i++)
		any |= page[i];
	return !any;
}

#endif
