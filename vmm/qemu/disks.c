/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/disks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/qemu/devices.h"
#include "vmm/qemu/location.h"
#include "vmm/qemu/storage.h"

#define CHAIN_MAX 200

struct disk {
	struct ask *asking;
	char key[FACTS_KEY_MAX]; /* "disk vda" */
	bool read_only;
};

/* --- One image ----------------------------------------------------------------------------------
 */

/* Files that were passed to QEMU have a number in a set in place of a name. */
static bool tell_fdset(struct disk *disk, const char *key, const char *path, bool digest)
{
	json_t *sets = ask(disk->asking, "query-fdsets", NULL), *set;
	int wanted, found = -1;
	size_t i;

	if (sscanf(path, "/dev/fdset/%d", &wanted) == 1)
		json_array_foreach (sets, i, set) {
			const json_t *fds = json_object_get(set, "fds");
			if (json_integer_value(json_object_get(set, "fdset-id")) == wanted)
				found = (int)json_integer_value(
					json_object_get(json_array_get(fds, 0), "fd"));
		}
	json_decref(sets);
	if (found >= 0)
		storage_tell_descriptor(disk->asking->facts, key, qmp_process(disk->asking->qmp),
					found, digest);
	return found >= 0;
}

static void tell_location(struct disk *disk, const char *key, const struct location *location,
			  bool read_only)
{
	struct facts *facts = disk->asking->facts;
	char refused[FACTS_KEY_MAX];

	switch (location->kind) {
	case LOCATION_FILE:
		facts_add(facts, key, "file=%s", location->text);
		if (strncmp(location->text, "/dev/fdset/", 11) != 0 ||
		    !tell_fdset(disk, key, location->text, read_only))
			storage_tell_file(facts, key, qmp_process(disk->asking->qmp),
					  location->text, read_only);
		return;
	case LOCATION_NETWORK:
		facts_add(facts, key, "kind=network");
		facts_add(facts, key, "url=%s", location->text);
		return;
	case LOCATION_NOTHING:
		facts_add(facts, key, "kind=nothing");
		return;
	case LOCATION_PASSED:
		facts_add(facts, key, "kind=passed through");
		snprintf(refused, sizeof(refused), "cannot move: %.200s", disk->key);
		facts_add(facts, refused, "why=%s: passes something of the host through",
			  location->driver);
		facts_add(facts, refused, "advice=take it off the guest before");
		return;
	case LOCATION_UNKNOWN:
		facts_add(facts, key, "url=%s", location->text);
		facts_add(facts, key, "problem=lies where Jaunt cannot follow (%s)",
			  location->driver);
		return;
	}
}

static void tell_snapshots(struct facts *facts, const char *key, const json_t *snapshots)
{
	char text[1024] = "";
	size_t used = 0, i;
	json_t *one;

	json_array_foreach ((json_t *)snapshots, i, one) {
		if (used < sizeof(text))
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s (%s)",
						 used ? ", " : "", ask_text(one, "name"),
						 ask_text(one, "id"));
	}
	if (text[0])
		facts_add(facts, key, "snapshots=%s", text);
}

static void tell_image(struct disk *disk, const char *key, const json_t *image, bool read_only)
{
	struct facts *facts = disk->asking->facts;
	const char *format = ask_text(image, "format");
	struct location location;

	location_parse(ask_text(image, "filename"), &location);
	/* A protocol without a format above it shows the same bytes as a raw image. */
	facts_add(facts, key, "format=%s", strcmp(format, location.driver) == 0 ? "raw" : format);
	facts_add(facts, key, "access=%s", read_only ? "read only" : "read and write");
	facts_add(facts, key, "virtual size=%" JSON_INTEGER_FORMAT,
		  json_integer_value(json_object_get(image, "virtual-size")));
	tell_snapshots(facts, key, json_object_get(image, "snapshots"));
	tell_location(disk, key, &location, read_only);
}

/* Down the chain, as far as it goes. */
static void tell_chain(struct disk *disk, const json_t *image)
{
	char key[FACTS_KEY_MAX];

	snprintf(key, sizeof(key), "%.200s: image", disk->key);
	for (unsigned depth = 1; depth <= CHAIN_MAX; depth++) {
		tell_image(disk, key, image, disk->read_only || depth > 1);
		const json_t *next = json_object_get(image, "backing-image");
		if (!next && json_object_get(image, "backing-filename"))
			facts_add(disk->asking->facts, key,
				  "problem=its backing file cannot be looked at");
		if (!next)
			return;
		image = next;
		snprintf(key, sizeof(key), "%.200s: backing %u", disk->key, depth);
	}
	disk->asking->facts->lost = true;
}

/* --- One disk -----------------------------------------------------------------------------------
 */

/* By the id of its device, which both sides share; the names of backends are each side's own. */
static void name_disk(struct disk *disk, const json_t *block)
{
	char path[512], name[200];
	const char *device = ask_text(block, "qdev");
	bool removable = json_is_true(json_object_get(block, "removable"));

	snprintf(path, sizeof(path), "%s", device[0] ? device : ask_text(block, "device"));
	char *end = strstr(path, "/virtio-backend");
	if (end)
		*end = '\0';
	devices_name(disk->asking, path, name, sizeof(name));
	snprintf(disk->key, sizeof(disk->key), "%s %s",
		 strstr(path, "flash") ? "flash"
		 : removable           ? "medium"
				       : "disk",
		 name);
}

static void tell_disk(struct ask *asking, const json_t *block)
{
	const json_t *inserted = json_object_get(block, "inserted");
	const json_t *cache = json_object_get(inserted, "cache");
	struct disk disk = {.asking = asking,
			    .read_only = json_is_true(json_object_get(inserted, "ro"))};

	/* A drive that belongs to no device and holds nothing. */
	if (!inserted && !ask_text(block, "qdev")[0])
		return;
	name_disk(&disk, block);
	facts_add(asking->facts, disk.key, "%s", inserted ? "holds=an image" : "holds=nothing");
	/* Of a drive without a medium that means nothing, and with one it is the medium's. */
	if (!json_is_true(json_object_get(block, "removable")))
		facts_add(asking->facts, disk.key, "access=%s",
			  disk.read_only ? "read only" : "read and write");
	if (inserted)
		facts_add(asking->facts, disk.key, "direct I/O=%s",
			  json_is_true(json_object_get(cache, "direct")) ? "on" : "off");
	if (inserted)
		tell_chain(&disk, json_object_get(inserted, "image"));
}

void disks_tell(struct ask *asking)
{
	json_t *blocks = ask(asking, "query-block", NULL), *block;
	size_t i;

	json_array_foreach (blocks, i, block)
		tell_disk(asking, block);
	json_decref(blocks);
}
