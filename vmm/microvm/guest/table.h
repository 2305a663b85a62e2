/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page of the `kv` workload: one bucket of a hash table that, like a cache, forgets an entry when
 * another needs its slot. Behind the page header (page.h) and four spare lanes come 63 slots of 64
 * bytes: key, version of the value, six lanes of value that follow from the two. The check value in
 * the page header covers all of it.
 */
#ifndef VMM_MICROVM_GUEST_TABLE_H
#define VMM_MICROVM_GUEST_TABLE_H

#include "page.h"

#define TABLE_SLOTS      63
#define TABLE_SLOT_LANES 8
#define TABLE_FIRST_LANE 8
/* Keys that share a bucket: more than its slots, so that some gets miss. */
#define TABLE_KEYS 80

static inline volatile uint64_t *table_slot(volatile uint64_t *page, uint64_t slot)
{
	return page + TABLE_FIRST_LANE + slot * TABLE_SLOT_LANES;
}

static inline uint64_t table_check(const volatile uint64_t *page)
{
	uint64_t sum = 0;
	for (unsigned i = PAGE_HEADER_LANES; i < GUEST_PAGE_LANES; i++)
		sum = page_fold(sum, page[i]);
	return sum;
}

static inline enum guest_fault table_verify(const volatile uint64_t *page, uint64_t index,
					    uint64_t owner)
{
	enum guest_fault fault = page_verify_header(page, index, owner);
	if (fault)
		return fault;
	return table_check(page) == page[3] ? GUEST_FINE : GUEST_FAULT_CONTENTS;
}

static inline void table_write_slot(volatile uint64_t *slot, uint64_t key, uint64_t version)
{
	uint64_t seed = page_element(key, version);
	slot[0] = key;
	slot[1] = version;
	for (unsigned i = 2; i < TABLE_SLOT_LANES; i++)
		slot[i] = page_lane(seed, i);
}

static inline int table_slot_is_whole(const volatile uint64_t *slot)
{
	uint64_t seed = page_element(slot[0], slot[1]), wrong = 0;
	for (unsigned i = 2; i < TABLE_SLOT_LANES; i++)
		wrong |= slot[i] ^ page_lane(seed, i);
	return !wrong;
}

static inline void table_seal(volatile uint64_t *page, uint64_t index, uint64_t owner,
			      uint64_t version)
{
	page[0] = index;
	page[1] = version;
	page[2] = owner;
	page[3] = table_check(page);
}

/* The bucket of keys `first`, `first + stride`, `first + 2 stride`, … */
static inline void table_write(volatile uint64_t *page, uint64_t index, uint64_t owner,
			       uint64_t version, uint64_t first, uint64_t stride)
{
	for (unsigned i = PAGE_HEADER_LANES; i < TABLE_FIRST_LANE; i++)
		page[i] = page_lane(owner, i);
	for (unsigned slot = 0; slot < TABLE_SLOTS; slot++)
		table_write_slot(table_slot(page, slot), first + slot * stride, 1);
	table_seal(page, index, owner, version);
}

/* The slot that holds the key, or TABLE_SLOTS. */
static inline unsigned table_find(volatile uint64_t *page, uint64_t key)
{
	unsigned slot = 0;
	while (slot < TABLE_SLOTS && table_slot(page, slot)[0] != key)
		slot++;
	return slot;
}

#endif
