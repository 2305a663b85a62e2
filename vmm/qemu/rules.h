/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How each item of two QEMUs' facts is compared, and whether a difference in it can be safe. An
 * item is a key, or "KEY: NAME" for one line of its value.
 */
#ifndef VMM_QEMU_RULES_H
#define VMM_QEMU_RULES_H

#include <stdbool.h>

enum how {
	HOW_EQUAL,   /* the same text */
	HOW_LINES,   /* line by line, each by the rule of its own item */
	HOW_WORDS,   /* the same words, in any order */
	HOW_OFFER,   /* as HOW_WORDS; a newer release of QEMU may have more of them */
	HOW_BOARD,   /* as HOW_WORDS; each release of QEMU has others for the same machine type */
	HOW_STORAGE, /* the same storage: see vmm/qemu/identity.h */
	HOW_FLASH,   /* contents travel with the guest: the same size and format */
	HOW_APART,   /* not the same file: it will be overwritten here */
	HOW_VERSION, /* "7.2.22": not an older one */
	HOW_REFUSED, /* cannot move, whatever the other side has */
	HOW_NOT,
};

struct rule {
	const char *pattern; /* as of fnmatch(3) */
	enum how how;
	bool may; /* be different, if the source's operator says so */
	const char *advice;
};

const struct rule *rule_of(const char *item);

#endif
