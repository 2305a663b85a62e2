/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a storage lies, out of the name that QEMU has for it: a path, an address, or one of its
 * "json:{…}" names with both wrapped in filters. Pure.
 */
#ifndef VMM_QEMU_LOCATION_H
#define VMM_QEMU_LOCATION_H

#define LOCATION_TEXT_MAX 4096

enum location_kind {
	LOCATION_FILE,    /* `text`: the path, of a file or a block device */
	LOCATION_NETWORK, /* `text`: the address */
	LOCATION_NOTHING, /* reads as zeros */
	LOCATION_PASSED,  /* a device or folder of the host that QEMU passes through */
	LOCATION_UNKNOWN,
};

struct location {
	enum location_kind kind;
	char driver[32]; /* QEMU's word for it */
	char text[LOCATION_TEXT_MAX];
};

void location_parse(const char *name, struct location *out);

#endif
