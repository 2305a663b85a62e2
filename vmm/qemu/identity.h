/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether two descriptions of storage, as vmm/qemu/storage writes them, mean the same. Pure.
 */
#ifndef VMM_QEMU_IDENTITY_H
#define VMM_QEMU_IDENTITY_H

#include <stdbool.h>

enum identity {
	IDENTITY_SAME,
	IDENTITY_COPY,    /* another file, but only read here and there */
	IDENTITY_UNKNOWN, /* cannot be told */
	IDENTITY_OTHER,
};

/* `one_host`: both sides run on the same kernel. *why: unless it is the same. */
enum identity identity_of(const char *source, const char *target, bool one_host, const char **why);

#endif
