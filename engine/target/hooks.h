/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a test steps in between two steps of the installer, to make an interleaving happen that
 * would otherwise be a matter of luck, or takes one step away to show that it was needed. Compiled
 * in with JAUNT_INJECT only; whoever includes this defines nothing, install.c does.
 */
#ifndef ENGINE_TARGET_HOOKS_H
#define ENGINE_TARGET_HOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef JAUNT_INJECT

struct install_hooks {
	/* Pages are visible (or are to be zeros) and `present` is not set yet. Optional. */
	void (*before_present)(void *user, size_t region, uint64_t word, uint64_t mask);
	void *user;
	bool no_wake; /* leaves out the WAKE that follows `present`, a drop or a release */
};

/* All zero: nothing changes. Set while no page is being installed. */
extern struct install_hooks install_hooks;

#define install_hook_before_present(region, word, mask)                                            \
	do {                                                                                       \
		if (install_hooks.before_present)                                                  \
			install_hooks.before_present(install_hooks.user, region, word, mask);      \
	} while (0)
#define install_hook_no_wake() (install_hooks.no_wake)

#else

#define install_hook_before_present(region, word, mask) ((void)0)
#define install_hook_no_wake()                          (false)

#endif
#endif
