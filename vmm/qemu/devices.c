/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_MAX_QOM    512
#define FEATURES_UNTOLD 100100 /* of this release of QEMU on features are not asked for */

bool devices_is_plain(const char *type)
{
	static const char *const types[] = {"bool",
					    "str",
					    "string",
					    "int",
					    "int8",
					    "int16",
					    "int32",
					    "int64",
					    "uint8",
					    "uint16",
					    "uint32",
					    "uint64",
					    "size",
					    "number",
					    "OnOffAuto",
					    "on|off|auto",
					    "BlockdevOnError",
					    "uint64_t"};

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (strcmp(type, types[i]) == 0)
			return true;
	return false;
}

/* What every device has and what changes by itself. */
static bool is_of_its_life(const char *name)
{
	static const char *const names[] = {"type",       "realized", "hotplugged",  "hotpluggable",
					    "parent_bus", "attached", "legacy-addr", "tray_open"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

/* --- Those that were asked for ------------------------------------------------------------------
 */

/* Its slot and function on a PCI bus, "04.0"; empty: it has none. Newer releases of QEMU have only
 * the number that both are in. */
static void place_of(struct ask *asking, const char *path, char *text, size_t room)
{
	json_t *said = ask_property(asking, path, "legacy-addr");
	json_t *number = json_is_string(said) ? NULL : ask_property(asking, path, "addr");
	json_int_t both = json_is_integer(number) ? json_integer_value(number) : -1;

	text[0] = '\0';
	if (json_is_string(said))
		snprintf(text, room, "%s", json_string_value(said));
	else if (both >= 0 && both <= 255)
		snprintf(text, room, "%02x.%x", (unsigned)both >> 3, (unsigned)both & 7);
	json_decref(said);
	json_decref(number);
}

/* A device without an id is known by its type and its place: the number that QEMU gave it depends
 * on the order of the options, and of what was plugged before. */
static void name_unnamed(struct ask *asking, const char *path, char *name, size_t room)
{
	json_t *type = ask_property(asking, path, "type");
	json_t *bus = ask_property(asking, path, "parent_bus");
	char place[24];
	const char *what = json_string_value(type) ? json_string_value(type) : "device";
	const char *last = json_string_value(bus) ? strrchr(json_string_value(bus), '/') : NULL;
	const char *number = strrchr(path, '[');

	place_of(asking, path, place, sizeof(place));
	if (last && place[0])
		snprintf(name, room, "%.80s on %.60s at %.20s", what, last + 1, place);
	else
		snprintf(name, room, "%.80s %.20s", what, number ? number : "");
	json_decref(type);
	json_decref(bus);
}

void devices_name(struct ask *asking, const char *path, char *name, size_t room)
{
	static const char named[] = "/machine/peripheral/";

	if (strncmp(path, named, strlen(named)) == 0)
		snprintf(name, room, "%.190s", path + strlen(named));
	else if (strchr(path, '['))
		name_unnamed(asking, path, name, room);
	else
		snprintf(name, room, "%.190s", strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
}

/* The bus by its own name: numbers of what is not named differ. */
static void tell_bus(struct ask *asking, const char *key, const char *path)
{
	json_t *bus = ask_property(asking, path, "parent_bus");
	const char *last = json_string_value(bus) ? strrchr(json_string_value(bus), '/') : NULL;

	if (last)
		facts_add(asking->facts, key, "bus=%s", last + 1);
	json_decref(bus);
}

/* The words of a list of features, without what explains each. */
static void add_features(char *text, size_t room, const json_t *list)
{
	size_t used = strlen(text), i;
	json_t *one;

	json_array_foreach ((json_t *)list, i, one) {
		const char *name = json_string_value(one) ? json_string_value(one) : "";
		used += (size_t)snprintf(text + used, used < room ? room - used : 0, "%s%.*s",
					 used ? " " : "", (int)strcspn(name, ": "), name);
		if (used >= room)
			break;
	}
}

/* What the host's side of a virtio device offers: it depends on the tap, the disk, the kernel.
 * QEMU 11.1 aborts when it is asked, 10.0 does not. Where it is not known QEMU itself refuses to
 * load a device whose features in use it does not have. */
static void tell_features(struct ask *asking, const char *key, const char *path)
{
	char backend[PATH_MAX_QOM], text[4096] = "";

	if (qmp_version(asking->qmp) >= FEATURES_UNTOLD)
		return;
	snprintf(backend, sizeof(backend), "%.490s/virtio-backend", path);
	json_t *status = ask(asking, "x-query-virtio-status", json_pack("{s:s}", "path", backend));
	const json_t *features = json_object_get(status, "host-features");
	add_features(text, sizeof(text), json_object_get(features, "transports"));
	add_features(text, sizeof(text), json_object_get(features, "dev-features"));
	if (features)
		facts_add(asking->facts, key, "features=%s", text);
	json_decref(status);
}

struct device {
	struct facts *facts;
	char key[FACTS_KEY_MAX];
};

static bool is_of_device(void *context, const char *name, const char *type)
{
	(void)context;
	return devices_is_plain(type) && !is_of_its_life(name);
}

static void take_of_device(void *context, const char *name, const json_t *value)
{
	struct device *device = context;
	char text[1024];

	if (!ask_scalar(value, text, sizeof(text)))
		return;
	/* Newer releases say -1 where nobody has set it, older ones what that means. */
	if (strcmp(name, "rombar") == 0 && strcmp(text, "-1") == 0)
		snprintf(text, sizeof(text), "1");
	facts_add(device->facts, device->key, "%s=%s", name, text);
}

static void tell_device(struct ask *asking, const char *name, const char *type, const char *path)
{
	struct device device = {.facts = asking->facts};

	snprintf(device.key, sizeof(device.key), "device %s", name);
	facts_add(asking->facts, device.key, "type=%s", type);
	tell_bus(asking, device.key, path);
	ask_each(asking, path, is_of_device, take_of_device, &device);
	if (strstr(type, "virtio"))
		tell_features(asking, device.key, path);
}

static void tell_all_of(struct ask *asking, const char *container,
			void (*visit)(struct ask *, const char *, const char *))
{
	json_t *list = ask_list(asking, container), *one;
	size_t i;

	json_array_foreach (list, i, one) {
		char path[PATH_MAX_QOM], what[128], name[200];
		if (sscanf(ask_text(one, "type"), "child<%127[^>]>", what) != 1)
			continue;
		snprintf(path, sizeof(path), "%s/%.200s", container, ask_text(one, "name"));
		devices_name(asking, path, name, sizeof(name));
		tell_device(asking, name, what, path);
		visit(asking, name, what);
	}
	json_decref(list);
}

/* --- Those that come with the machine -----------------------------------------------------------
 */

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A word for each type, with how many there are of it. */
static void tell_types(struct facts *facts, const char **types, size_t count)
{
	if (count)
		qsort(types, count, sizeof(*types), by_text);
	for (size_t i = 0, same; i < count; i += same) {
		for (same = 1; i + same < count && strcmp(types[i], types[i + same]) == 0;)
			same++;
		if (same > 1)
			facts_add(facts, "board devices", "%s(%zu)", types[i], same);
		else
			facts_add(facts, "board devices", "%s", types[i]);
	}
}

/* A network card of -nic, whose address the guest knows. */
static void tell_board_device(struct ask *asking, const char *name, const char *type)
{
	char path[PATH_MAX_QOM], key[FACTS_KEY_MAX], place[24];

	if (!strstr(type, "e1000") && !strstr(type, "virtio") && !strstr(type, "rtl8139") &&
	    !strstr(type, "net") && !strstr(type, "ne2k"))
		return;
	snprintf(path, sizeof(path), "/machine/unattached/%.200s", name);
	json_t *mac = ask_property(asking, path, "mac");
	place_of(asking, path, place, sizeof(place));
	snprintf(key, sizeof(key), "device %.80s of the board at %.20s", type,
		 place[0] ? place : "?");
	if (json_is_string(mac))
		facts_add(asking->facts, key, "mac=%s", json_string_value(mac));
	json_decref(mac);
}

static void tell_board(struct ask *asking)
{
	json_t *list = ask_list(asking, "/machine/unattached"), *one;
	size_t room = json_array_size(list), count = 0, i;
	const char **types = calloc(room + 1, sizeof(*types));

	json_array_foreach (list, i, one) {
		char *type = (char *)ask_text(one, "type");
		const char *name = ask_text(one, "name");
		if (!types || strncmp(name, "device[", 7) != 0 || strncmp(type, "child<", 6) != 0)
			continue;
		type += 6;
		type[strcspn(type, ">")] = '\0';
		tell_board_device(asking, name, type);
		/* Processors have facts of their own; one plugged later is found elsewhere. */
		if (!strstr(type, "-cpu"))
			types[count++] = type;
	}
	if (types)
		tell_types(asking->facts, types, count);
	asking->facts->lost |= !types;
	free(types);
	json_decref(list);
}

/* --- What the guest finds on its buses ----------------------------------------------------------
 */

static json_int_t number(const json_t *object, const char *member)
{
	return json_integer_value(json_object_get(object, member));
}

/* What is behind a bridge shows itself only once the guest has numbered its buses. */
static void tell_pci(struct ask *asking)
{
	json_t *buses = ask(asking, "query-pci", NULL), *bus, *device;
	size_t i, j;

	json_array_foreach (buses, i, bus) {
		json_array_foreach (json_object_get(bus, "devices"), j, device) {
			const json_t *id = json_object_get(device, "id");
			char key[FACTS_KEY_MAX];
			snprintf(key, sizeof(key), "pci %02x.%x", (unsigned)number(device, "slot"),
				 (unsigned)number(device, "function"));
			facts_add(asking->facts, key, "%04x:%04x class %04x",
				  (unsigned)number(id, "vendor"), (unsigned)number(id, "device"),
				  (unsigned)number(json_object_get(device, "class_info"), "class"));
		}
	}
	json_decref(buses);
}

void devices_tell(struct ask *asking, void (*visit)(struct ask *, const char *, const char *))
{
	tell_all_of(asking, "/machine/peripheral", visit);
	tell_all_of(asking, "/machine/peripheral-anon", visit);
	tell_board(asking);
	tell_pci(asking);
}
