/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Corruption on purpose: the fault-injection points that change what a source sends. Compiled in
 * with JAUNT_INJECT only. It shows that the checks which should catch each kind do so.
 */
#ifndef ENGINE_SOURCE_TAMPER_H
#define ENGINE_SOURCE_TAMPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/guestmem.h"

enum tamper { TAMPER_NONE, TAMPER_LOST, TAMPER_TWICE };

#ifdef JAUNT_INJECT
/* Keeps what it needs for stale copies; while the VM runs. */
void tamper_prepare(const struct guestmem *memory);
void tamper_forget(void);
/* Whether any such point is armed: then every page must pass through tamper_page(). */
bool tamper_active(void);
/* May change the page's bytes. LOST: zeros have been put in their place. TWICE: send it twice. */
enum tamper tamper_page(const struct guest_region *region, uint64_t page, uint8_t *bytes);
#else
static inline void tamper_prepare(const struct guestmem *memory)
{
	(void)memory;
}
static inline void tamper_forget(void)
{
}
static inline bool tamper_active(void)
{
	return false;
}
static inline enum tamper tamper_page(const struct guest_region *region, uint64_t page,
				      uint8_t *bytes)
{
	(void)region, (void)page, (void)bytes;
	return TAMPER_NONE;
}
#endif
#endif
