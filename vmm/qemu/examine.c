/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/examine.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/error.h"
#include "vmm/qemu/ask.h"
#include "vmm/qemu/attach.h"
#include "vmm/qemu/config.h"
#include "vmm/qemu/identity.h"
#include "vmm/qemu/qmp.h"
#include "vmm/qemu/regions.h"
#include "vmm/qemu/runstate.h"
#include "vmm/qemu/settings.h"

#define GREETING_MS 5000
#define ANSWER_MS   10000

struct examination {
	struct jaunt_check *checks;
	size_t count;
	struct jaunt_check beyond; /* where those go that there is no room for */
	struct qmp *qmp;
	struct facts facts;
};

static struct jaunt_check *add(struct examination *examination, const char *name, bool required,
			       bool ok)
{
	struct jaunt_check *check = examination->count < EXAMINE_MAX
					    ? &examination->checks[examination->count++]
					    : &examination->beyond;
	*check = (struct jaunt_check){.name = name, .ok = ok, .required = required};
	return check;
}

/* The text of an error says what is wrong and, behind a semicolon, what to do. */
static void add_error(struct examination *examination, const char *name,
		      const struct jaunt_error *error)
{
	struct jaunt_check *check = add(examination, name, true, false);
	const char *advice = strchr(error->text, ';');

	snprintf(check->found, sizeof(check->found), "%.*s",
		 advice ? (int)(advice - error->text) : (int)sizeof(check->found) - 1, error->text);
	snprintf(check->advice, sizeof(check->advice), "%.500s",
		 advice ? advice + 1 + strspn(advice + 1, " ") : "see what QEMU says");
}

/* --- One thing after the other ------------------------------------------------------------------
 */

static bool examine_monitor(struct examination *examination, const char *monitor)
{
	struct jaunt_error error = {.code = 0};

	if (qmp_open(&examination->qmp, monitor, GREETING_MS, &error)) {
		/* A monitor that another client holds takes the connection and says nothing. */
		if (strcmp(error.reason, "qemu-silent") == 0)
			error_set(
				&error, EBUSY, "qemu-silent",
				"nobody answers at %.150s; QEMU hangs, or another client has this "
				"monitor: give Jaunt one of its own with -qmp "
				"unix:PATH,server=on,wait=off",
				monitor);
		add_error(examination, "qemu.monitor", &error);
		return false;
	}
	struct jaunt_check *check = add(examination, "qemu.monitor", true, true);
	snprintf(check->found, sizeof(check->found), "QEMU %u.%u.%u, process %ld",
		 qmp_version(examination->qmp) / 10000, qmp_version(examination->qmp) / 100 % 100,
		 qmp_version(examination->qmp) % 100, (long)qmp_process(examination->qmp));
	return true;
}

static void examine_state(struct examination *examination)
{
	struct jaunt_error error = {.code = 0};
	char status[RUNSTATE_MAX];
	int result = runstate_ask(examination->qmp, ANSWER_MS, status, &error);
	bool source = strcmp(status, "running") == 0, target = strcmp(status, "inmigrate") == 0;
	struct jaunt_check *check = add(examination, "qemu.state", true, source || target);

	snprintf(check->found, sizeof(check->found), "%.60s%s", result ? error.text : status,
		 source   ? ": can be moved away"
		 : target ? ": waits for a guest"
			  : "");
	snprintf(check->advice, sizeof(check->advice),
		 "only a guest that runs can be moved (`cont`), and only a QEMU that was started "
		 "with -incoming defer can take one in");
}

static void examine_capabilities(struct examination *examination)
{
	struct jaunt_error error = {.code = 0};
	struct ask asking = {.qmp = examination->qmp, .timeout_ms = ANSWER_MS, .error = &error};
	json_t *list = ask(&asking, "query-migrate-capabilities", NULL);
	const char *missing = settings_missing(list);
	struct jaunt_check *check = add(examination, "qemu.capabilities", true, !missing);
	snprintf(check->found, sizeof(check->found), "%s%s",
		 missing ? "it does not have " : SETTINGS_WANTED, missing ? missing : "");
	snprintf(check->advice, sizeof(check->advice), "use QEMU 7.2 or newer");
	json_decref(list);
}

static void examine_agent(struct examination *examination)
{
	struct jaunt_error error = {.code = 0};
	struct attach attach = {.fd = -1};
	char path[256];

	if (attach_path(qmp_process(examination->qmp), path, sizeof(path), &error) ||
	    attach_open(&attach, path, &error)) {
		add_error(examination, "qemu.agent", &error);
		return;
	}
	struct jaunt_check *check = add(examination, "qemu.agent", true, true);
	snprintf(check->found, sizeof(check->found), "answers at %.200s", path);
	attach_close(&attach);
}

static void examine_filesystem(struct examination *examination, const struct regions_one *one)
{
	struct statfs system = {.f_type = 0};
	bool good = fstatfs(one->fd, &system) == 0 &&
		    (system.f_type == TMPFS_MAGIC || system.f_type == HUGETLBFS_MAGIC);
	struct jaunt_check *check = add(examination, "qemu.memory", true, good);

	snprintf(check->found, sizeof(check->found), "\"%s\": %llu MiB in a shared file%s", one->id,
		 (unsigned long long)(one->bytes >> 20),
		 good ? "" : " that does not lie in memory");
	snprintf(check->advice, sizeof(check->advice),
		 "give mem-path the name of a file in /dev/shm, or on hugetlbfs: userfaultfd works "
		 "on no other");
}

static void examine_memory(struct examination *examination)
{
	struct jaunt_error error = {.code = 0};
	struct regions regions;

	if (regions_find(&regions, examination->qmp, ANSWER_MS, &error)) {
		add_error(examination, "qemu.memory", &error);
		return;
	}
	for (size_t i = 0; i < regions.count; i++)
		examine_filesystem(examination, &regions.all[i]);
	if (regions_are_whole(&regions, qmp_process(examination->qmp), &error))
		add_error(examination, "qemu.memory", &error);
	regions_close(&regions);
}

/* --- Of the facts -------------------------------------------------------------------------------
 */

static void examine_refusal(struct examination *examination, const char *what, const char *value)
{
	char why[200], advice[400], may[8], only[16];

	facts_line(value, "why", why, sizeof(why));
	facts_line(value, "advice", advice, sizeof(advice));
	bool rounds = facts_line(value, "only", only, sizeof(only));
	bool optional = facts_line(value, "may", may, sizeof(may)) || rounds;
	struct jaunt_check *check = add(examination, "qemu.cannot-move", !optional, false);
	snprintf(check->found, sizeof(check->found), "%.50s: %.190s", what, why);
	snprintf(check->advice, sizeof(check->advice), "%.400s%s", advice,
		 rounds ? " (it stands in the way of modes with rounds)" : "");
}

/* How far a disk can go: one beside itself on another host says it. */
static void examine_disk(struct examination *examination, const char *key, const char *value)
{
	const char *why = "";
	char file[100], format[32];
	enum identity found = identity_of(value, value, false, &why);
	struct jaunt_check *check = add(examination, "qemu.storage", false, found == IDENTITY_SAME);

	if (!facts_line(value, "file", file, sizeof(file)))
		facts_line(value, "url", file, sizeof(file));
	facts_line(value, "format", format, sizeof(format));
	snprintf(check->found, sizeof(check->found), "%.90s: %s, %s%s", key, file, format,
		 found == IDENTITY_SAME ? "; other hosts can see it" : "");
	if (found != IDENTITY_SAME)
		snprintf(check->advice, sizeof(check->advice),
			 "to a QEMU on this host only: %s; to move it elsewhere, put it on storage "
			 "that both hosts see (NFS, Ceph, a shared block device, NBD)",
			 why);
}

static void examine_facts(struct examination *examination)
{
	static const char refusal[] = "cannot move: ";
	struct jaunt_error error = {.code = 0};

	if (config_collect(&examination->facts, examination->qmp, ANSWER_MS, &error))
		add_error(examination, "qemu.configuration", &error);
	for (size_t i = 0; i < examination->facts.count; i++) {
		const struct jaunt_property *fact = &examination->facts.all[i];
		if (strncmp(fact->key, refusal, strlen(refusal)) == 0)
			examine_refusal(examination, fact->key + strlen(refusal), fact->value);
		else if (strncmp(fact->key, "disk ", 5) == 0 && strstr(fact->key, ": "))
			examine_disk(examination, fact->key, fact->value);
	}
}

size_t examine_qemu(const char *monitor, struct jaunt_check checks[EXAMINE_MAX])
{
	struct examination examination = {.checks = checks};

	if (examine_monitor(&examination, monitor)) {
		examine_state(&examination);
		examine_capabilities(&examination);
		examine_agent(&examination);
		examine_memory(&examination);
		examine_facts(&examination);
	}
	facts_close(&examination.facts);
	qmp_close(examination.qmp);
	return examination.count;
}
