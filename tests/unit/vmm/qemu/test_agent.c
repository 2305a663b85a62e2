/* SPDX-License-Identifier: Apache-2.0 */
/* The agent inside a program that stands in for QEMU (host.c). */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault/uffd.h"
#include "vmm/qemu/attach.h"
#include "vmm/qemu/record.h"

#define RAM (4u << 20)

static char folder[64], file[96], line[512];
static pid_t started, host; /* what was started, and what has the RAM */
static FILE *to, *from;
static struct attach attach = {.fd = -1};

static const char *answer(void)
{
	cr_assert(fgets(line, sizeof(line), from), "the host is gone");
	line[strcspn(line, "\n")] = '\0';
	return line;
}

static const char *tell(const char *command)
{
	fprintf(to, "%s\n", command);
	fflush(to);
	return answer();
}

static unsigned long number(const char *command)
{
	return strtoul(tell(command), NULL, 10);
}

/* Starts the host with the agent, another user's if `user` is not 0, the agent's folder given or
 * not. */
static void start(const char *mode, uid_t user, bool with_folder)
{
	int in[2], out[2];
	char bytes[32];

	cr_assert(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
	snprintf(bytes, sizeof(bytes), "%u", RAM);
	started = fork();
	if (started == 0) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		setenv("LD_PRELOAD", JAUNT_TEST_AGENT, 1);
		if (with_folder)
			setenv("JAUNT_AGENT", folder, 1);
		if (user && (setgid(user) || setuid(user)))
			_exit(1);
		execl(JAUNT_TEST_HOST, "host", file, bytes, mode, NULL);
		_exit(1);
	}
	close(in[0]);
	close(out[1]);
	to = fdopen(in[1], "w");
	from = fdopen(out[0], "r");
	host = (pid_t)strtol(answer(), NULL, 10);
}

static void join(void)
{
	struct jaunt_error error = {0};
	char path[256];

	cr_assert_eq(attach_path(host, path, sizeof(path), &error), 0, "%s", error.text);
	cr_assert_eq(attach_open(&attach, path, &error), 0, "%s", error.text);
	cr_assert_eq(attach.process, host);
}

static void set_up(void)
{
	snprintf(folder, sizeof(folder), "/dev/shm/jaunt-test-XXXXXX");
	cr_assert(mkdtemp(folder));
	snprintf(file, sizeof(file), "%s/ram", folder);
}

static void tear_down(void)
{
	struct stat left;
	char path[256];

	attach_close(&attach);
	if (to)
		fclose(to);
	if (from)
		fclose(from);
	if (started > 0)
		waitpid(started, NULL, 0);
	snprintf(path, sizeof(path), "%s/%ld.agent", folder, (long)host);
	cr_expect(stat(path, &left) && errno == ENOENT, "the socket was left behind");
	unlink(file);
	cr_expect_eq(rmdir(folder), 0);
}

TestSuite(agent, .init = set_up, .fini = tear_down, .timeout = 60);

static void adopt(struct uffd *uffd, int fd)
{
	struct jaunt_error error = {0};
	cr_assert_geq(fd, 0);
	cr_assert_eq(uffd_adopt(uffd, fd, false, &error), 0, "%s", error.text);
}

/* Empties the RAM, and has its faults told on the userfaultfd. */
static void take_ram(const struct uffd *uffd)
{
	struct jaunt_error error = {0};
	int ram = open(file, O_RDWR | O_CLOEXEC);

	cr_assert_eq(uffd_register(uffd, number("address"), RAM, &error), 0, "%s", error.text);
	cr_assert_eq(fallocate(ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, RAM), 0);
	close(ram);
}

static void ask_for_byte(unsigned offset)
{
	fprintf(to, "read %u\n", offset);
	fflush(to);
}

static bool is_silent(int ms)
{
	struct pollfd waiting = {.fd = fileno(from), .events = POLLIN};
	return poll(&waiting, 1, ms) == 0;
}

static void place(const struct uffd *uffd, unsigned long address, int byte)
{
	char page[4096];
	memset(page, byte, sizeof(page));
	cr_assert_eq(uffd_copy(uffd, address, page, sizeof(page), UFFD_WAKE),
		     (int64_t)sizeof(page));
}

static void await_fault(const struct uffd *uffd)
{
	struct pollfd waiting = {.fd = uffd->fd, .events = POLLIN};
	cr_assert_eq(poll(&waiting, 1, 30000), 1);
}

Test(agent, hands_out_a_userfaultfd_by_which_another_process_places_pages)
{
	struct uffd uffd;

	start(NULL, 0, true);
	join();
	adopt(&uffd, attach_make(&attach, 0, NULL));
	unsigned long address = number("address");
	take_ram(&uffd);
	ask_for_byte(5 * 4096 + 7);
	await_fault(&uffd);
	place(&uffd, address + 5 * 4096, 0xab);
	cr_assert_str_eq(answer(), "171");
	uffd_close(&uffd);
}

Test(agent, keeps_a_reader_waiting_when_everybody_else_has_gone_and_can_be_found_again)
{
	struct uffd uffd, again;

	start(NULL, 0, true);
	join();
	adopt(&uffd, attach_make(&attach, 3, NULL));
	unsigned long address = number("address");
	take_ram(&uffd);
	ask_for_byte(0);
	await_fault(&uffd);
	uffd_close(&uffd);
	attach_close(&attach);
	/* Were the agent's copy closed as well, a zero would come at once. */
	cr_assert(is_silent(200));
	join();
	again.fd = attach_take(&attach, 3, NULL);
	cr_assert_geq(again.fd, 0);
	place(&again, address, 0x11);
	cr_assert_str_eq(answer(), "17");
	close(again.fd);
}

Test(agent, keeps_files_by_slot_until_they_are_dropped)
{
	struct jaunt_error error = {0};
	struct stat mine, back;
	int map = memfd_create("page-map", MFD_CLOEXEC);

	start(NULL, 0, true);
	join();
	cr_assert_eq(attach_take(&attach, 16, &error), -ENOENT);
	cr_assert_eq(attach_keep(&attach, 16, map, &error), 0);
	cr_assert_eq(attach_keep(&attach, 16, map, &error), -EBUSY);
	cr_assert_str_eq(error.reason, "agent-refused");
	cr_assert_eq(fstat(map, &mine), 0);
	close(map);
	attach_close(&attach);
	join();
	int found = attach_take(&attach, 16, &error);
	cr_assert_geq(found, 0);
	cr_assert_eq(fstat(found, &back), 0);
	cr_assert_eq(back.st_ino, mine.st_ino);
	close(found);
	cr_assert_eq(attach_drop(&attach, 16, &error), 0);
	cr_assert_eq(attach_drop(&attach, 16, &error), -ENOENT);
	cr_assert_eq(attach_keep(&attach, AGENT_SLOTS, 0, &error), -EINVAL);
	cr_assert_eq(attach_make(&attach, AGENT_USERFAULTFD_SLOTS, &error), -EINVAL);
}

Test(agent, begins_in_the_process_that_has_the_memory_after_a_fork)
{
	struct uffd uffd;

	start("fork", 0, true);
	cr_assert_neq(host, started);
	join();
	adopt(&uffd, attach_make(&attach, 0, NULL));
	unsigned long address = number("address");
	take_ram(&uffd);
	ask_for_byte(4096);
	await_fault(&uffd);
	place(&uffd, address + 4096, 1);
	cr_assert_str_eq(answer(), "1");
	uffd_close(&uffd);
}

static char told[512];

static void collect(void *context, uint64_t first, uint64_t count)
{
	size_t at = strlen(told);
	snprintf(told + at, sizeof(told) - at, "%lu+%lu ", (unsigned long)first,
		 (unsigned long)count);
}

static const char *collected(struct record *record)
{
	told[0] = '\0';
	record_collect(record, collect, NULL);
	return told;
}

static struct agent_region whole_ram(void)
{
	struct stat status;
	cr_assert_eq(stat(file, &status), 0);
	return (struct agent_region){.address = number("address"),
				     .bytes = RAM,
				     .device = status.st_dev,
				     .inode = status.st_ino};
}

Test(agent, records_what_is_given_back_while_somebody_watches)
{
	struct jaunt_error error = {0};
	struct record record;

	start(NULL, 0, true);
	join();
	struct agent_region region = whole_ram();
	cr_assert_eq(record_open(&record, RAM / 4096), 0);
	cr_assert_eq(number("punch 0 4096"), 0);
	cr_assert_eq(attach_watch(&attach, &region, 1, record.fd, &error), 0, "%s", error.text);
	cr_assert_eq(number("punch 8192 8192"), 0);
	cr_assert_eq(number("remove 40960 4096"), 0);
	cr_assert_str_eq(collected(&record), "2+2 10+1 ");
	cr_assert_eq(attach_unwatch(&attach, &error), 0);
	cr_assert_eq(number("punch 8192 8192"), 0);
	cr_assert_str_eq(collected(&record), "");
	record_close(&record);
}

Test(agent, stops_recording_when_the_one_who_watched_is_gone)
{
	struct record record;

	start(NULL, 0, true);
	join();
	struct agent_region region = whole_ram();
	cr_assert_eq(record_open(&record, RAM / 4096), 0);
	cr_assert_eq(attach_watch(&attach, &region, 1, record.fd, NULL), 0);
	attach_close(&attach);
	/* The agent answers in order: when it greets anew it has heard of the end. */
	join();
	cr_assert_eq(number("punch 0 4096"), 0);
	cr_assert_str_eq(collected(&record), "");
	record_close(&record);
}

Test(agent, refuses_a_record_that_could_be_cut_short)
{
	struct jaunt_error error = {0};
	int bare = memfd_create("bare", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	start(NULL, 0, true);
	join();
	struct agent_region region = whole_ram();
	cr_assert_eq(ftruncate(bare, 1 << 20), 0);
	cr_assert_eq(attach_watch(&attach, &region, 1, bare, &error), -EPERM);
	cr_assert_eq(attach_watch(&attach, &region, 1, -1, &error), -EPERM);
	close(bare);
	cr_assert_eq(number("threads"), 2);
}

Test(agent, leaves_nothing_in_the_environment_and_is_not_inherited)
{
	start(NULL, 0, true);
	cr_assert_str_eq(tell("environment"), "clean");
	cr_assert_str_eq(tell("child"), "child::");
}

Test(agent, does_nothing_at_all_without_its_variable)
{
	struct jaunt_error error = {0};
	char path[256];

	start(NULL, 0, false);
	cr_assert_eq(number("threads"), 1);
	cr_assert_eq(number("punch 0 4096"), 0);
	cr_assert_str_eq(tell("child"), "child::");
	cr_assert_eq(attach_path(host, path, sizeof(path), &error), -ENOENT);
	cr_assert(strstr(error.text, "jaunt qemu --"));
}

Test(agent, gives_a_user_without_the_right_a_userfaultfd_through_a_passed_device)
{
	struct uffd uffd;

	if (geteuid() || access("/dev/userfaultfd", R_OK | W_OK))
		cr_skip_test("needs root and /dev/userfaultfd");
	cr_assert_eq(chown(folder, 65534, 65534), 0);
	cr_assert_eq(chmod(folder, 0700), 0);
	start(NULL, 65534, true);
	join();
	adopt(&uffd, attach_make(&attach, 0, NULL));
	unsigned long address = number("address");
	take_ram(&uffd);
	ask_for_byte(0);
	await_fault(&uffd);
	place(&uffd, address, 9);
	cr_assert_str_eq(answer(), "9");
	uffd_close(&uffd);
}

static int raw_connection(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

Test(agent, hears_only_root_and_its_own_user)
{
	struct stat socket_file;
	char path[256], byte;

	if (geteuid())
		cr_skip_test("needs root");
	start(NULL, 0, true);
	cr_assert_eq(attach_path(host, path, sizeof(path), NULL), 0);
	cr_assert_eq(stat(path, &socket_file), 0);
	cr_assert_eq(socket_file.st_mode & 0777, 0600);
	/* Even where the socket were open to all. */
	cr_assert_eq(chmod(path, 0666), 0);
	cr_assert_eq(chmod(folder, 0755), 0);
	pid_t stranger = fork();
	if (stranger == 0) {
		if (setgid(65534) || setuid(65534))
			_exit(1);
		int fd = raw_connection(path);
		struct agent_message hello = {AGENT_MAGIC, AGENT_PROTOCOL, AGENT_HELLO, 0, 0, 0};
		bool silent = send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) < 0 ||
			      recv(fd, &byte, 1, 0) <= 0;
		_exit(silent ? 0 : 2);
	}
	int status = 0;
	waitpid(stranger, &status, 0);
	cr_assert_eq(status, 0);
	join();
}

Test(agent, parts_with_whoever_breaks_the_rules_and_goes_on_for_others)
{
	struct agent_watch junk = {.head = {1, 2, 3, 4, 5, 6}};
	struct agent_watch lie = {.head = {AGENT_MAGIC, AGENT_PROTOCOL, AGENT_WATCH, 0, 0, 0},
				  .count = UINT64_MAX};
	struct agent_message reply;
	char path[256];

	start(NULL, 0, true);
	cr_assert_eq(attach_path(host, path, sizeof(path), NULL), 0);
	int short_one = raw_connection(path), stranger = raw_connection(path);
	cr_assert_eq(send(short_one, "x", 1, 0), 1);
	cr_assert_leq(recv(short_one, &reply, sizeof(reply), 0), 0);
	cr_assert_eq(send(stranger, &junk, sizeof(junk), 0), (ssize_t)sizeof(junk));
	cr_assert_leq(recv(stranger, &reply, sizeof(reply), 0), 0);
	close(short_one);
	close(stranger);
	int liar = raw_connection(path);
	cr_assert_eq(send(liar, &lie, sizeof(lie), 0), (ssize_t)sizeof(lie));
	cr_assert_eq(recv(liar, &reply, sizeof(reply), 0), (ssize_t)sizeof(reply));
	cr_assert_eq(reply.result, -EINVAL);
	lie.head.request = 99;
	cr_assert_eq(send(liar, &lie, sizeof(lie), 0), (ssize_t)sizeof(lie));
	cr_assert_eq(recv(liar, &reply, sizeof(reply), 0), (ssize_t)sizeof(reply));
	cr_assert_eq(reply.result, -ENOSYS);
	/* One who never reads his answers. */
	int deaf = raw_connection(path);
	fcntl(deaf, F_SETFL, O_NONBLOCK);
	lie.head.request = AGENT_HELLO;
	for (int i = 0; i < 10000; i++)
		if (send(deaf, &lie, sizeof(lie), MSG_NOSIGNAL) < 0 && errno != EAGAIN)
			break;
	join();
	close(deaf);
	close(liar);
}

Test(agent, that_is_gone_or_was_never_there_is_told_with_what_to_do)
{
	struct jaunt_error error = {0};

	start(NULL, 0, true);
	join();
	kill(host, SIGKILL);
	cr_assert_lt(attach_make(&attach, 0, &error), 0);
	cr_assert_str_eq(error.reason, "no-agent");
	attach_close(&attach);
	cr_assert_lt(attach_open(&attach, "/nowhere/1.agent", &error), 0);
	cr_assert_str_eq(error.reason, "no-agent");
	cr_assert(strstr(error.text, "jaunt qemu --"));
	char left[256];
	snprintf(left, sizeof(left), "%s/%ld.agent", folder, (long)host);
	cr_assert_eq(unlink(left), 0);
}
