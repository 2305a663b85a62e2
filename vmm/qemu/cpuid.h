/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The words of CPUID that an x86 processor of QEMU's shows to its guest, as its property
 * "feature-words" has them: one question tells what hundreds of properties say, one flag each.
 * Without state.
 */
#ifndef VMM_QEMU_CPUID_H
#define VMM_QEMU_CPUID_H

#include <jansson.h>
#include <stdbool.h>

#define CPUID_NAME_MAX 48

/* Whether what the property of that name says is in `words`. One that Jaunt does not know is not,
 * whatever it is. */
bool cpuid_says(const json_t *words, const char *property);
/* Calls `take` with the name of each bit that is set: that of QEMU's property, or, of a bit that
 * Jaunt has no name for, where it is. */
void cpuid_each(const json_t *words, void (*take)(void *context, const char *name), void *context);

#endif
