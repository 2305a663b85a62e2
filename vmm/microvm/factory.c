/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target's side: is this host one on which the VM can go on? Everything is asked before
 * anything is built, so that the migration ends in prepare with a reason, rather than midway.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/room.h"
#include "vmm/microvm/cpuid.h"
#include "vmm/microvm/create.h"
#include "vmm/microvm/describe.h"

/* What a VM takes beyond its pages: threads, tables of KVM's own, what the engine needs. */
#define SLACK_BYTES(bytes) (MIB(32) + (bytes) / 64)

int microvm_check_room(const char *root, uint64_t bytes, uint64_t page_bytes,
		       struct jaunt_error *error)
{
	struct room room;
	int failed = room_measure(&room, root);
	if (failed)
		return error_set(error, -failed, "no-memory",
				 "cannot tell how much memory this host has: %s; is /proc mounted?",
				 strerror(-failed));
	if (page_bytes != 4096) {
		if (bytes <= room.hugepage_bytes_free)
			return 0;
		return error_set(
			error, ENOMEM, "no-hugepages",
			"the VM needs %" PRIu64 " MiB of huge pages, this host has %" PRIu64
			" MiB free of %" PRIu64 ": set vm.nr_hugepages to %" PRIu64 " or more",
			bytes >> 20, room.hugepage_bytes_free >> 20,
			room.hugepage_bytes_total >> 20,
			(room.hugepage_bytes_total - room.hugepage_bytes_free + bytes) / MIB(2));
	}
	uint64_t wanted = bytes + SLACK_BYTES(bytes);
	if (wanted > room.memory_bytes)
		return error_set(error, ENOMEM, "no-memory",
				 "the VM uses %" PRIu64 " MiB and needs %" PRIu64
				 " MiB here, this host has %" PRIu64
				 " MiB available: free some memory or choose another host",
				 bytes >> 20, wanted >> 20, room.memory_bytes >> 20);
	if (wanted > room.cgroup_bytes_free)
		return error_set(error, ENOMEM, "cgroup-memory",
				 "the VM uses %" PRIu64 " MiB and needs %" PRIu64
				 " MiB here, control group %s allows %" PRIu64
				 " MiB more (limit %" PRIu64
				 " MiB): raise its limit (memory.max, or memory.limit_in_bytes)",
				 bytes >> 20, wanted >> 20, room.cgroup,
				 room.cgroup_bytes_free >> 20, room.cgroup_limit_bytes >> 20);
	return 0;
}

static int check_cpu(const struct described *described, struct jaunt_error *error)
{
	int failed = microvm_check_kvm(error);
	if (failed)
		return failed;
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return error_set(error, errno, "no-kvm", "/dev/kvm: %s", strerror(errno));
	struct kvm_cpuid2 *host;
	failed = cpuid_of_host(kvm, &host, error);
	int xsave = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	close(kvm);
	if (failed)
		return failed;
	failed = cpuid_compare(described->cpuid, host, error);
	free(host);
	uint64_t room = xsave > 4096 ? (uint64_t)xsave : 4096;
	if (!failed && described->xsave_bytes > room)
		failed = error_set(error, ENOTSUP, "cpu-lacks",
				   "the source's xsave area has %" PRIu64
				   " bytes, this host's KVM takes %" PRIu64,
				   described->xsave_bytes, room);
	return failed;
}

static int check_host(const struct microvm_host *host, const struct described *described,
		      struct jaunt_error *error)
{
	if (described->thread_backed && !host->allow_thread_backed)
		return error_set(
			error, ENOTSUP, "thread-backed",
			"the VM's vCPUs are threads of its process, for tests; this side was "
			"not told to accept that");
	/* A huge page file is reserved whole, any other takes what is in use. */
	int failed = microvm_check_room(host->root,
					described->page_bytes == 4096 ? described->resident_bytes
								      : described->memory_bytes,
					described->page_bytes, error);
	if (failed || described->thread_backed)
		return failed;
	return check_cpu(described, error);
}

static int create(void *context, const struct jaunt_description *wanted, void **out,
		  struct jaunt_error *error)
{
	const struct microvm_host *host = context;
	struct described described;
	int failed = describe_parse(wanted, &described, error);
	if (!failed)
		failed = check_host(host, &described, error);
	if (failed) {
		free(described.cpuid);
		return failed;
	}
	struct microvm_config config = {.name = host->name ? host->name : wanted->name,
					.memory_bytes = described.memory_bytes,
					.vcpus = described.vcpus,
					.page_bytes = described.page_bytes,
					.workload = described.workload,
					.thread_backed = described.thread_backed,
					.tracking = host->tracking,
					.discarded = host->discarded,
					.discarded_context = host->context};
	struct microvm *vm;
	/* The set of leaves is the VM's from here on. */
	failed = microvm_create_as(&vm, &config, described.cpuid, described.tsc_khz, error);
	if (failed)
		return failed;
	if (host->created)
		host->created(host->context, vm);
	*out = vm;
	return 0;
}

static void destroy(void *context, void *vm)
{
	const struct microvm_host *host = context;
	if (host->destroyed)
		host->destroyed(host->context, vm);
	microvm_destroy(vm);
}

const struct jaunt_vm_factory microvm_factory = {
	.ops = &microvm_ops, .create = create, .destroy = destroy};
