/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A userfaultfd is opened by the system call where the caller may (CAP_SYS_PTRACE, or
 * vm.unprivileged_userfaultfd=1), else through /dev/userfaultfd, whose file mode is the permission.
 * UFFD_USER_MODE_ONLY would open without any of these, but then a vCPU's faults, which the kernel
 * raises on its behalf, are answered with SIGBUS or EFAULT instead of being told to us: never used.
 *
 * UFFDIO_API may succeed only once per userfaultfd (a second one says EINVAL), and one made in
 * another process cannot be replaced by us. A request that the kernel refuses leaves the
 * userfaultfd as it was, though, so negotiation walks from the richest request to the poorest, and
 * only the last, which asks for nothing, serves to name what is missing. One that had been
 * negotiated before (it came with a VM) refuses even that; what was agreed on then is told by
 * /proc/self/fdinfo.
 *
 * The ioctls that resolve faults report twice: by errno, and by a field that holds the bytes done
 * or a negative errno. When a part was done errno is EAGAIN and the field is positive; where the
 * kernel gives up before it looks at the range (the process is gone; mappings are changing, before
 * Linux 6.16) the field is not written at all, so it is zeroed first and only believed if positive.
 */
#include "fault/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "fault/uffd_abi.h"

#define FEATURES_NEEDED  (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)
#define FEATURES_HUGETLB (UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS)
#define FEATURES_WP                                                                                \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |                        \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

/* The kernel's own mark beside the features of one that was negotiated; "API:" in fdinfo. */
#define FEATURE_NEGOTIATED (UINT64_C(1) << 31)

static const char *const feature_names[] = {
	"PAGEFAULT_FLAG_WP",
	"EVENT_FORK",
	"EVENT_REMAP",
	"EVENT_REMOVE",
	"MISSING_HUGETLBFS",
	"MISSING_SHMEM",
	"EVENT_UNMAP",
	"SIGBUS",
	"THREAD_ID",
	"MINOR_HUGETLBFS",
	"MINOR_SHMEM",
	"EXACT_ADDRESS",
	"WP_HUGETLBFS_SHMEM",
	"WP_UNPOPULATED",
	"POISON",
	"WP_ASYNC",
	"MOVE",
};

const char *uffd_feature_name(unsigned bit)
{
	if (bit >= sizeof(feature_names) / sizeof(feature_names[0]))
		return "unknown";
	return feature_names[bit];
}

static int open_by_device(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -errno;
	int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	int result = fd < 0 ? -errno : fd;
	close(device);
	return result;
}

int uffd_open(struct uffd *uffd, struct jaunt_error *error)
{
	uffd->fd = -1;
	uffd->features = 0;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		int call_errno = errno;
		fd = open_by_device();
		if (fd == -EMFILE || fd == -ENFILE)
			return error_set(error, -fd, "too-many-files",
					 "userfaultfd: %s; raise the limit of open files "
					 "(ulimit -n)",
					 strerror(-fd));
		if (fd < 0 && call_errno == ENOSYS)
			return error_set(error, ENOSYS, "userfaultfd-missing",
					 "userfaultfd: this kernel has none; it needs "
					 "CONFIG_USERFAULTFD (or a seccomp filter, as of a "
					 "container, hides it)");
		if (fd < 0)
			return error_set(
				error, call_errno, "userfaultfd-permission",
				"userfaultfd: not allowed (system call: %s, /dev/userfaultfd: "
				"%s); run as root or with CAP_SYS_PTRACE, or give this user "
				"read and write access to /dev/userfaultfd, or set sysctl "
				"vm.unprivileged_userfaultfd=1",
				strerror(call_errno), strerror(-fd));
	}
	return uffd_adopt(uffd, fd, false, error);
}

static int negotiate(int fd, uint64_t wanted, uint64_t *offered)
{
	struct uffdio_api api = {.api = UFFD_API, .features = wanted};
	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	*offered = api.features;
	return 0;
}

static void name_features(uint64_t features, char *text, size_t room)
{
	size_t used = 0;
	text[0] = '\0';
	for (unsigned bit = 0; bit < 64 && used < room; bit++)
		if (features >> bit & 1)
			used += (size_t)snprintf(text + used, room - used, "%s%s", used ? ", " : "",
						 uffd_feature_name(bit));
}

/* What was agreed on with a userfaultfd before; -EINVAL: it is none, or nothing was. */
static int negotiated(int fd, uint64_t *features)
{
	char path[64], line[256];
	unsigned long long api = 0, agreed = 0;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	FILE *info = fopen(path, "re");
	if (!info)
		return -errno;
	while (!found && fgets(line, sizeof(line), info))
		found = sscanf(line, "API: %llx:%llx:", &api, &agreed) == 2;
	fclose(info);
	if (!found || api != UFFD_API || !(agreed & FEATURE_NEGOTIATED))
		return -EINVAL;
	*features = agreed & ~FEATURE_NEGOTIATED;
	return 0;
}

int uffd_adopt(struct uffd *uffd, int fd, bool hugetlb, struct jaunt_error *error)
{
	uint64_t needed = FEATURES_NEEDED | (hugetlb ? FEATURES_HUGETLB : 0);
	const uint64_t requests[] = {needed | FEATURES_HUGETLB | UFFD_FEATURE_EXACT_ADDRESS |
					     FEATURES_WP,
				     needed | FEATURES_HUGETLB | UFFD_FEATURE_EXACT_ADDRESS,
				     needed | FEATURES_HUGETLB, needed};
	uint64_t offered = 0;
	int flags, result = -EINVAL;
	bool before = false;

	uffd->fd = -1;
	uffd->features = 0;
	uffd->wp_async = false;
	/* A blocking userfaultfd polls as an error (POLLERR), never as readable. */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC)) {
		int code = errno;
		close(fd);
		return error_set(error, code, "userfaultfd-broken",
				 "userfaultfd: the descriptor %d cannot be used: %s", fd,
				 strerror(code));
	}
	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]) && result == -EINVAL; i++) {
		result = negotiate(fd, requests[i], &offered);
		uffd->wp_async = !result && (requests[i] & UFFD_FEATURE_WP_ASYNC);
	}
	if (result == -EINVAL && !negotiated(fd, &offered)) {
		before = true;
		uffd->wp_async = (offered & FEATURES_WP) == FEATURES_WP;
		result = (offered & needed) == needed ? 0 : -EINVAL;
	}
	if (!result) {
		uffd->fd = fd;
		uffd->features = offered;
		return 0;
	}

	int code = -result;
	if (before || (code == EINVAL && !negotiate(fd, 0, &offered))) {
		char missing[256];
		name_features(needed & ~offered, missing, sizeof(missing));
		error_set(error, EOPNOTSUPP, "userfaultfd-features",
			  "userfaultfd: %s lacks %s; post-copy needs Linux 5.14 or newer "
			  "with CONFIG_USERFAULTFD and CONFIG_SHMEM%s",
			  before ? "it was negotiated by somebody else, and" : "this kernel",
			  missing, hugetlb ? " and CONFIG_HUGETLBFS" : "");
		code = EOPNOTSUPP;
	} else {
		error_set(error, code, "userfaultfd-broken",
			  "userfaultfd: UFFDIO_API: %s (negotiated by somebody before, or not a "
			  "userfaultfd)",
			  strerror(code));
	}
	close(fd);
	return -code;
}

void uffd_close(struct uffd *uffd)
{
	if (uffd->fd >= 0)
		close(uffd->fd);
	uffd->fd = -1;
}

int uffd_register(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		  struct jaunt_error *error)
{
	struct uffdio_register range = {
		.range = {.start = address, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};
	const uint64_t needed = UINT64_C(1) << _UFFDIO_COPY | UINT64_C(1) << _UFFDIO_CONTINUE |
				UINT64_C(1) << _UFFDIO_WAKE;

	if (ioctl(uffd->fd, UFFDIO_REGISTER, &range)) {
		int code = errno;
		const char *help;
		switch (code) {
		case EBUSY:
			help = "another userfaultfd holds this memory; end the program that does";
			break;
		case EINVAL:
			help = "guest memory must be a shared mapping of a memfd, tmpfs or "
			       "hugetlbfs file, and the kernel must have minor faults for it";
			break;
		case EPERM:
			help = "the memory file must be open for writing and not sealed";
			break;
		case ENOMEM:
			help = "too little memory, or too many mappings (sysctl vm.max_map_count)";
			break;
		default:
			help = "the process that the memory belongs to may have ended";
		}
		return error_set(error, code, "userfaultfd-register",
				 "userfaultfd: register %llu MiB at 0x%llx: %s; %s",
				 (unsigned long long)(bytes >> 20), (unsigned long long)address,
				 strerror(code), help);
	}
	if ((range.ioctls & needed) != needed) {
		uffd_unregister(uffd, address, bytes);
		return error_set(
			error, EOPNOTSUPP, "userfaultfd-register",
			"userfaultfd: this kernel cannot COPY and CONTINUE on this kind of "
			"memory (ioctls 0x%llx); use a memfd, tmpfs or hugetlbfs file",
			(unsigned long long)range.ioctls);
	}
	return 0;
}

int uffd_register_wp(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		     struct jaunt_error *error)
{
	struct uffdio_register range = {
		.range = {.start = address, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (!ioctl(uffd->fd, UFFDIO_REGISTER, &range))
		return 0;
	int code = errno;
	return error_set(error, code, "userfaultfd-register",
			 "userfaultfd: register %llu MiB at 0x%llx for write-protection: %s%s",
			 (unsigned long long)(bytes >> 20), (unsigned long long)address,
			 strerror(code),
			 code == EBUSY ? "; another userfaultfd holds this memory: end the program "
					 "that does"
				       : "");
}

int uffd_unregister(const struct uffd *uffd, uint64_t address, uint64_t bytes)
{
	struct uffdio_range range = {.start = address, .len = bytes};
	return ioctl(uffd->fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

/* The two reports of an ioctl as one. `code` is errno of a failed ioctl, or 0. */
static int64_t outcome(int code, int64_t done, uint64_t bytes)
{
	if (!code)
		return (int64_t)bytes;
	return done > 0 ? done : -code;
}

int64_t uffd_copy(const struct uffd *uffd, uint64_t to, const void *from, uint64_t bytes,
		  enum uffd_wake wake)
{
	struct uffdio_copy copy = {
		.dst = to,
		.src = (uintptr_t)from,
		.len = bytes,
		.mode = wake == UFFD_DONT_WAKE ? UFFDIO_COPY_MODE_DONTWAKE : 0,
	};
	int code = ioctl(uffd->fd, UFFDIO_COPY, &copy) ? errno : 0;
	return outcome(code, copy.copy, bytes);
}

int64_t uffd_continue(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		      enum uffd_wake wake)
{
	struct uffdio_continue map = {
		.range = {.start = address, .len = bytes},
		.mode = wake == UFFD_DONT_WAKE ? UFFDIO_CONTINUE_MODE_DONTWAKE : 0,
	};
	int code = ioctl(uffd->fd, UFFDIO_CONTINUE, &map) ? errno : 0;
	return outcome(code, map.mapped, bytes);
}

int64_t uffd_zeropage(const struct uffd *uffd, uint64_t address, uint64_t bytes,
		      enum uffd_wake wake)
{
	struct uffdio_zeropage zero = {
		.range = {.start = address, .len = bytes},
		.mode = wake == UFFD_DONT_WAKE ? UFFDIO_ZEROPAGE_MODE_DONTWAKE : 0,
	};
	int code = ioctl(uffd->fd, UFFDIO_ZEROPAGE, &zero) ? errno : 0;
	return outcome(code, zero.zeropage, bytes);
}

int uffd_wake(const struct uffd *uffd, uint64_t address, uint64_t bytes)
{
	struct uffdio_range range = {.start = address, .len = bytes};
	return ioctl(uffd->fd, UFFDIO_WAKE, &range) ? -errno : 0;
}
