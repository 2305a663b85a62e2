/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One userfaultfd: opening, negotiating, registering, and the ioctls that resolve faults, each as
 * one system call with the kernel's answer told exactly. What to do about an answer is the engine's
 * affair (engine/target/install). Any thread may call the ioctls; addresses are those of the
 * address space the userfaultfd belongs to. Knows nothing of networks or migrations.
 */
#ifndef FAULT_UFFD_H
#define FAULT_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"

struct uffd {
	int fd;            /* non-blocking, close-on-exec; -1: closed */
	uint64_t features; /* what the kernel offers, or was agreed on before (UFFD_FEATURE_*) */
	bool wp_async;     /* write-protection that lifts itself was agreed on: see wp.h */
};

/* Opens one in this process: the system call, and on any error /dev/userfaultfd; never one that is
 * restricted to faults from user mode, since a vCPU's faults come from the kernel. Then negotiates
 * (uffd_adopt). The error says which permission is missing and how to grant it. */
int uffd_open(struct uffd *uffd, struct jaunt_error *error);

/* Negotiates UFFDIO_API on a userfaultfd made by someone else, and owns it. Requires MISSING and
 * MINOR on shmem; on hugetlbfs if there is need of it: `hugetlb`. Where the kernel has asynchronous
 * write-protection it is agreed on, too: a VM that came by this userfaultfd may leave by it, and
 * there is no second negotiation: one that was adopted before is taken as it was agreed on then. No
 * UFFD_FEATURE_EVENT_* is requested. */
int uffd_adopt(struct uffd *uffd, int fd, bool hugetlb, struct jaunt_error *error);

void uffd_close(struct uffd *uffd);

/* MISSING and MINOR faults of [address, address + bytes). */
int uffd_register(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		  struct jaunt_error *error);
/* Asynchronous write-protection of the range instead; nothing is protected yet. Needs wp_async. */
int uffd_register_wp(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		     struct jaunt_error *error);
int uffd_unregister(const struct uffd *uffd, uint64_t address, uint64_t bytes);

/* Each returns the bytes done, which may be fewer than asked for (waiters on those were woken,
 * unless told not to), or -errno when nothing was done: EAGAIN the mappings are changing; EEXIST
 * the first page is there already, nobody was woken; EFAULT (continue) the file has no such page;
 * ENOENT the range is not registered; ESRCH the process is gone; ENOMEM, ENOSPC. */
enum uffd_wake { UFFD_WAKE, UFFD_DONT_WAKE };
int64_t uffd_copy(const struct uffd *uffd, uint64_t to, const void *from, uint64_t bytes,
		  enum uffd_wake wake);
int64_t uffd_continue(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		      enum uffd_wake wake);
int64_t uffd_zeropage(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		      enum uffd_wake wake);
/* Wakes whoever waits on the range; 0 or -errno. */
int uffd_wake(const struct uffd *uffd, uint64_t address, uint64_t bytes);

/* The bounce of one feature bit into words: "MINOR_SHMEM", for doctor and messages. */
const char *uffd_feature_name(unsigned bit);

#endif
