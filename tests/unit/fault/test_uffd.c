/* SPDX-License-Identifier: Apache-2.0 */
/* Opening, negotiating, registering; and a userfaultfd of another process. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault/uffd_abi.h"
#include "tests/unit/fault/descriptor.h"
#include "tests/unit/fault/views.h"

TestSuite(uffd, .timeout = 30);

static struct uffd opened(void)
{
	struct uffd uffd;
	struct jaunt_error error = {0};
	if (uffd_open(&uffd, &error))
		cr_skip_test("%s", error.text);
	return uffd;
}

static int raw(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		cr_skip_test("userfaultfd: %s", strerror(errno));
	return fd;
}

Test(uffd, opens_non_blocking_and_offers_what_postcopy_needs)
{
	struct uffd uffd = opened();
	cr_assert(uffd.features & UFFD_FEATURE_MISSING_SHMEM);
	cr_assert(uffd.features & UFFD_FEATURE_MINOR_SHMEM);
	cr_assert(fcntl(uffd.fd, F_GETFL) & O_NONBLOCK);
	cr_assert(fcntl(uffd.fd, F_GETFD) & FD_CLOEXEC);
	uffd_close(&uffd);
	cr_assert_eq(uffd.fd, -1);
	uffd_close(&uffd);
}

Test(uffd, adopts_a_blocking_one_and_makes_it_non_blocking)
{
	struct uffd uffd;
	struct jaunt_error error = {0};
	cr_assert_eq(uffd_adopt(&uffd, raw(), false, &error), 0, "%s", error.text);
	cr_assert(fcntl(uffd.fd, F_GETFL) & O_NONBLOCK);
	uffd_close(&uffd);
}

Test(uffd, refuses_one_that_somebody_negotiated_for_less_and_closes_it)
{
	struct uffdio_api poor = {.api = UFFD_API};
	struct jaunt_error error = {0};
	struct uffd uffd;
	int fd = raw();

	cr_assert_eq(ioctl(fd, UFFDIO_API, &poor), 0);
	cr_assert_eq(uffd_adopt(&uffd, fd, false, &error), -EOPNOTSUPP);
	cr_assert_str_eq(error.reason, "userfaultfd-features");
	cr_assert(strstr(error.text, "MINOR_SHMEM"), "%s", error.text);
	cr_assert_eq(uffd.fd, -1);
	cr_assert_eq(fcntl(fd, F_GETFD), -1);
}

Test(uffd, refuses_what_is_no_userfaultfd)
{
	struct uffd uffd;
	struct jaunt_error error = {0};
	cr_assert_eq(uffd_adopt(&uffd, open("/dev/null", O_RDWR), false, &error), -ENOTTY);
	cr_assert_eq(error.code, ENOTTY);
	cr_assert_eq(uffd_adopt(&uffd, -1, false, &error), -EBADF);
	cr_assert_eq(uffd.fd, -1);
}

Test(uffd, names_the_missing_permission_and_the_remedy)
{
	struct uffd uffd = opened();
	struct jaunt_error error = {0};
	uffd_close(&uffd);
	if (setgid(65534) || setuid(65534))
		cr_skip_test("needs root to give root up");
	int result = uffd_open(&uffd, &error);
	if (!result)
		cr_skip_test("this host lets everybody open a userfaultfd");
	cr_assert_eq(result, -EPERM);
	cr_assert_str_eq(error.reason, "userfaultfd-permission");
	cr_assert(strstr(error.text, "CAP_SYS_PTRACE"));
	cr_assert(strstr(error.text, "/dev/userfaultfd"));
	cr_assert(strstr(error.text, "vm.unprivileged_userfaultfd"));
}

Test(uffd, does_not_register_anonymous_memory)
{
	struct uffd uffd = opened();
	struct jaunt_error error = {0};
	void *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_eq(uffd_register(&uffd, (uintptr_t)memory, PAGE, &error), -EINVAL);
	cr_assert_str_eq(error.reason, "userfaultfd-register");
	cr_assert(strstr(error.text, "memfd"));
	uffd_close(&uffd);
}

Test(uffd, does_not_register_what_another_one_holds)
{
	struct views views;
	struct jaunt_error error = {0};
	views_open(&views, 1);
	struct uffd second = opened();
	cr_assert_eq(uffd_register(&second, views_address(&views, 0), PAGE, &error), -EBUSY);
	cr_assert(strstr(error.text, "another userfaultfd"));
	uffd_close(&second);
	views_close(&views);
}

Test(uffd, registers_anew_after_unregistering)
{
	struct views views;
	struct jaunt_error error = {0};
	views_open(&views, 1);
	cr_assert_eq(uffd_unregister(&views.uffd, views_address(&views, 0), PAGE), 0);
	cr_assert_eq(uffd_register(&views.uffd, views_address(&views, 0), PAGE, &error), 0);
	views_close(&views);
}

Test(uffd, names_every_feature_that_the_kernel_offers_up_to_move)
{
	cr_assert_str_eq(uffd_feature_name(__builtin_ctz(UFFD_FEATURE_MINOR_SHMEM)), "MINOR_SHMEM");
	cr_assert_str_eq(uffd_feature_name(__builtin_ctz(UFFD_FEATURE_MINOR_HUGETLBFS)),
			 "MINOR_HUGETLBFS");
	cr_assert_str_eq(uffd_feature_name(__builtin_ctz(UFFD_FEATURE_EXACT_ADDRESS)),
			 "EXACT_ADDRESS");
	cr_assert_str_eq(uffd_feature_name(__builtin_ctz(UFFD_FEATURE_WP_ASYNC)), "WP_ASYNC");
	cr_assert_str_eq(uffd_feature_name(__builtin_ctz(UFFD_FEATURE_MOVE)), "MOVE");
	cr_assert_str_eq(uffd_feature_name(63), "unknown");
}

Test(uffd, is_adopted_a_second_time_as_it_was_agreed_on_the_first)
{
	struct uffd first = opened(), second;
	struct jaunt_error error = {0};
	int memory = memfd_create("guest", MFD_CLOEXEC);

	cr_assert_eq(ftruncate(memory, PAGE), 0);
	uint8_t *guest = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	cr_assert_eq(uffd_adopt(&second, dup(first.fd), true, &error), 0, "%s", error.text);
	cr_assert_eq(second.wp_async, first.wp_async);
	cr_assert(second.features & UFFD_FEATURE_MINOR_SHMEM);
	uffd_close(&first);
	cr_assert_eq(uffd_register(&second, (uintptr_t)guest, PAGE, &error), 0, "%s", error.text);
	cr_assert_eq(uffd_unregister(&second, (uintptr_t)guest, PAGE), 0);
	cr_assert_eq(uffd_register_wp(&second, (uintptr_t)guest, PAGE, &error),
		     second.wp_async ? 0 : -error.code);
	uffd_close(&second);
	close(memory);
}

/* --- A userfaultfd of another process ------------------------------------------------------------
 */

Test(uffd, serves_another_process_until_it_is_gone_and_then_says_esrch)
{
	int ends[2], memory = memfd_create("guest", MFD_CLOEXEC), status;
	struct views views = {.bytes = 2 * PAGE};
	struct jaunt_error error = {0};
	uint8_t page[PAGE];

	/* Before fork: the child has it at the same address, which is what we register. */
	cr_assert_eq(ftruncate(memory, 2 * PAGE), 0);
	uint8_t *guest = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	pid_t child = fork();
	if (!child) {
		char go;
		close(ends[0]);
		send_descriptor(ends[1], (int)syscall(SYS_userfaultfd, O_CLOEXEC));
		if (read(ends[1], &go, 1) != 1)
			_exit(1);
		_exit(*(volatile uint8_t *)guest);
	}
	close(ends[1]);
	int fd = receive_descriptor(ends[0]);
	if (fd < 0) {
		close(ends[0]);
		waitpid(child, &status, 0);
		cr_skip_test("userfaultfd is not allowed here");
	}
	cr_assert_eq(uffd_adopt(&views.uffd, fd, false, &error), 0, "%s", error.text);
	cr_assert_eq(uffd_register(&views.uffd, (uintptr_t)guest, 2 * PAGE, &error), 0, "%s",
		     error.text);
	cr_assert_eq(write(ends[0], "g", 1), 1);

	struct fault_event event = views_next_fault(&views);
	cr_assert_eq(event.address, (uintptr_t)guest);
	memset(page, 77, sizeof(page));
	cr_assert_eq(uffd_copy(&views.uffd, (uintptr_t)guest, page, PAGE, UFFD_WAKE), PAGE);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status));
	cr_assert_eq(WEXITSTATUS(status), 77);

	uint64_t second = (uintptr_t)guest + PAGE;
	cr_assert_eq(uffd_copy(&views.uffd, second, page, PAGE, UFFD_WAKE), -ESRCH);
	cr_assert_eq(uffd_continue(&views.uffd, second, PAGE, UFFD_WAKE), -ESRCH);
	cr_assert_eq(uffd_zeropage(&views.uffd, second, PAGE, UFFD_WAKE), -ESRCH);
	uffd_close(&views.uffd);
}
