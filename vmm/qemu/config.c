/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/config.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "vmm/qemu/ask.h"
#include "vmm/qemu/cpuid.h"
#include "vmm/qemu/devices.h"
#include "vmm/qemu/disks.h"
#include "vmm/qemu/refuse.h"
#include "vmm/qemu/storage.h"

/* Grows with what is told, and how: two sides of other numbers cannot be compared. */
#define FACTS_VERSION "2"

/* --- QEMU, and where it runs --------------------------------------------------------------------
 */

static void tell_host(struct facts *facts)
{
	char boot[64] = "", name[128] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		ssize_t got = read(fd, boot, sizeof(boot) - 1);
		boot[got > 0 ? got : 0] = '\0';
		boot[strcspn(boot, "\n")] = '\0';
		close(fd);
	}
	gethostname(name, sizeof(name) - 1);
	facts_add(facts, "host", "name=%s", name);
	if (boot[0])
		facts_add(facts, "host", "boot=%s", boot);
}

static void tell_qemu(struct ask *asking)
{
	unsigned number = qmp_version(asking->qmp);
	json_t *version = ask(asking, "query-version", NULL);
	json_t *target = ask(asking, "query-target", NULL);
	json_t *kvm = ask(asking, "query-kvm", NULL);
	json_t *uuid = ask(asking, "query-uuid", NULL);

	facts_add(asking->facts, "qemu version", "%u.%u.%u", number / 10000, number / 100 % 100,
		  number % 100);
	facts_add(asking->facts, "qemu package", "%s", ask_text(version, "package"));
	facts_add(asking->facts, "architecture", "%s", ask_text(target, "arch"));
	facts_add(asking->facts, "accelerator", "%s",
		  json_is_true(json_object_get(kvm, "enabled")) ? "kvm" : "not kvm");
	facts_add(asking->facts, "uuid", "%s", ask_text(uuid, "UUID"));
	json_decref(version);
	json_decref(target);
	json_decref(kvm);
	json_decref(uuid);
}

/* --- The machine --------------------------------------------------------------------------------
 */

/* Members of a property that is an object, a line each. */
static void tell_members(struct ask *asking, const char *key, const char *name,
			 const json_t *object)
{
	const char *member;
	json_t *value;
	char text[512];

	json_object_foreach ((json_t *)object, member, value) {
		if (ask_scalar(value, text, sizeof(text)))
			facts_add(asking->facts, key, "%s %s=%s", name, member, text);
	}
}

static bool is_of_machine(void *context, const char *name, const char *type)
{
	(void)context;
	(void)name;
	return devices_is_plain(type) || strstr(type, "Configuration");
}

static void take_of_machine(void *context, const char *name, const json_t *value)
{
	struct ask *asking = context;
	const char *string = json_string_value(value);
	char text[4096];

	if (strcmp(name, "type") == 0 && string)
		facts_add(asking->facts, "machine type", "%s", string);
	else if (json_is_object(value))
		tell_members(asking, "machine", name, value);
	else if (ask_scalar(value, text, sizeof(text)))
		facts_add(asking->facts, "machine", "%s=%s", name, text);
}

/* --- Processors ---------------------------------------------------------------------------------
 */

/* What belongs to one processor, or to nobody. */
static bool is_of_its_place(const char *name)
{
	static const char *const names[] = {"type",
					    "realized",
					    "hotplugged",
					    "hotpluggable",
					    "node-id",
					    "socket-id",
					    "die-id",
					    "cluster-id",
					    "module-id",
					    "core-id",
					    "thread-id",
					    "apic-id",
					    "start-powered-off",
					    "parent_bus",
					    "crash-information",
					    "legacy-memory"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

struct model {
	struct facts *facts;
	const json_t *words; /* of CPUID; NULL: not an x86 */
	char flags[FACTS_VALUE_MAX - 1];
	size_t used;
	bool kvm;
};

static bool has_flag(const struct model *model, const char *flag)
{
	size_t length = strlen(flag);

	for (const char *at = model->flags; (at = strstr(at, flag)); at += length)
		if ((at == model->flags || at[-1] == ' ') && (!at[length] || at[length] == ' '))
			return true;
	return false;
}

/* Flags in registers that the guest has only if another flag says so; where no word says whether it
 * does, they are no less worth asking for. */
static bool is_hidden(const struct model *model, const char *name)
{
	static const struct {
		const char *pattern, *flag;
	} details[] = {{"vmx-*", "vmx"},
		       {"rdctl-no", "arch-capabilities"},
		       {"ibrs-all", "arch-capabilities"},
		       {"rsba", "arch-capabilities"},
		       {"skip-l1dfl-vmentry", "arch-capabilities"},
		       {"ssb-no", "arch-capabilities"},
		       {"mds-no", "arch-capabilities"},
		       {"pschange-mc-no", "arch-capabilities"},
		       {"tsx-ctrl", "arch-capabilities"},
		       {"taa-no", "arch-capabilities"},
		       {"split-lock-detect", "core-capability"},
		       {"full-width-write", "pdcm"}};

	for (size_t i = 0; i < sizeof(details) / sizeof(details[0]); i++)
		if (fnmatch(details[i].pattern, name, 0) == 0)
			return cpuid_says(model->words, details[i].flag) &&
			       !has_flag(model, details[i].flag);
	return false;
}

/* Each question takes time, and there are hundreds of flags. Not asked for is what the words of
 * CPUID say already or say that the guest does not see, nor what QEMU would pretend to be Hyper-V
 * with, which it does under KVM only. */
static bool is_of_model(void *context, const char *name, const char *type)
{
	const struct model *model = context;

	if (!devices_is_plain(type) || is_of_its_place(name))
		return false;
	if (!model->words)
		return true;
	if (!model->kvm && strncmp(name, "hv-", 3) == 0)
		return false;
	return strcmp(type, "bool") != 0 ||
	       (!cpuid_says(model->words, name) && !is_hidden(model, name));
}

static void add_flag(void *context, const char *name)
{
	struct model *model = context;
	size_t left = sizeof(model->flags) - model->used;

	if (strlen(name) + 2 < left)
		model->used += (size_t)snprintf(model->flags + model->used, left, "%s%s",
						model->used ? " " : "", name);
	else
		model->facts->lost = true;
}

/* A word for each flag that is on, and the rest as it is. */
static void take_of_model(void *context, const char *name, const json_t *value)
{
	struct model *model = context;
	char text[512];

	if (json_is_true(value))
		add_flag(model, name);
	else if (!json_is_boolean(value) && ask_scalar(value, text, sizeof(text)))
		facts_add(model->facts, "cpu", "%s=%s", name, text);
}

/* The model as the first processor has it. */
static void tell_model(struct ask *asking, const char *path)
{
	const char *accelerator = facts_find(asking->facts, "accelerator");
	struct model model = {.facts = asking->facts,
			      .kvm = accelerator && strcmp(accelerator, "kvm") == 0};
	json_t *words = ask_property(asking, path, "feature-words");

	model.words = json_array_size(words) ? words : NULL;
	cpuid_each(words, add_flag, &model);
	ask_each(asking, path, is_of_model, take_of_model, &model);
	facts_add(asking->facts, "cpu flags", "%s", model.flags);
	json_decref(words);
}

static void tell_cpus(struct ask *asking)
{
	json_t *cpus = ask(asking, "query-cpus-fast", NULL), *cpu;
	size_t i;

	facts_add(asking->facts, "vcpus", "%zu", json_array_size(cpus));
	json_array_foreach (cpus, i, cpu) {
		const char *path = ask_text(cpu, "qom-path");
		json_t *type = ask_property(asking, path, "type");
		char key[48];
		if (i == 0) {
			facts_add(asking->facts, "cpu model", "%s",
				  json_string_value(type) ? json_string_value(type) : "");
			tell_model(asking, path);
		}
		snprintf(key, sizeof(key), "cpu %" JSON_INTEGER_FORMAT,
			 json_integer_value(json_object_get(cpu, "cpu-index")));
		facts_add(asking->facts, key, "type=%s",
			  json_string_value(type) ? json_string_value(type) : "");
		tell_members(asking, key, "at", json_object_get(cpu, "props"));
		json_decref(type);
	}
	json_decref(cpus);
}

/* --- Memory -------------------------------------------------------------------------------------
 */

/* One row of QEMU's own table: name, page size with its unit, offset, used, total. */
static void tell_block(struct facts *facts, const char *row)
{
	unsigned long long used, total;
	char name[208], key[FACTS_KEY_MAX];

	if (sscanf(row, "%200s %*s %*s %*x %llx %llx", name, &used, &total) != 3) {
		if (strstr(row, "0x"))
			facts_add(facts, "memory blocks that Jaunt cannot read", "%.200s", row);
		return;
	}
	snprintf(key, sizeof(key), "memory block %s", name);
	facts_add(facts, key, "total=%llu", total);
	facts_add(facts, key, "used=%llu", used);
}

static void tell_blocks(struct ask *asking)
{
	json_t *answer = ask(asking, "x-query-ramblock", NULL);
	const char *text = ask_text(answer, "human-readable-text");
	char *rows, *rest = NULL;

	if (!answer) { /* before QEMU 7.1 */
		answer = ask(asking, "human-monitor-command",
			     json_pack("{s:s}", "command-line", "info ramblock"));
		text = json_string_value(answer) ? json_string_value(answer) : "";
	}
	rows = strdup(text);
	for (char *row = rows ? strtok_r(rows, "\r\n", &rest) : NULL; row;
	     row = strtok_r(NULL, "\r\n", &rest))
		tell_block(asking->facts, row);
	asking->facts->lost |= !rows;
	free(rows);
	json_decref(answer);
}

/* The files behind guest RAM. Two QEMUs of one host must not share them: the target's is emptied.
 */
static void tell_files(struct ask *asking)
{
	json_t *backends = ask(asking, "query-memdev", NULL), *backend;
	char key[FACTS_KEY_MAX], object[FACTS_KEY_MAX];
	size_t i;

	json_array_foreach (backends, i, backend) {
		const char *id = ask_text(backend, "id");
		snprintf(object, sizeof(object), "/objects/%.200s", id);
		json_t *path = ask_property(asking, object, "mem-path");
		snprintf(key, sizeof(key), "memory file %.200s", id);
		facts_add(asking->facts, key, "bytes=%" JSON_INTEGER_FORMAT,
			  json_integer_value(json_object_get(backend, "size")));
		facts_add(asking->facts, key, "shared=%s",
			  json_is_true(json_object_get(backend, "share")) ? "yes" : "no");
		if (json_is_string(path))
			storage_tell_file(asking->facts, key, qmp_process(asking->qmp),
					  json_string_value(path), false);
		json_decref(path);
	}
	json_decref(backends);
}

static void tell_memory(struct ask *asking)
{
	json_t *size = ask(asking, "query-memory-size-summary", NULL);
	json_t *devices = ask(asking, "query-memory-devices", NULL), *device;
	size_t i;

	tell_members(asking, "memory size", "bytes", size);
	json_array_foreach (devices, i, device) {
		json_t *data = json_object_get(device, "data");
		char key[FACTS_KEY_MAX];
		/* The amount that a virtio-mem device has plugged travels with the guest. */
		json_object_del(data, "size");
		json_object_del(data, "hotplugged");
		snprintf(key, sizeof(key), "memory device %.200s", ask_text(data, "id"));
		facts_add(asking->facts, key, "type=%s", ask_text(device, "type"));
		tell_members(asking, key, "at", data);
	}
	json_decref(size);
	json_decref(devices);
	tell_blocks(asking);
	tell_files(asking);
}

/* --- All of it ----------------------------------------------------------------------------------
 */

int config_collect(struct facts *facts, struct qmp *qmp, unsigned timeout_ms,
		   struct jaunt_error *error)
{
	struct ask asking = {.qmp = qmp, .timeout_ms = timeout_ms, .facts = facts, .error = error};

	*facts = (struct facts){.all = NULL};
	facts_add(facts, "facts", FACTS_VERSION);
	tell_host(facts);
	tell_qemu(&asking);
	ask_each(&asking, "/machine", is_of_machine, take_of_machine, &asking);
	tell_cpus(&asking);
	tell_memory(&asking);
	devices_tell(&asking, refuse_device);
	disks_tell(&asking);
	refuse_tell(&asking);
	if (!asking.result && facts->lost)
		asking.result = error_set(error, E2BIG, "bad-description",
					  "QEMU has more devices and disks than Jaunt can describe "
					  "(%d facts, each of %d bytes at most)",
					  JAUNT_MAX_PROPERTIES, FACTS_VALUE_MAX);
	facts_sort(facts);
	return asking.result;
}
