/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/location.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 16 /* of filters */

static const struct protocol {
	const char *name;
	enum location_kind kind;
} protocols[] = {
	{"file", LOCATION_FILE},
	{"host_device", LOCATION_FILE},
	{"nbd", LOCATION_NETWORK},
	{"nbd+tcp", LOCATION_NETWORK},
	{"nbd+unix", LOCATION_NETWORK},
	{"iscsi", LOCATION_NETWORK},
	{"iscsi+tcp", LOCATION_NETWORK},
	{"iser", LOCATION_NETWORK},
	{"rbd", LOCATION_NETWORK},
	{"gluster", LOCATION_NETWORK},
	{"gluster+tcp", LOCATION_NETWORK},
	{"gluster+unix", LOCATION_NETWORK},
	{"gluster+rdma", LOCATION_NETWORK},
	{"nfs", LOCATION_NETWORK},
	{"http", LOCATION_NETWORK},
	{"https", LOCATION_NETWORK},
	{"ftp", LOCATION_NETWORK},
	{"ftps", LOCATION_NETWORK},
	{"ssh", LOCATION_NETWORK},
	{"null-co", LOCATION_NOTHING},
	{"null-aio", LOCATION_NOTHING},
	{"nvme", LOCATION_PASSED},
	{"host_cdrom", LOCATION_PASSED},
	{"vvfat", LOCATION_PASSED},
	{"fat", LOCATION_PASSED},
	{"nvme-io_uring", LOCATION_PASSED},
	{"virtio-blk-vfio-pci", LOCATION_PASSED},
	{"virtio-blk-vhost-user", LOCATION_PASSED},
	{"virtio-blk-vhost-vdpa", LOCATION_PASSED},
};

static void set(struct location *out, const char *driver, const char *text)
{
	out->kind = LOCATION_UNKNOWN;
	snprintf(out->driver, sizeof(out->driver), "%s", driver);
	for (size_t i = 0; i < sizeof(protocols) / sizeof(protocols[0]); i++)
		if (strcmp(protocols[i].name, driver) == 0)
			out->kind = protocols[i].kind;
	if (snprintf(out->text, sizeof(out->text), "%s", text) >= (int)sizeof(out->text))
		out->kind = LOCATION_UNKNOWN; /* what is cut short may look like another's */
}

/* A path may have a colon in it, but not before its first "/". */
static void parse_plain(const char *name, struct location *out)
{
	size_t word = strcspn(name, ":/");
	char driver[32];

	if (name[word] != ':' || word >= sizeof(driver)) {
		set(out, "file", name);
		return;
	}
	snprintf(driver, sizeof(driver), "%.*s", (int)word, name);
	bool is_path = strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0;
	set(out, driver, is_path ? name + word + 1 : name);
}

static bool is_filter(const char *driver)
{
	static const char *const names[] = {
		"raw", "qcow2",    "qcow",         "qed",         "vmdk",           "vdi",
		"vpc", "vhdx",     "luks",         "parallels",   "bochs",          "cloop",
		"dmg", "throttle", "copy-on-read", "preallocate", "snapshot-access"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(names[i], driver) == 0)
			return true;
	return false;
}

/* How the host goes about it, not where it lies: unlike the configuration of rbd, which says whose
 * pool it is. */
static bool is_of_use_only(const char *option)
{
	static const char *const names[] = {
		"node-name",   "read-only",       "auto-read-only", "discard",  "detect-zeroes",
		"force-share", "reconnect-delay", "open-timeout",   "user",     "password-secret",
		"key-secret",  "timeout",         "readahead",      "tls-creds"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(names[i], option) == 0)
			return true;
	return strncmp(option, "cache", 5) == 0 || strncmp(option, "aio", 3) == 0;
}

/* The options that say where it is, in the order of their names. */
static void parse_address(json_t *node, const char *driver, struct location *out)
{
	json_t *kept = json_object();
	const char *option;
	json_t *value;

	json_object_foreach (node, option, value) {
		if (!is_of_use_only(option))
			json_object_set(kept, option, value);
	}
	char *text = json_dumps(kept, JSON_COMPACT | JSON_SORT_KEYS);
	set(out, driver, text ? text : "");
	if (!text)
		out->kind = LOCATION_UNKNOWN;
	free(text);
	json_decref(kept);
}

/* "file.driver", "file.filename", … as QEMU flattens them, back into an object of their own. */
static json_t *gather_file(const json_t *node)
{
	json_t *file = json_object();
	const char *option;
	json_t *value;

	json_object_foreach ((json_t *)node, option, value) {
		if (strncmp(option, "file.", 5) == 0)
			json_object_set(file, option + 5, value);
	}
	return file;
}

static void parse_node(json_t *node, struct location *out)
{
	json_t *held = json_incref(node);

	set(out, "", "");
	for (int depth = 0; depth < DEPTH_MAX && json_is_object(held); depth++) {
		const char *driver = json_string_value(json_object_get(held, "driver"));
		const char *path = json_string_value(json_object_get(held, "filename"));
		if (driver && !is_filter(driver)) {
			bool is_path =
				strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0;
			if (is_path && path)
				set(out, driver, path);
			else if (!is_path)
				parse_address(held, driver, out);
			break;
		}
		json_t *file = json_object_get(held, "file");
		json_t *next = json_is_object(file) ? json_incref(file) : gather_file(held);
		if (!driver && !json_object_size(next) && path)
			parse_plain(path, out);
		json_decref(held);
		held = next;
	}
	json_decref(held);
}

void location_parse(const char *name, struct location *out)
{
	if (strncmp(name, "json:", 5) != 0) {
		parse_plain(name, out);
		return;
	}
	json_t *node = json_loads(name + 5, 0, NULL);
	parse_node(node, out);
	json_decref(node);
}
