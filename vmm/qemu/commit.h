/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must be known about a VM that is being moved if the process that moves it dies: whether it
 * was stopped for that, and whether it was committed to the other side. A small file, written whole
 * each time: no file, no migration; a file without the word, no COMMIT. It is about one QEMU: of a
 * process that is gone, or another that got its number, it says nothing.
 */
#ifndef VMM_QEMU_COMMIT_H
#define VMM_QEMU_COMMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct commit {
	pid_t process;
	uint64_t started; /* of that process, see commit_started() */
	bool begun;       /* QEMU writes its state, and may stop the guest by itself for that */
	bool by_qemu;     /* and has done so, unless another had before, and writes the rest */
	bool stopped;     /* or about to be, by who moves it, or by QEMU for that, which is known by
			   * then: else it stands still for another's reasons */
	bool committed;
	char peer[128]; /* to whom */
};

/* When a process was started, as the kernel counts; 0: there is none. */
uint64_t commit_started(pid_t process);

/* 0 or -errno. It survives the death of this process, not that of the host: so does QEMU. */
int commit_write(const char *path, const struct commit *commit);
/* -ENOENT: nothing is written there, or nothing of use. */
int commit_read(const char *path, struct commit *commit);
void commit_remove(const char *path);

#endif
