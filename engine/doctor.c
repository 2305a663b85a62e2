/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Every finding comes from trying the thing itself where that is possible without side effects
 * (open it, set it up, one page of it), not from versions or configuration, which containers and
 * distributions make lie; what is configured is told beside it, because that is what the user can
 * change. A finding that only some uses need is not `required`, and its advice says which.
 */
#include "jaunt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/room.h"
#include "engine/findings.h"
#include "fault/soft_dirty.h"
#include "fault/uffd.h"
#include "fault/uffd_abi.h"
#include "fault/wp.h"

#define SMALLEST_GUEST_BYTES MIB(64)
#define PAGE_BYTES           4096u
/* 64 streams, 16 fault threads with a userfaultfd and an urgent channel each, a ring for every one
 * of them, and what the program itself holds. */
#define NEEDED_FILES 256u

#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

/* A number in a file of one line; -1 if there is none. */
static long read_setting(const char *path)
{
	long value = -1;
	FILE *file = fopen(path, "re");
	if (file && fscanf(file, "%ld", &value) != 1)
		value = -1;
	if (file)
		fclose(file);
	return value;
}

static bool has_capability(unsigned capability)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};
	if (syscall(SYS_capget, &head, data))
		return false;
	return data[capability / 32].effective >> (capability % 32) & 1;
}

static void check_kernel(struct findings *findings)
{
	struct utsname name;
	int major = 0, minor = 0;

	uname(&name);
	sscanf(name.release, "%d.%d", &major, &minor);
	bool ok = major > 5 || (major == 5 && minor >= 14);
	struct jaunt_check *check = findings_add(findings, "kernel", REQUIRED, ok);
	finding_found(check, "Linux %.60s, %.30s", name.release, name.machine);
	finding_advise(
		check,
		"post-copy needs minor faults of userfaultfd on shared memory: run Linux 5.14 "
		"or newer (6.1 or newer is better)");
}

/* --- userfaultfd
 * ------------------------------------------------------------------------------------- */

static void check_userfaultfd_ways(struct findings *findings)
{
	long unprivileged = read_setting("/proc/sys/vm/unprivileged_userfaultfd");
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct jaunt_check *check =
		findings_add(findings, "userfaultfd.syscall", OPTIONAL, fd >= 0);
	finding_found(check, "%s (vm.unprivileged_userfaultfd=%ld, CAP_SYS_PTRACE: %s)",
		      fd >= 0 ? "allowed" : strerror(errno), unprivileged,
		      has_capability(CAP_SYS_PTRACE) ? "yes" : "no");
	finding_advise(check, "one of the two ways is enough; for this one run as root or with "
			      "CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1");
	if (fd >= 0)
		close(fd);

	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int code = errno;
	fd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (device >= 0 && fd < 0)
		code = errno;
	check = findings_add(findings, "userfaultfd.device", OPTIONAL, fd >= 0);
	finding_found(check, "/dev/userfaultfd: %s", fd >= 0 ? "allowed" : strerror(code));
	finding_advise(check, "%s",
		       code == ENOENT
			       ? "one of the two ways is enough; this one needs Linux 6.1"
			       : "one of the two ways is enough; for this one give the user read "
				 "and write access to /dev/userfaultfd, for instance to a group "
				 "with a udev rule");
	if (fd >= 0)
		close(fd);
	if (device >= 0)
		close(device);
}

/* One page by COPY and one by CONTINUE, as a migration would. */
static const char *try_userfaultfd(const struct uffd *uffd)
{
	static const uint8_t bytes[PAGE_BYTES];
	const char *wrong = NULL;
	struct jaunt_error error = {.code = 0};
	int fd = memfd_create("jaunt-doctor", MFD_CLOEXEC);
	uint8_t *view = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, 2 * PAGE_BYTES))
		view = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (view == MAP_FAILED) {
		wrong = "no memfd";
		goto out;
	}
	uint64_t address = (uintptr_t)view;
	if (uffd_register(uffd, address, 2 * PAGE_BYTES, &error))
		wrong = "register fails";
	else if (uffd_copy(uffd, address, bytes, PAGE_BYTES, UFFD_WAKE) != PAGE_BYTES)
		wrong = "COPY fails";
	else if (pwrite(fd, "j", 1, PAGE_BYTES) != 1 ||
		 uffd_continue(uffd, address + PAGE_BYTES, PAGE_BYTES, UFFD_WAKE) != PAGE_BYTES)
		wrong = "CONTINUE fails";
	else if (view[PAGE_BYTES] != 'j')
		wrong = "CONTINUE shows other bytes than the file";
	munmap(view, 2 * PAGE_BYTES);
out:
	if (fd >= 0)
		close(fd);
	return wrong;
}

static void check_userfaultfd(struct findings *findings)
{
	static const struct {
		const char *name;
		uint64_t bit;
		enum need need;
		const char *advice;
	} features[] = {
		{"uffd.MISSING_SHMEM", UFFD_FEATURE_MISSING_SHMEM, REQUIRED,
		 "run a kernel with CONFIG_USERFAULTFD and CONFIG_SHMEM"},
		{"uffd.MINOR_SHMEM", UFFD_FEATURE_MINOR_SHMEM, REQUIRED,
		 "run Linux 5.14 or newer, on x86-64 or arm64"},
		{"uffd.EXACT_ADDRESS", UFFD_FEATURE_EXACT_ADDRESS, OPTIONAL,
		 "without it faults are known by page only; Linux 5.18 or newer has it"},
		{"uffd.MISSING_HUGETLBFS", UFFD_FEATURE_MISSING_HUGETLBFS, OPTIONAL,
		 "needed for guests in 2 MiB pages: run a kernel with CONFIG_HUGETLBFS"},
		{"uffd.MINOR_HUGETLBFS", UFFD_FEATURE_MINOR_HUGETLBFS, OPTIONAL,
		 "needed for guests in 2 MiB pages: run Linux 5.13 or newer with "
		 "CONFIG_HUGETLBFS"},
		{"uffd.WP_ASYNC", UFFD_FEATURE_WP_ASYNC, OPTIONAL,
		 "needed to track writes of another program's guest: run Linux 6.7 or newer"},
		{"uffd.POISON", UFFD_FEATURE_POISON, OPTIONAL,
		 "needed to hand on memory errors of the source: run Linux 6.6 or newer"},
	};
	struct jaunt_error error = {.code = 0};
	struct uffd uffd;
	int result = uffd_open(&uffd, &error);
	struct jaunt_check *check = findings_add(findings, "userfaultfd", REQUIRED, !result);

	if (result) {
		const char *advice = strchr(error.text, ';');
		size_t length = advice ? (size_t)(advice - error.text) : strlen(error.text);
		finding_found(check, "%.*s", (int)length, error.text);
		finding_advise(check, "%.500s", advice ? advice + 2 : "see the findings beside it");
		return;
	}
	const char *wrong = try_userfaultfd(&uffd);
	check->ok = !wrong;
	finding_found(check, "%s", wrong ? wrong : "COPY and CONTINUE work on shared memory");
	finding_advise(check,
		       "userfaultfd can be opened but does not work: free memory, or run another "
		       "kernel");
	for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		check = findings_add(findings, features[i].name, features[i].need,
				     uffd.features & features[i].bit);
		finding_found(check, "%s", check->ok ? "offered" : "not offered by this kernel");
		finding_advise(check, "%s", features[i].advice);
	}
	uffd_close(&uffd);
}

/* --- Dirty tracking, for modes that copy memory while the VM runs
 * ------------------------------------ */

static void check_view_tracking(struct findings *findings)
{
	char why[256] = "";
	bool write_protect = wp_supported(why, sizeof(why)), soft_dirty = soft_dirty_supported();

	struct jaunt_check *check =
		findings_add(findings, "tracker.write-protect", OPTIONAL, write_protect);
	finding_found(check, "%s",
		      write_protect ? "asynchronous write-protection and PAGEMAP_SCAN work"
				    : "not to be had");
	finding_advise(
		check,
		"needed to track writes of another program's guest, or of one without KVM: run "
		"Linux 6.7 or newer (%.300s)",
		why);
	check = findings_add(findings, "tracker.soft-dirty", OPTIONAL, soft_dirty || write_protect);
	finding_found(check, "%s%s", soft_dirty ? "the kernel has it" : "this kernel has none",
		      write_protect ? "; not needed" : "");
	finding_advise(
		check,
		"takes the place of write-protection, at the price of a short pause for each "
		"round, but for guests in huge pages: run a kernel with CONFIG_MEM_SOFT_DIRTY, or "
		"Linux 6.7 or newer");
}

static void check_kvm_tracking(struct findings *findings)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return; /* said already */
	int manual = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	int ring = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING);
	close(fd);

	struct jaunt_check *check =
		findings_add(findings, "tracker.dirty-log", OPTIONAL, manual > 0);
	finding_found(check, "%s", manual > 0 ? "with manual protection" : "reading it clears it");
	finding_advise(check, "works, but guests are slowed down more: run Linux 5.0 or newer");
	check = findings_add(findings, "tracker.dirty-ring", OPTIONAL, ring > 0);
	if (ring > 0)
		finding_found(check, "up to %d entries for each vCPU",
			      ring / (int)sizeof(struct kvm_dirty_gfn));
	else
		finding_found(check, "not offered by this kernel");
	finding_advise(check, "works without it, by the dirty log; Linux 5.11 or newer has it");
}

/* --- io_uring and KVM
 * ---------------------------------------------------------------------------------- */

static int try_uring(unsigned flags, unsigned *features)
{
	struct io_uring_params parameters = {.flags = flags};
	int fd = (int)syscall(SYS_io_uring_setup, 4, &parameters);
	if (fd < 0)
		return -errno;
	*features = parameters.features;
	close(fd);
	return 0;
}

static void check_uring(struct findings *findings)
{
	long disabled = read_setting("/proc/sys/kernel/io_uring_disabled");
	unsigned features = 0;
	int result = try_uring(0, &features);
	struct jaunt_check *check = findings_add(findings, "io_uring", REQUIRED, !result);

	if (result)
		finding_found(check, "%s (kernel.io_uring_disabled=%ld)", strerror(-result),
			      disabled);
	else
		finding_found(check, "works, features 0x%x", features);
	if (result == -ENOSYS)
		finding_advise(
			check,
			"run a kernel with CONFIG_IO_URING, or take it off the seccomp filter "
			"of this container");
	else if (disabled > 0)
		finding_advise(check, "set sysctl kernel.io_uring_disabled=0%s",
			       disabled == 1 ? ", or run as root, or as a member of the group in "
					       "kernel.io_uring_group"
					     : "");
	else
		finding_advise(
			check,
			"allow io_uring in the seccomp filter of this container, or raise the "
			"limits of locked memory and open files");
	if (result)
		return;
	result = try_uring(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, &features);
	check = findings_add(findings, "io_uring.DEFER_TASKRUN", OPTIONAL, !result);
	finding_found(check, "%s", result ? "not offered by this kernel" : "offered");
	finding_advise(check, "works without it, somewhat slower; Linux 6.1 or newer has it");
}

static void check_kvm(struct findings *findings)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int code = errno;
	int version = fd < 0 ? -1 : ioctl(fd, KVM_GET_API_VERSION, 0);
	struct jaunt_check *check =
		findings_add(findings, "kvm", REQUIRED, version == KVM_API_VERSION);

	if (fd < 0)
		finding_found(check, "/dev/kvm: %s", strerror(code));
	else
		finding_found(check, "/dev/kvm, API version %d", version);
	if (fd >= 0)
		finding_advise(check, "/dev/kvm does not speak KVM's API %d; run Linux",
			       KVM_API_VERSION);
	else if (code == EACCES || code == EPERM)
		finding_advise(check,
			       "this user may not open /dev/kvm: add it to the group kvm (usermod "
			       "-aG kvm USER) and log in again, or run as root");
	else if (code == ENOENT || code == ENODEV || code == ENXIO)
		finding_advise(check,
			       "load kvm_intel or kvm_amd and turn virtualisation on in the "
			       "firmware; in a virtual machine, have nested virtualisation turned "
			       "on; in a container, pass /dev/kvm in");
	else
		finding_advise(check, "see the kernel log for kvm");
	if (fd >= 0)
		close(fd);
}

/* --- Memory and limits
 * --------------------------------------------------------------------------------- */

static void check_memory(struct findings *findings)
{
	struct room room;
	struct jaunt_check *check;
	int result = room_measure(&room, NULL);

	if (result) {
		check = findings_add(findings, "memory", REQUIRED, false);
		finding_found(check, "/proc/meminfo: %s", strerror(-result));
		finding_advise(check, "mount /proc");
		return;
	}
	check = findings_add(findings, "memory", REQUIRED,
			     room.memory_bytes >= SMALLEST_GUEST_BYTES);
	finding_found(check, "%s available of %s", finding_amount(room.memory_bytes).text,
		      finding_amount(room.memory_total_bytes).text);
	finding_advise(check, "end other programs: the smallest guest needs %s",
		       finding_amount(SMALLEST_GUEST_BYTES).text);

	check = findings_add(findings, "memory.cgroup", REQUIRED,
			     room.cgroup_bytes_free >= SMALLEST_GUEST_BYTES);
	if (room.cgroup_bytes_free == ROOM_UNLIMITED)
		finding_found(check, "no control group limits this process");
	else
		finding_found(check, "%s left of %s, %s used, in %.150s",
			      finding_amount(room.cgroup_bytes_free).text,
			      finding_amount(room.cgroup_limit_bytes).text,
			      finding_amount(room.cgroup_used_bytes).text, room.cgroup);
	finding_advise(check, "raise the limit of that group (memory.max, or "
			      "memory.limit_in_bytes; MemoryMax= of "
			      "its systemd unit; --memory of its container), or end others in it");

	long overcommit = read_setting("/proc/sys/vm/overcommit_memory");
	check = findings_add(findings, "memory.overcommit", OPTIONAL, overcommit != 2);
	finding_found(check, "vm.overcommit_memory=%ld", overcommit);
	finding_advise(check,
		       "with 2, memory that a guest never touches counts too; a large sparse guest "
		       "needs sysctl vm.overcommit_memory=0");

	check = findings_add(findings, "hugepages", OPTIONAL, room.hugepage_bytes_free > 0);
	finding_found(check, "of 2 MiB: %llu total, %llu reserved, %llu (%s) free for a guest",
		      (unsigned long long)(room.hugepage_bytes_total / MIB(2)),
		      (unsigned long long)(room.hugepage_bytes_reserved / MIB(2)),
		      (unsigned long long)(room.hugepage_bytes_free / MIB(2)),
		      finding_amount(room.hugepage_bytes_free).text);
	finding_advise(check,
		       "needed for guests in 2 MiB pages: set sysctl vm.nr_hugepages to half the "
		       "guest's MiB, early after boot (and hugetlb.2MB.max of a control group)");

	check = findings_add(findings, "shm", OPTIONAL, room.shm_bytes >= SMALLEST_GUEST_BYTES);
	finding_found(check, "%s free in /dev/shm", finding_amount(room.shm_bytes).text);
	finding_advise(check,
		       "needed for guests whose memory is a named file: mount -o remount,size=... "
		       "/dev/shm, or remove files from it");
}

static void check_limits(struct findings *findings)
{
	struct rlimit limit = {0};
	bool exempt = has_capability(CAP_IPC_LOCK);

	getrlimit(RLIMIT_MEMLOCK, &limit);
	uint64_t bytes = limit.rlim_cur == RLIM_INFINITY ? ROOM_UNLIMITED : limit.rlim_cur;
	struct jaunt_check *check =
		findings_add(findings, "limit.memlock", OPTIONAL, exempt || bytes >= MIB(8));
	finding_found(check, "%s locked memory%s", finding_amount(bytes).text,
		      exempt ? ", not enforced (CAP_IPC_LOCK)" : "");
	finding_advise(check,
		       "io_uring on older kernels and RDMA lock memory: raise it (ulimit -l, "
		       "LimitMEMLOCK= of a systemd unit, or /etc/security/limits.conf)");

	getrlimit(RLIMIT_NOFILE, &limit);
	check = findings_add(findings, "limit.nofile", REQUIRED, limit.rlim_cur >= NEEDED_FILES);
	if (limit.rlim_cur == RLIM_INFINITY)
		finding_found(check, "unlimited open files");
	else
		finding_found(check, "%llu open files", (unsigned long long)limit.rlim_cur);
	finding_advise(
		check,
		"many streams need up to %u: raise it (ulimit -n, LimitNOFILE= of a systemd unit)",
		NEEDED_FILES);
}

size_t jaunt_doctor(struct jaunt_check *checks, size_t room)
{
	struct findings findings = {.checks = checks, .room = room};

	check_kernel(&findings);
	check_kvm(&findings);
	check_userfaultfd(&findings);
	check_userfaultfd_ways(&findings);
	check_view_tracking(&findings);
	check_kvm_tracking(&findings);
	check_uring(&findings);
	check_memory(&findings);
	check_limits(&findings);
	doctor_rdma(&findings, has_capability(CAP_IPC_LOCK));
	return findings.count;
}
