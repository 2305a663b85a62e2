/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tells one storage from another, found out on this host: the inode of a file, the filesystem
 * it lies on and whose that is, the name that a block device has everywhere. Lines of a fact; what
 * they mean beside another host's is for vmm/qemu/identity.
 */
#ifndef VMM_QEMU_STORAGE_H
#define VMM_QEMU_STORAGE_H

#include <sys/types.h>

#include "vmm/qemu/facts.h"

/* Of a path as a process sees it, which must have it open: a name may have passed to another file
 * since. `digest`: of the contents too, where they are small. */
void storage_tell_file(struct facts *facts, const char *key, pid_t process, const char *path,
		       bool digest);
/* Of what a process has open under that number. */
void storage_tell_descriptor(struct facts *facts, const char *key, pid_t process, int descriptor,
			     bool digest);

/* The name that a block device has on every host, "" if it has none; `sysfs` is "/sys". */
void storage_wwid(const char *sysfs, unsigned major, unsigned minor, char *text, size_t room);

/* The filesystem and the source of a mount, by a table like /proc/PID/mountinfo; false: it is not
 * there. `below` is the path of a file in the filesystem, if `path` lies under the mount. */
struct storage_mount {
	char type[64], source[1024], below[4096];
};
bool storage_mount(const char *table, unsigned long mount, const char *path,
		   struct storage_mount *out);

#endif
