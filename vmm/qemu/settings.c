/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/settings.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vmm/qemu/vm.h"

/* x-ignore-shared: RAM in shared files is not in the stream. late-block-activate: a QEMU that has
 * loaded its state takes the disks only with `cont`; without it the source could not go on after a
 * failure, its disks being locked by the target. */
static const char *const wanted[] = {"x-ignore-shared", "late-block-activate", "events"};
#define WANTED (sizeof(wanted) / sizeof(wanted[0]))

/* The device state of a guest that stands still is to be there at once. */
#define BANDWIDTH (INT64_C(64) << 30)

/* What QEMU leaves for the time when the guest stands still, by its own estimate. */
#define DOWNTIME_MS         1
#define DOWNTIME_DEFAULT_MS 300 /* of QEMU */

static bool is_wanted(const char *name, bool ahead)
{
	if (ahead && strcmp(name, "pause-before-switchover") == 0)
		return true;
	for (size_t i = 0; i < WANTED; i++)
		if (strcmp(name, wanted[i]) == 0)
			return true;
	return false;
}

/* The list for migrate-set-capabilities. Only what changes: QEMU checks what it is told to turn on,
 * and newer versions complain of what is obsolete. */
static json_t *changes_of(const json_t *capabilities, bool ahead, bool back)
{
	json_t *changes = json_array(), *one;
	size_t i;

	json_array_foreach ((json_t *)capabilities, i, one) {
		const char *name = json_string_value(json_object_get(one, "capability"));
		bool was = json_is_true(json_object_get(one, "state"));
		if (name && was != is_wanted(name, ahead))
			json_array_append_new(changes, json_pack("{s:s, s:b}", "capability", name,
								 "state", back ? was : !was));
	}
	return changes;
}

const char *settings_missing(const json_t *capabilities)
{
	for (size_t w = 0; w < WANTED; w++) {
		json_t *one;
		bool found = false;
		size_t i;
		json_array_foreach ((json_t *)capabilities, i, one) {
			const char *name = json_string_value(json_object_get(one, "capability"));
			found |= name && strcmp(name, wanted[w]) == 0;
		}
		if (!found)
			return wanted[w];
	}
	return NULL;
}

static int check_known(const json_t *capabilities, struct jaunt_error *error)
{
	const char *missing = settings_missing(capabilities);

	return missing ? error_set(error, EOPNOTSUPP, "qemu-too-old",
				   "this QEMU does not have the migration capability %s; use "
				   "7.2 or newer",
				   missing)
		       : 0;
}

static int apply(const struct settings *settings, struct qmp *qmp, bool back,
		 struct jaunt_error *error)
{
	json_t *changes = changes_of(settings->capabilities, settings->ahead, back);

	if (!json_array_size(changes)) {
		json_decref(changes);
		return 0;
	}
	return qmp_execute(qmp, "migrate-set-capabilities",
			   json_pack("{s:o}", "capabilities", changes), QEMU_ANSWER_MS, NULL,
			   error);
}

static json_t *parameters_of(const json_t *all)
{
	json_t *some = json_object();
	json_t *bandwidth = json_object_get(all, "max-bandwidth");
	json_t *downtime = json_object_get(all, "downtime-limit");
	json_t *credentials = json_object_get(all, "tls-creds");

	if (bandwidth)
		json_object_set(some, "max-bandwidth", bandwidth);
	if (downtime)
		json_object_set(some, "downtime-limit", downtime);
	if (credentials)
		json_object_set(some, "tls-creds", credentials);
	return some;
}

int settings_make(struct settings *settings, struct qmp *qmp, bool ahead, struct jaunt_error *error)
{
	json_t *all = NULL;

	settings->ahead = ahead;
	int result = qmp_execute(qmp, "query-migrate-capabilities", NULL, QEMU_ANSWER_MS,
				 &settings->capabilities, error);

	if (result == 0)
		result = check_known(settings->capabilities, error);
	if (result == 0)
		result = apply(settings, qmp, false, error);
	if (result == 0)
		result = qmp_execute(qmp, "query-migrate-parameters", NULL, QEMU_ANSWER_MS, &all,
				     error);
	if (result == 0) {
		settings->parameters = parameters_of(all);
		/* The stream does not leave this host: Jaunt carries it. */
		result = qmp_execute(qmp, "migrate-set-parameters",
				     json_pack("{s:I, s:i, s:s}", "max-bandwidth",
					       (json_int_t)BANDWIDTH, "downtime-limit", DOWNTIME_MS,
					       "tls-creds", ""),
				     QEMU_ANSWER_MS, NULL, error);
	}
	json_decref(all);
	return result;
}

void settings_restore(struct settings *settings, struct qmp *qmp)
{
	/* One that does not answer is not waited for twice. */
	bool silent = settings->capabilities && apply(settings, qmp, true, NULL) == -ETIMEDOUT;

	if (!silent && settings->parameters && json_object_size(settings->parameters))
		qmp_execute(qmp, "migrate-set-parameters", json_incref(settings->parameters),
			    QEMU_ANSWER_MS, NULL, NULL);
	settings_forget(settings);
}

void settings_forget(struct settings *settings)
{
	json_decref(settings->capabilities);
	json_decref(settings->parameters);
	*settings = (struct settings){0};
}

bool settings_write(const struct settings *settings, char *text, size_t room)
{
	json_t *changed = changes_of(settings->capabilities, settings->ahead, true);
	json_t *whole = json_pack("{s:b, s:o, s:O}", "ahead", settings->ahead, "capabilities",
				  changed, "parameters", settings->parameters);
	char *all = whole ? json_dumps(whole, JSON_COMPACT) : NULL;
	bool fits = all && strlen(all) < room;

	if (fits)
		memcpy(text, all, strlen(all) + 1);
	free(all);
	json_decref(whole);
	return fits;
}

bool settings_read(struct settings *settings, const char *text)
{
	json_error_t ignored;
	json_t *whole = json_loads(text, 0, &ignored), *capabilities, *parameters;
	int ahead;
	bool sound = whole &&
		     json_unpack(whole, "{s:b, s:o, s:o}", "ahead", &ahead, "capabilities",
				 &capabilities, "parameters", &parameters) == 0 &&
		     json_is_array(capabilities) && json_is_object(parameters);

	settings_forget(settings);
	if (sound)
		*settings = (struct settings){.ahead = ahead,
					      .capabilities = json_incref(capabilities),
					      .parameters = json_incref(parameters)};
	json_decref(whole);
	return sound;
}

void settings_clear(struct qmp *qmp)
{
	json_t *off =
		json_pack("[{s:s, s:b}]", "capability", "pause-before-switchover", "state", 0);

	if (qmp_execute(qmp, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", off),
			QEMU_ANSWER_MS, NULL, NULL) == 0)
		(void)qmp_execute(qmp, "migrate-set-parameters",
				  json_pack("{s:i}", "downtime-limit", DOWNTIME_DEFAULT_MS),
				  QEMU_ANSWER_MS, NULL, NULL);
}
