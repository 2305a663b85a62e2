/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of two real QEMUs is compared, under emulation and without a guest: one stands still before
 * its first instruction, the other waits with -incoming defer. Each pair is compared as a migration
 * would do it.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "vmm/qemu/compare.h"
#include "vmm/qemu/config.h"
#include "vmm/qemu/examine.h"
#include "vmm/qemu/prepared.h"
#include "vmm/qemu/qmp.h"

#define PATIENT 30000 /* ms */

static char folder[64];
static pid_t processes[2];
static struct facts facts[2];
static struct compared compared;
static struct jaunt_error error;
static const char *allowed[4];
static size_t allowed_count;

static int shell(char *line)
{
	char name[] = "sh", option[] = "-c";
	char *arguments[] = {name, option, line, NULL};
	pid_t process;
	int status = -1;

	if (posix_spawnp(&process, "sh", NULL, NULL, arguments, environ) == 0)
		waitpid(process, &status, 0);
	return status;
}

/* Runs a command in the folder. */
static void sh(const char *format, ...)
{
	char command[1024], whole[1200];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	snprintf(whole, sizeof(whole), "cd %s && { %s; } >log 2>&1", folder, command);
	cr_assert_eq(shell(whole), 0, "%s", command);
}

static void set_up(void)
{
	snprintf(folder, sizeof(folder), "/dev/shm/jaunt-config-XXXXXX");
	cr_assert(mkdtemp(folder));
}

static void end_pair(void)
{
	for (int i = 0; i < 2; i++) {
		if (processes[i] > 0) {
			kill(processes[i], SIGKILL);
			waitpid(processes[i], NULL, 0);
		}
		processes[i] = 0;
		facts_close(&facts[i]);
	}
	compared_close(&compared);
}

static void tear_down(void)
{
	char command[128];

	end_pair();
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	cr_assert_eq(shell(command), 0);
}

TestSuite(config, .init = set_up, .fini = tear_down, .timeout = 120);

static void start(int side, const char *ram, const char *options)
{
	char command[2048];

	snprintf(command, sizeof(command),
		 "cd %s && exec qemu-system-x86_64 -accel tcg -m 64M -nodefaults -display none %s "
		 "-object memory-backend-file,id=ram,size=64M,mem-path=%s,share=on "
		 "-qmp unix:%s/%d.qmp,server=on,wait=off %s",
		 folder, side ? "-incoming defer" : "-S", ram, folder, side, options);
	processes[side] = fork();
	cr_assert_geq(processes[side], 0);
	if (processes[side] == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl("/bin/sh", "sh", "-c", command, NULL);
		_exit(127);
	}
}

static void collect(int side)
{
	uint64_t deadline_ns = clock_ns() + UINT64_C(30000000000);
	struct qmp *qmp;
	char path[128];

	snprintf(path, sizeof(path), "%s/%d.qmp", folder, side);
	while (qmp_open(&qmp, path, PATIENT, &error)) {
		cr_assert_str_eq(error.reason, "qemu-unreachable", "%s", error.text);
		cr_assert(clock_ns() < deadline_ns, "%s", error.text);
		poll(NULL, 0, 10);
	}
	cr_assert_eq(config_collect(&facts[side], qmp, PATIENT, &error), 0, "%s", error.text);
	qmp_close(qmp);
}

static int compare(bool rounds)
{
	struct jaunt_description source = {.properties = facts[0].all,
					   .property_count = facts[0].count,
					   .allowed = allowed,
					   .allowed_count = allowed_count,
					   .rounds = rounds};

	compared_close(&compared);
	return compare_facts(&source, &facts[1], &compared, &error);
}

/* Starts both, with what both have and what only one has, and compares them. */
static int pair(const char *both, const char *source, const char *target)
{
	char options[2][1024];
	const char *own[2] = {source, target};

	end_pair();
	for (int i = 0; i < 2; i++) {
		snprintf(options[i], sizeof(options[i]), "%s %s %s", both, own[i],
			 strstr(both, "-machine") || strstr(own[i], "-machine")
				 ? ""
				 : "-machine q35,memory-backend=ram");
		start(i, i ? "ram1" : "ram0", options[i]);
	}
	collect(0);
	collect(1);
	return compare(false);
}

static const struct jaunt_difference *find(const char *item)
{
	for (size_t i = 0; i < compared.count; i++)
		if (strcmp(compared.all[i].item, item) == 0)
			return &compared.all[i];
	return NULL;
}

static const struct jaunt_difference *differs(const char *item)
{
	const struct jaunt_difference *one = find(item);

	cr_assert(one, "\"%s\" is not among them: %s", item, error.text);
	return one;
}

static void agrees(void)
{
	cr_assert_eq(compared.count, 0, "%s", error.text);
}

#define DISK "-blockdev driver=file,node-name=f,filename=%s -blockdev driver=%s,node-name=d,file=f"
#define BLK  " -device virtio-blk-pci,drive=d,id=vda"

static const char *disk(const char *file, const char *format)
{
	static char text[4][256];
	static int next;
	char *one = text[next++ % 4];

	snprintf(one, sizeof(text[0]), DISK BLK, file, format);
	return one;
}

/* --- The same -----------------------------------------------------------------------------------
 */

Test(config, of_two_alike_agrees)
{
	sh("qemu-img create -f qcow2 disk.qcow2 8M");
	cr_assert_eq(
		pair("-smp 2 -cpu max -blockdev driver=file,node-name=f,filename=disk.qcow2 "
		     "-blockdev driver=qcow2,node-name=d,file=f -device "
		     "virtio-blk-pci,drive=d,id=vda -netdev user,id=n -device "
		     "virtio-net-pci,netdev=n,id=net0 -device virtio-balloon-pci,id=bal -vga std "
		     "-uuid 7e9f6b0c-93f4-4dc7-b8e2-cbc9b4e8d1c7",
		     "", ""),
		0, "%s", error.text);
	agrees();
	/* What the engine looks for by this name. */
	cr_assert_str_eq(facts_find(&facts[0], "vcpus"), "2");
	cr_assert_str_eq(facts_find(&facts[0], "accelerator"), "not kvm");
}

Test(config, of_two_alike_agrees_with_the_defaults_of_another_machine)
{
	cr_assert_eq(pair("-machine pc,memory-backend=ram -nodefaults -serial null -device "
			  "e1000,id=net0 -device pci-bridge,chassis_nr=1,id=bridge -device "
			  "virtio-rng-pci,bus=bridge,addr=1",
			  "", ""),
		     0, "%s", error.text);
	agrees();
}

/* As the facts name it. */
static bool is_told(const char *flag)
{
	static const char *const others[][2] = {{"pni", "sse3"},
						{"pclmuldq", "pclmulqdq"},
						{"xd", "nx"},
						{"ffxsr", "fxsr-opt"},
						{"i64", "lm"}};
	char name[64], *at, word[80], all[FACTS_VALUE_MAX];

	snprintf(name, sizeof(name), "%s", flag);
	while ((at = strpbrk(name, "_.")))
		*at = '-';
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (strcmp(name, others[i][0]) == 0)
			snprintf(name, sizeof(name), "%s", others[i][1]);
	snprintf(word, sizeof(word), " %s ", name);
	snprintf(all, sizeof(all), " %s ", facts_find(&facts[0], "cpu flags"));
	return strstr(all, word);
}

static const char cpu[] = "/machine/unattached/device[0]";

static json_t *property(struct qmp *qmp, const char *name)
{
	json_t *value = NULL;

	cr_assert_eq(qmp_execute(qmp, "qom-get",
				 json_pack("{s:s, s:s}", "path", cpu, "property", name), PATIENT,
				 &value, &error),
		     0, "%s", error.text);
	return value;
}

/* Few of them are asked for one by one. */
Test(config, has_every_flag_of_a_processor_as_QEMU_tells_it)
{
	json_t *list = NULL, *one;
	unsigned on = 0, off = 0;
	struct qmp *qmp;
	char path[128];
	size_t i;

	start(0, "ram0", "-machine q35,memory-backend=ram -cpu max");
	collect(0);
	snprintf(path, sizeof(path), "%s/0.qmp", folder);
	cr_assert_eq(qmp_open(&qmp, path, PATIENT, &error), 0);
	cr_assert_eq(qmp_execute(qmp, "qom-list", json_pack("{s:s}", "path", cpu), PATIENT, &list,
				 &error),
		     0);
	json_array_foreach (list, i, one) {
		const char *name = json_string_value(json_object_get(one, "name"));
		const char *type = json_string_value(json_object_get(one, "type"));
		if (strcmp(type, "bool") != 0 || strcmp(name, "realized") == 0 ||
		    strcmp(name, "hotpluggable") == 0)
			continue;
		json_t *value = property(qmp, name);
		cr_assert_eq(json_is_true(value), is_told(name), "%s", name);
		json_is_true(value) ? on++ : off++;
		json_decref(value);
	}
	cr_assert(on > 60 && off > 100, "%u on, %u off", on, off);
	json_decref(list);
	qmp_close(qmp);
}

/* --- Everything but disks -----------------------------------------------------------------------
 */

Test(config, names_a_machine_processors_and_memory_of_another_kind)
{
	cr_assert_neq(pair("", "-machine q35,memory-backend=ram -smp 2 -cpu max",
			   "-machine pc,memory-backend=ram,hpet=off -cpu qemu64"),
		      0);
	differs("machine type");
	differs("machine: hpet");
	differs("vcpus");
	differs("cpu model");
	cr_assert(!differs("cpu flags")->allowable);
	differs("machine: smp cpus");
}

Test(config, names_the_flags_that_a_processor_lacks_or_has_more)
{
	cr_assert_neq(pair("", "-cpu qemu64,+avx2,+erms", "-cpu qemu64,-sse3,+erms"), 0);
	cr_assert_str_eq(differs("cpu flags")->source, "avx2 sse3");
	cr_assert_str_eq(differs("cpu flags")->target, "");
	cr_assert_neq(pair("", "-cpu qemu64", "-cpu qemu64,+sse4.1,+smap"), 0);
	cr_assert_str_eq(differs("cpu flags")->source, "");
	cr_assert_str_eq(differs("cpu flags")->target, "smap sse4-1");
	cr_assert(differs("cpu flags")->allowable);
}

Test(config, names_devices_that_differ_in_kind_place_or_setting)
{
	cr_assert_neq(pair("-uuid 7e9f6b0c-93f4-4dc7-b8e2-cbc9b4e8d1c7",
			   "-device virtio-net-pci,id=net0,mac=52:54:00:00:00:01,addr=5 -device "
			   "virtio-balloon-pci,id=bal -vga std -device virtio-rng-pci,addr=9",
			   "-device virtio-net-pci,id=net0,mac=52:54:00:00:00:02,addr=6 -device "
			   "VGA,id=vga,vgamem_mb=32 -uuid 00000000-0000-0000-0000-000000000001"),
		      0);
	cr_assert_str_eq(differs("device net0: mac")->target, "52:54:00:00:00:02");
	differs("device net0: addr");
	cr_assert_str_eq(differs("device bal")->source, "virtio-balloon-pci");
	cr_assert_str_eq(differs("device vga")->target, "VGA");
	differs("device virtio-rng-pci on pcie.0 at 09.0");
	differs("pci 05.0");
	cr_assert(differs("uuid")->allowable);
	cr_assert(!find("device net0: netdev"));
}

Test(config, names_memory_of_a_device_and_roms_of_another_size)
{
	cr_assert_neq(pair("", "-device VGA,id=vga,vgamem_mb=16 -device e1000,id=net0",
			   "-device VGA,id=vga,vgamem_mb=32 -device e1000,id=net0,romfile="),
		      0);
	differs("device vga: vgamem_mb");
	differs("memory block 0000:00:01.0/vga.vram: total");
	cr_assert(differs("device net0: romfile")->allowable);
	differs("memory block 0000:00:02.0/e1000.rom");
}

Test(config, refuses_the_sources_own_memory_file_at_the_target)
{
	start(0, "ram", "-machine q35,memory-backend=ram");
	collect(0);
	start(1, "ram", "-machine q35,memory-backend=ram");
	collect(1);
	cr_assert_neq(compare(false), 0);
	cr_assert(!differs("memory file ram: identity")->allowable);
	cr_assert_eq(compared.count, 1);
}

/* --- Disks --------------------------------------------------------------------------------------
 */

Test(config, takes_a_disk_by_its_identity_and_not_by_its_name_or_contents)
{
	sh("qemu-img create -f raw a.img 8M && cp a.img b.img && ln a.img hard.img && ln -s a.img "
	   "soft.img");
	cr_assert_eq(pair("", disk("a.img", "raw"), disk("hard.img", "raw")), 0, "%s", error.text);
	cr_assert_eq(pair("", disk("a.img", "raw"), disk("soft.img", "raw")), 0, "%s", error.text);
	cr_assert_neq(pair("", disk("a.img", "raw"), disk("b.img", "raw")), 0);
	const struct jaunt_difference *one = differs("disk vda: image");
	cr_assert(strstr(one->source, "a.img") && strstr(one->target, "b.img"), "%s, %s",
		  one->source, one->target);
	cr_assert(!one->allowable);
	cr_assert_eq(compared.count, 1);
}

Test(config, takes_a_disk_with_the_whole_of_its_backing_chain)
{
	/* The files of both are the same but for the one at the bottom, which was replaced. */
	sh("qemu-img create -f raw base.img 8M && qemu-img create -f qcow2 -b base.img -F raw "
	   "middle.qcow2 && qemu-img create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2");
	start(0, "ram0", disk("top.qcow2", "qcow2"));
	collect(0);
	sh("cp base.img new.img && mv new.img base.img");
	start(1, "ram1", disk("top.qcow2", "qcow2"));
	collect(1);
	compare(false);
	differs("disk vda: backing 2");
	cr_assert(!find("disk vda: image"));
	cr_assert(!find("disk vda: backing 1"));
}

Test(config, names_another_format_and_access)
{
	sh("qemu-img create -f qcow2 a.img 8M");
	cr_assert_neq(pair("", disk("a.img", "qcow2"), disk("a.img", "raw")), 0);
	cr_assert(strstr(differs("disk vda: image")->advice, "format"));
	cr_assert_neq(pair("", disk("a.img", "qcow2"),
			   "-blockdev driver=file,node-name=f,filename=a.img,read-only=on "
			   "-blockdev driver=qcow2,node-name=d,file=f,read-only=on" BLK),
		      0);
	differs("disk vda: access");
}

Test(config, refuses_internal_snapshots_only_where_they_would_be_lost)
{
	sh("qemu-img create -f qcow2 a.img 8M && qemu-img snapshot -c before a.img && cp a.img "
	   "b.img");
	cr_assert_eq(pair("", disk("a.img", "qcow2"), disk("a.img", "qcow2")), 0, "%s", error.text);
	cr_assert_neq(pair("", disk("a.img", "qcow2"), disk("b.img", "qcow2")), 0);
	cr_assert(strstr(differs("disk vda: image")->advice, "snapshots"));
	cr_assert(!differs("disk vda: image")->allowable);
}

Test(config, refuses_a_temporary_overlay)
{
	sh("qemu-img create -f qcow2 a.img 8M");
	cr_assert_neq(pair("-drive file=a.img,format=qcow2,if=none,id=d,snapshot=on" BLK, "", ""),
		      0);
	differs("disk vda: image");
}

Test(config, lets_a_medium_differ_only_when_told_to)
{
	static const char drive[] = "-device ide-cd,id=cd0,drive=c";

	sh("echo one >a.iso && echo two >b.iso && cp a.iso c.iso");
	cr_assert_neq(pair(drive, "-drive file=a.iso,format=raw,if=none,media=cdrom,id=c",
			   "-drive if=none,media=cdrom,id=c"),
		      0);
	cr_assert(differs("medium cd0: holds")->allowable);
	allowed[0] = "medium cd0: holds";
	allowed[1] = "medium cd0: image";
	allowed_count = 2;
	compare(false);
	agrees();
	allowed_count = 0;
	pair(drive, "-drive file=a.iso,format=raw,if=none,media=cdrom,id=c",
	     "-drive file=b.iso,format=raw,if=none,media=cdrom,id=c");
	cr_assert(differs("medium cd0: image")->allowable);
	pair(drive, "-drive if=none,media=cdrom,id=c", "-drive if=none,media=cdrom,id=c");
	agrees();
}

Test(config, takes_network_storage_by_its_address)
{
	static const char null[] =
		"-blockdev driver=null-co,node-name=d,size=1048576,read-zeroes=on" BLK;

	pair(null, "", "");
	agrees();
}

/* --- What cannot move ---------------------------------------------------------------------------
 */

Test(config, refuses_by_name_what_others_write_to_or_qemu_cannot_save)
{
	cr_assert_neq(pair("-object memory-backend-file,id=shared,size=1M,mem-path=shm,share=on "
			   "-device ivshmem-plain,memdev=shared,id=shm0 -device "
			   "nvme,serial=1,id=disk0",
			   "", ""),
		      0);
	cr_assert(!differs("cannot move: device shm0")->allowable);
	cr_assert(differs("cannot move: device disk0")->allowable);
	/* In QEMU's own words. */
	cr_assert(strstr(differs("cannot move: the guest (1)")->source, "ivshmem"), "%s",
		  find("cannot move: the guest (1)")->source);
}

Test(config, refuses_files_of_the_host_on_either_side)
{
	static const char share[] = "-device virtio-9p-pci,id=fs0,fsdev=s,mount_tag=t -fsdev "
				    "local,id=s,path=share,security_model=none";

	sh("mkdir share");
	cr_assert_neq(pair("", share, ""), 0);
	cr_assert_str_eq(differs("cannot move: device fs0")->target, "");
	cr_assert_neq(pair("", "", share), 0);
	cr_assert_str_eq(differs("cannot move: device fs0")->source, "");
}

/* --- Ahead of a source --------------------------------------------------------------------------
 */

static struct qmp *monitor_of(int side)
{
	struct qmp *qmp;
	char path[128];

	snprintf(path, sizeof(path), "%s/%d.qmp", folder, side);
	cr_assert_eq(qmp_open(&qmp, path, PATIENT, &error), 0, "%s", error.text);
	return qmp;
}

Test(config, found_out_ahead_holds_until_something_is_plugged_in)
{
	struct prepared prepared = {.mark = NULL};
	struct facts taken;

	start(0, "ram0", "-machine pc,memory-backend=ram");
	collect(0);
	struct qmp *qmp = monitor_of(0);
	prepared_make(&prepared, qmp, PATIENT);
	cr_assert_not_null(prepared.mark);
	/* Taken as it is: it need not be true. */
	facts_add(&prepared.facts, "sign", "x");
	cr_assert_eq(prepared_take(&prepared, qmp, PATIENT, &taken, &error), 0);
	cr_assert_not_null(facts_find(&taken, "sign"));
	facts_close(&taken);
	prepared_make(&prepared, qmp, PATIENT);
	facts_add(&prepared.facts, "sign", "x");
	cr_assert_eq(qmp_execute(qmp, "device_add",
				 json_pack("{s:s, s:s}", "driver", "virtio-rng-pci", "id", "rng"),
				 PATIENT, NULL, &error),
		     0, "%s", error.text);
	cr_assert_eq(prepared_take(&prepared, qmp, PATIENT, &taken, &error), 0);
	cr_assert_null(facts_find(&taken, "sign"));
	cr_assert_not_null(facts_find(&taken, "device rng"));
	facts_close(&taken);
	/* Nothing was found out ahead. */
	cr_assert_eq(prepared_take(&prepared, qmp, PATIENT, &taken, &error), 0);
	cr_assert_not_null(facts_find(&taken, "device rng"));
	facts_close(&taken);
	qmp_close(qmp);
}

/* --- For the doctor -----------------------------------------------------------------------------
 */

static struct jaunt_check checks[EXAMINE_MAX];

static const struct jaunt_check *examine(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/0.qmp", folder);
	size_t count = examine_qemu(path, checks);
	for (size_t i = 0; i < count; i++)
		if (strcmp(checks[i].name, name) == 0)
			return &checks[i];
	cr_assert_fail("no finding %s among %zu", name, count);
	return NULL;
}

Test(config, examined_says_what_to_change)
{
	struct qmp *busy;
	char path[128];

	start(0, "ram0", "-device nvme,serial=1,id=disk0 -machine q35,memory-backend=ram");
	collect(0);
	cr_assert(examine("qemu.monitor")->ok);
	cr_assert(examine("qemu.memory")->ok);
	cr_assert(examine("qemu.capabilities")->ok);
	cr_assert(!examine("qemu.agent")->ok);
	cr_assert(strstr(examine("qemu.agent")->advice, "jaunt qemu --"));
	cr_assert(!examine("qemu.state")->ok);
	cr_assert(strstr(examine("qemu.cannot-move")->found, "disk0"));
	/* A monitor serves one client. */
	snprintf(path, sizeof(path), "%s/0.qmp", folder);
	cr_assert_eq(qmp_open(&busy, path, PATIENT, &error), 0);
	cr_assert(!examine("qemu.monitor")->ok);
	cr_assert(strstr(examine("qemu.monitor")->advice, "-qmp unix:"));
	qmp_close(busy);
}

Test(config, examined_says_what_memory_lacks)
{
	start(0, "ram0", "-machine q35");
	collect(0);
	const struct jaunt_check *check = examine("qemu.memory");
	cr_assert(!check->ok);
	cr_assert(strstr(check->advice, "memory-backend="), "%s: %s", check->found, check->advice);
}
