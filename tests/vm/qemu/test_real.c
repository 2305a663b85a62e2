/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent and the client of QMP with the QEMU of the distribution, without KVM and without a
 * guest: QEMU itself reads guest memory when its monitor is asked to.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "fault/uffd.h"
#include "vmm/qemu/attach.h"
#include "vmm/qemu/qmp.h"
#include "vmm/qemu/record.h"
#include "vmm/qemu/regions.h"

#define PATIENT 30000 /* ms */
#define RAM     (64u << 20)

static char folder[64], memory[96], more[96], monitor[96];
static pid_t started, qemu;
static struct qmp *qmp;
static struct attach attach = {.fd = -1};

static void set_up(void)
{
	snprintf(folder, sizeof(folder), "/dev/shm/jaunt-test-XXXXXX");
	cr_assert(mkdtemp(folder));
	snprintf(memory, sizeof(memory), "%s/ram", folder);
	snprintf(more, sizeof(more), "%s/more", folder);
	snprintf(monitor, sizeof(monitor), "%s/qmp", folder);
}

static void tear_down(void)
{
	char path[128];

	attach_close(&attach);
	qmp_close(qmp);
	if (qemu > 0)
		kill(qemu, SIGKILL);
	if (started > 0)
		waitpid(started, NULL, 0);
	snprintf(path, sizeof(path), "%s/%ld.agent", folder, (long)qemu);
	unlink(path);
	unlink(memory);
	unlink(more);
	unlink(monitor);
	cr_expect_eq(rmdir(folder), 0);
}

TestSuite(real_qemu, .init = set_up, .fini = tear_down, .timeout = 120);

/* Runs `jaunt qemu -- qemu-system-x86_64 … EXTRA` as that user; "-" in place of `through` leaves
 * jaunt out. */
static void spawn(uid_t user, const char *const *extra, bool with_jaunt)
{
	static char object[256], socket[128];
	const char *words[40] = {JAUNT_TEST_JAUNT, "qemu", "--", "qemu-system-x86_64"};
	size_t count = 4;

	snprintf(object, sizeof(object), "memory-backend-file,id=ram,size=64M,mem-path=%s,share=on",
		 memory);
	snprintf(socket, sizeof(socket), "unix:%s,server=on,wait=off", monitor);
	const char *const common[] = {
		"-accel",      "tcg",      "-m",       "64M,slots=1,maxmem=256M",
		"-object",     object,     "-machine", "pc,memory-backend=ram",
		"-nodefaults", "-display", "none",     "-S",
		"-qmp",        socket,     NULL};
	for (size_t i = 0; common[i]; i++)
		words[count++] = common[i];
	for (size_t i = 0; extra && extra[i]; i++)
		words[count++] = extra[i];
	started = fork();
	cr_assert_geq(started, 0);
	if (started == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setenv("JAUNT_RUNTIME_DIR", folder, 1);
		if (user && (setgid(user) || setuid(user)))
			_exit(1);
		const char *const *from = with_jaunt ? words : words + 3;
		execvp(from[0], (char *const *)from);
		_exit(1);
	}
}

/* Until QEMU has opened its monitor, nobody listens there. */
static void meet(void)
{
	struct jaunt_error error = {0};
	uint64_t deadline_ns = clock_ns() + UINT64_C(30000000000);

	while (qmp_open(&qmp, monitor, PATIENT, &error)) {
		cr_assert_str_eq(error.reason, "qemu-unreachable", "%s", error.text);
		cr_assert(clock_ns() < deadline_ns, "%s", error.text);
		poll(NULL, 0, 10);
	}
	qemu = qmp_process(qmp);
}

static void start(uid_t user, const char *const *extra)
{
	struct jaunt_error error = {0};
	char path[256];

	spawn(user, extra, true);
	meet();
	cr_assert_eq(attach_path(qemu, path, sizeof(path), &error), 0, "%s", error.text);
	cr_assert_eq(attach_open(&attach, path, &error), 0, "%s", error.text);
	cr_assert_eq(attach.process, qemu);
}

/* Where QEMU has mapped a file, by its own table of mappings. */
static unsigned long address_of(const char *file, unsigned long least)
{
	char path[64], line[512];
	unsigned long from = 0, to = 0, found = 0;

	snprintf(path, sizeof(path), "/proc/%ld/maps", (long)qemu);
	FILE *maps = fopen(path, "re");
	cr_assert(maps);
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, file) && sscanf(line, "%lx-%lx", &from, &to) == 2 &&
		    to - from >= least)
			found = from;
	fclose(maps);
	cr_assert(found, "%s is not mapped", file);
	return found;
}

/* What QEMU sees at a guest-physical address, by its monitor for people. */
static char seen[256];
static void *look(void *unused)
{
	json_t *said = NULL;

	if (qmp_execute(qmp, "human-monitor-command",
			json_pack("{s:s}", "command-line", "xp /8xb 0x2000000"), PATIENT, &said,
			NULL) == 0)
		snprintf(seen, sizeof(seen), "%s", json_string_value(said));
	json_decref(said);
	return NULL;
}

#define PLACE 0x2000000u

static void take_memory(struct uffd *uffd, int fd, unsigned long address)
{
	struct jaunt_error error = {0};
	int ram = open(memory, O_RDWR | O_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(uffd_adopt(uffd, fd, false, &error), 0, "%s", error.text);
	cr_assert_eq(uffd_register(uffd, address, RAM, &error), 0, "%s", error.text);
	cr_assert_eq(fallocate(ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, RAM), 0);
	close(ram);
}

static void place(const struct uffd *uffd, unsigned long address)
{
	char page[4096];

	memset(page, 0x5a, sizeof(page));
	cr_assert_eq(uffd_copy(uffd, address + PLACE, page, sizeof(page), UFFD_WAKE),
		     (int64_t)sizeof(page));
}

static void await_fault(const struct uffd *uffd)
{
	struct pollfd waiting = {.fd = uffd->fd, .events = POLLIN};
	cr_assert_eq(poll(&waiting, 1, PATIENT), 1);
}

static void see_placed_page(void)
{
	struct uffd uffd;
	struct jaunt_error error = {0};
	pthread_t looker;
	int fd = attach_make(&attach, 0, &error);

	cr_assert_geq(fd, 0, "%s", error.text);
	unsigned long address = address_of(memory, RAM);
	take_memory(&uffd, fd, address);
	pthread_create(&looker, NULL, look, NULL);
	await_fault(&uffd);
	place(&uffd, address);
	pthread_join(looker, NULL);
	cr_assert(strstr(seen, "0x5a 0x5a 0x5a 0x5a 0x5a 0x5a 0x5a 0x5a"), "%s", seen);
	uffd_close(&uffd);
}

Test(real_qemu, reads_what_another_process_placed_through_the_agents_userfaultfd)
{
	start(0, NULL);
	see_placed_page();
}

Test(real_qemu, in_its_sandbox_and_without_root_takes_a_passed_device)
{
	static const char *const extra[] = {
		"-sandbox",
		"on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", NULL};

	if (geteuid() || access("/dev/userfaultfd", R_OK | W_OK))
		cr_skip_test("needs root and /dev/userfaultfd");
	cr_assert_eq(chown(folder, 65534, 65534), 0);
	start(65534, extra);
	see_placed_page();
}

Test(real_qemu, that_puts_itself_into_the_background_is_reached_where_it_went)
{
	start(0, (const char *const[]){"-daemonize", NULL});
	cr_assert_neq(qemu, started);
	see_placed_page();
}

Test(real_qemu, waits_when_jaunt_has_died_and_is_served_by_the_next)
{
	struct uffd uffd;
	pthread_t looker;
	char path[256];

	start(0, NULL);
	unsigned long address = address_of(memory, RAM);
	take_memory(&uffd, attach_make(&attach, 0, NULL), address);
	pthread_create(&looker, NULL, look, NULL);
	await_fault(&uffd);
	uffd_close(&uffd);
	attach_close(&attach);
	cr_assert_eq(attach_path(qemu, path, sizeof(path), NULL), 0);
	cr_assert_eq(attach_open(&attach, path, NULL), 0);
	struct uffd again = {.fd = attach_take(&attach, 0, NULL)};
	cr_assert_geq(again.fd, 0);
	place(&again, address);
	pthread_join(looker, NULL);
	cr_assert(strstr(seen, "0x5a 0x5a 0x5a 0x5a"), "%s", seen);
	close(again.fd);
}

static uint64_t given_back;
static void add(void *context, uint64_t first, uint64_t count)
{
	given_back += count;
}

Test(real_qemu, has_what_it_gives_back_recorded)
{
	/* A virtio-mem device empties its memory when it is plugged in. */
	const uint64_t bytes = 128u << 20;
	struct jaunt_error error = {0};
	struct agent_region region = {.bytes = bytes};
	struct record record;
	struct stat file;

	start(0, NULL);
	cr_assert_eq(qmp_execute(qmp, "object-add",
				 json_pack("{s:s, s:s, s:I, s:s, s:b}", "qom-type",
					   "memory-backend-file", "id", "more", "size",
					   (json_int_t)bytes, "mem-path", more, "share", 1),
				 PATIENT, NULL, &error),
		     0, "%s", error.text);
	cr_assert_eq(stat(more, &file), 0);
	region.address = address_of(more, bytes);
	region.device = file.st_dev;
	region.inode = file.st_ino;
	cr_assert_eq(record_open(&record, bytes / 4096), 0);
	cr_assert_eq(attach_watch(&attach, &region, 1, record.fd, &error), 0, "%s", error.text);
	cr_assert_eq(qmp_execute(qmp, "device_add",
				 json_pack("{s:s, s:s, s:s}", "driver", "virtio-mem-pci", "id",
					   "vm0", "memdev", "more"),
				 PATIENT, NULL, &error),
		     0, "%s", error.text);
	record_collect(&record, add, NULL);
	cr_assert_eq(given_back, bytes / 4096);
	record_close(&record);
}

Test(real_qemu, started_without_jaunt_is_named_with_what_to_do)
{
	struct jaunt_error error = {0};
	char path[256];

	spawn(0, NULL, false);
	meet();
	cr_assert_eq(attach_path(qemu, path, sizeof(path), &error), -ENOENT);
	cr_assert_str_eq(error.reason, "no-agent");
}

Test(real_qemu, says_where_its_memory_is)
{
	struct jaunt_error error = {0};
	struct regions regions;
	char byte = 0x5a;

	start(0, NULL);
	cr_assert_eq(regions_find(&regions, qmp, PATIENT, &error), 0, "%s", error.text);
	cr_assert_eq(regions.count, 1);
	cr_assert_str_eq(regions.all[0].id, "ram");
	cr_assert_eq(regions.all[0].bytes, RAM);
	cr_assert_eq(regions.all[0].page_bytes, 4096);
	cr_assert_eq(regions.all[0].address, address_of(memory, RAM));
	/* What is written through the file is what QEMU reads. */
	for (int i = 0; i < 8; i++)
		cr_assert_eq(pwrite(regions.all[0].fd, &byte, 1, PLACE + i), 1);
	look(NULL);
	cr_assert(strstr(seen, "0x5a 0x5a 0x5a 0x5a 0x5a 0x5a 0x5a 0x5a"), "%s", seen);
	regions_close(&regions);
}

Test(real_qemu, has_all_its_memory_found_or_is_refused_with_the_options_that_it_lacks)
{
	struct jaunt_error error = {0};
	struct regions regions;
	json_t *private_one = json_pack("{s:s, s:s, s:i}", "qom-type", "memory-backend-ram", "id",
					"other", "size", 1 << 20);
	json_t *shared_one =
		json_pack("{s:s, s:s, s:i, s:s, s:b}", "qom-type", "memory-backend-file", "id",
			  "more", "size", 1 << 20, "mem-path", more, "share", 1);

	start(0, NULL);
	cr_assert_eq(qmp_execute(qmp, "object-add", shared_one, PATIENT, NULL, &error), 0, "%s",
		     error.text);
	cr_assert_eq(regions_find(&regions, qmp, PATIENT, &error), 0, "%s", error.text);
	cr_assert_eq(regions.count, 2);
	cr_assert_str_eq(regions.all[0].id, "more");
	cr_assert_eq(regions.all[0].bytes, 1u << 20);
	regions_close(&regions);
	cr_assert_eq(qmp_execute(qmp, "object-add", private_one, PATIENT, NULL, &error), 0, "%s",
		     error.text);
	cr_assert_eq(regions_find(&regions, qmp, PATIENT, &error), -EOPNOTSUPP);
	cr_assert_str_eq(error.reason, "ram-not-shared");
	cr_assert(strstr(error.text, "\"other\""), "%s", error.text);
	cr_assert(strstr(error.text, "size=1048576,mem-path=/dev/shm/NAME,share=on"), "%s",
		  error.text);
	cr_assert(strstr(error.text, "-machine pc-i440fx"), "%s", error.text);
}

Test(real_qemu, obeys_its_monitor_and_tells_what_happens)
{
	struct jaunt_error error = {0};
	json_t *status = NULL, *schema = NULL;

	start(0, NULL);
	cr_assert_geq(qmp_version(qmp), 70200);
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, PATIENT, NULL, &error), 0, "%s", error.text);
	cr_assert_eq(qmp_wait(qmp, "RESUME", PATIENT, NULL, &error), 0, "%s", error.text);
	cr_assert_eq(qmp_execute(qmp, "stop", NULL, PATIENT, NULL, &error), 0);
	cr_assert_eq(qmp_wait(qmp, "STOP", PATIENT, NULL, &error), 0);
	cr_assert_eq(qmp_execute(qmp, "query-status", NULL, PATIENT, &status, &error), 0);
	cr_assert_str_eq(json_string_value(json_object_get(status, "status")), "paused");
	json_decref(status);
	cr_assert_eq(qmp_execute(qmp, "no-such-thing", NULL, PATIENT, NULL, &error), -ENOSYS);
	cr_assert_eq(qmp_execute(qmp, "device_add", json_pack("{s:s}", "driver", "nothing"),
				 PATIENT, NULL, &error),
		     -EINVAL);
	cr_assert(strstr(error.text, "nothing"), "%s", error.text);
	cr_assert_eq(qmp_execute(qmp, "query-qmp-schema", NULL, PATIENT, &schema, &error), 0);
	cr_assert_gt(json_array_size(schema), 100);
	json_decref(schema);
}

Test(real_qemu, that_hangs_or_dies_does_not_take_its_client_along)
{
	struct jaunt_error error = {0};
	json_t *status = NULL;

	start(0, NULL);
	kill(qemu, SIGSTOP);
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, 50, NULL, &error), -ETIMEDOUT);
	kill(qemu, SIGCONT);
	cr_assert_eq(qmp_execute(qmp, "query-status", NULL, PATIENT, &status, &error), 0);
	cr_assert_str_eq(json_string_value(json_object_get(status, "status")), "running");
	json_decref(status);
	kill(qemu, SIGKILL);
	cr_assert_eq(qmp_execute(qmp, "query-status", NULL, PATIENT, NULL, &error), -ECONNRESET);
	cr_assert_str_eq(error.reason, "qemu-gone");
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, PATIENT, NULL, &error), -ECONNRESET);
}
