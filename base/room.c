/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A control group limits everything below it, so the room of a process is the smallest of what each
 * group on the way from its own to the root still allows. /proc/self/cgroup names the own group in
 * each hierarchy, /proc/self/mountinfo where the hierarchy is mounted and which of its groups is
 * the mount's root (in a container often not "/": then the groups above are out of sight, and the
 * walk ends at the mount point). Both versions may be mounted at once, with the memory controller
 * in one of them; the files of the other are simply not there.
 *
 * Usage counts the page cache too. Inactive file pages are what the kernel drops first when the
 * limit is reached, so they count as free, as in MemAvailable; guest memory (shared memory) is
 * never on that list.
 */
#include "base/room.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include "base/bits.h"

#define PATH_ROOM 1024

/* Version 1 writes "no limit" as LONG_MAX rounded down to pages. */
#define V1_NO_LIMIT (UINT64_C(1) << 62)

/* The files of one version. NULL: there is no such file. */
struct version {
	const char *memory_limit, *memory_soft_limit, *memory_usage, *reclaimable_key;
	const char *hugetlb_limit, *hugetlb_usage;
};

static const struct version version_1 = {
	.memory_limit = "memory.limit_in_bytes",
	.memory_usage = "memory.usage_in_bytes",
	.reclaimable_key = "total_inactive_file",
	.hugetlb_limit = "hugetlb.2MB.limit_in_bytes",
	.hugetlb_usage = "hugetlb.2MB.usage_in_bytes",
};

static const struct version version_2 = {
	.memory_limit = "memory.max",
	.memory_soft_limit = "memory.high", /* above it the kernel slows allocations to a crawl */
	.memory_usage = "memory.current",
	.reclaimable_key = "inactive_file",
	.hugetlb_limit = "hugetlb.2MB.max",
	.hugetlb_usage = "hugetlb.2MB.current",
};

static FILE *open_file(const char *directory, const char *name)
{
	char path[PATH_ROOM];
	int length = snprintf(path, sizeof(path), "%s/%s", directory, name);
	if (length < 0 || (size_t)length >= sizeof(path))
		return NULL;
	return fopen(path, "re");
}

/* A file that holds one number, or "max". false: no such file, or it holds something else. */
static bool read_number(const char *directory, const char *name, uint64_t *value)
{
	char text[64] = "";
	FILE *file = name ? open_file(directory, name) : NULL;
	if (!file)
		return false;
	bool ok = fgets(text, sizeof(text), file);
	fclose(file);
	if (!ok)
		return false;
	if (strncmp(text, "max", 3) == 0) {
		*value = ROOM_UNLIMITED;
		return true;
	}
	if (!isdigit((unsigned char)text[0]))
		return false;
	*value = strtoull(text, NULL, 10);
	return true;
}

/* The value of "key value" or "key: value" in a file of such lines. */
static bool read_key(const char *directory, const char *name, const char *key, uint64_t *value)
{
	char line[256];
	size_t length = strlen(key);
	bool found = false;
	FILE *file = open_file(directory, name);
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, length) != 0 || (line[length] != ' ' && line[length] != ':'))
			continue;
		*value = strtoull(line + length + 1, NULL, 10);
		found = true;
	}
	fclose(file);
	return found;
}

static uint64_t subtract(uint64_t from, uint64_t amount)
{
	return from > amount ? from - amount : 0;
}

/* Lowers the room to what one group allows. */
static void apply_group(struct room *room, const char *directory, const struct version *version)
{
	uint64_t limit = ROOM_UNLIMITED, soft = ROOM_UNLIMITED, used, reclaimable = 0;

	read_number(directory, version->memory_limit, &limit);
	read_number(directory, version->memory_soft_limit, &soft);
	if (soft < limit)
		limit = soft;
	if (limit < V1_NO_LIMIT && read_number(directory, version->memory_usage, &used)) {
		read_key(directory, "memory.stat", version->reclaimable_key, &reclaimable);
		used = subtract(used, reclaimable);
		uint64_t left = subtract(limit, used);
		if (left < room->cgroup_bytes_free) {
			room->cgroup_bytes_free = left;
			room->cgroup_limit_bytes = limit;
			room->cgroup_used_bytes = used;
			snprintf(room->cgroup, sizeof(room->cgroup), "%.255s", directory);
		}
	}
	if (read_number(directory, version->hugetlb_limit, &limit) && limit < V1_NO_LIMIT &&
	    read_number(directory, version->hugetlb_usage, &used)) {
		uint64_t left = subtract(limit, used);
		if (left < room->hugepage_bytes_free)
			room->hugepage_bytes_free = left;
	}
}

/* Applies the group `path` below the mount point `base`, and all between them. */
static void apply_groups(struct room *room, const char *base, const char *path,
			 const struct version *version)
{
	char directory[PATH_ROOM];
	size_t base_length = strlen(base);
	int length = snprintf(directory, sizeof(directory), "%s%s", base, path);
	if (length < 0 || (size_t)length >= sizeof(directory))
		return;
	for (;;) {
		apply_group(room, directory, version);
		char *slash = strrchr(directory, '/');
		if (!slash || strlen(directory) <= base_length ||
		    (size_t)(slash - directory) < base_length)
			return;
		*slash = '\0';
	}
}

/* The kernel writes blanks and backslashes of a path as \ooo. */
static void unescape(char *text)
{
	char *to = text;
	for (const char *from = text; *from;) {
		if (from[0] == '\\' && isdigit((unsigned char)from[1]) &&
		    isdigit((unsigned char)from[2]) && isdigit((unsigned char)from[3])) {
			*to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 |
				       (from[3] - '0'));
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	*to = '\0';
}

static bool list_has(const char *list, const char *word)
{
	size_t length = strlen(word);
	for (const char *at = list; (at = strstr(at, word)); at += length)
		if ((at == list || at[-1] == ',') && (at[length] == ',' || !at[length]))
			return true;
	return false;
}

/* The own group in a hierarchy, from lines of "ID:controllers:path". `controller` NULL: version 2.
 */
static bool own_group(const char *root, const char *controller, char *path, size_t size)
{
	char directory[PATH_ROOM], line[PATH_ROOM];
	bool found = false;

	snprintf(directory, sizeof(directory), "%s/proc/self", root);
	FILE *file = open_file(directory, "cgroup");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		char *controllers = strchr(line, ':');
		char *group = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!group)
			continue;
		*group++ = '\0';
		controllers++;
		found = controller ? list_has(controllers, controller)
				   : !*controllers && !strncmp(line, "0:", 2);
		if (found)
			snprintf(path, size, "%s", group);
	}
	fclose(file);
	return found;
}

/* One mounted hierarchy: "id parent major:minor ROOT POINT options … - TYPE source SUPER-OPTIONS".
 */
static void apply_mount(struct room *room, const char *root, char *line)
{
	char mounted[PATH_ROOM], point[PATH_ROOM], type[32], super[512], base[PATH_ROOM];
	char group[PATH_ROOM];
	const char *dash = strstr(line, " - ");
	const char *below;

	if (!dash || sscanf(line, "%*s %*s %*s %1023s %1023s", mounted, point) != 2 ||
	    sscanf(dash, " - %31s %*s %511s", type, super) != 2)
		return;
	unescape(mounted);
	unescape(point);
	bool second = !strcmp(type, "cgroup2");
	if (!second && strcmp(type, "cgroup") != 0)
		return;
	const char *controllers[] = {"memory", "hugetlb"};
	for (size_t i = 0; i < (second ? 1 : 2); i++) {
		const char *controller = second ? NULL : controllers[i];
		if (controller && !list_has(super, controller))
			continue;
		if (!own_group(root, controller, group, sizeof(group)))
			continue;
		size_t length = strcmp(mounted, "/") != 0 ? strlen(mounted) : 0;
		if (!strncmp(group, mounted, length) && (!group[length] || group[length] == '/'))
			below = group + length;
		else
			below = ""; /* a group that this mount does not show */
		/* A path of ".." leads out of a cgroup namespace: out of sight too. */
		if (!strcmp(below, "/") || !strncmp(below, "/..", 3))
			below = "";
		int used = snprintf(base, sizeof(base), "%s%s", root, point);
		if (used < 0 || (size_t)used >= sizeof(base))
			continue;
		apply_groups(room, base, below, second ? &version_2 : &version_1);
	}
}

static void apply_control_groups(struct room *room, const char *root)
{
	char directory[PATH_ROOM], line[4 * PATH_ROOM];

	snprintf(directory, sizeof(directory), "%s/proc/self", root);
	FILE *file = open_file(directory, "mountinfo");
	if (!file)
		return;
	while (fgets(line, sizeof(line), file))
		apply_mount(room, root, line);
	fclose(file);
}

static void measure_hugepages(struct room *room, const char *root)
{
	char directory[PATH_ROOM];
	uint64_t total = 0, unused = 0, reserved = 0;

	snprintf(directory, sizeof(directory), "%s/sys/kernel/mm/hugepages/hugepages-2048kB", root);
	read_number(directory, "nr_hugepages", &total);
	read_number(directory, "free_hugepages", &unused);
	read_number(directory, "resv_hugepages", &reserved);
	room->hugepage_bytes_total = total * MIB(2);
	room->hugepage_bytes_reserved = reserved * MIB(2);
	/* A reserved page is still counted among the free ones. */
	room->hugepage_bytes_free = subtract(unused, reserved) * MIB(2);
}

int room_measure(struct room *room, const char *root)
{
	char path[PATH_ROOM];
	struct statvfs shm;
	uint64_t kib;

	*room = (struct room){.cgroup_bytes_free = ROOM_UNLIMITED,
			      .cgroup_limit_bytes = ROOM_UNLIMITED};
	if (!root)
		root = "";
	if (strlen(root) > PATH_ROOM / 2)
		return -ENAMETOOLONG;

	snprintf(path, sizeof(path), "%s/proc", root);
	if (!read_key(path, "meminfo", "MemAvailable", &kib))
		return -ENOENT;
	room->memory_bytes = KIB(kib);
	if (read_key(path, "meminfo", "MemTotal", &kib))
		room->memory_total_bytes = KIB(kib);

	measure_hugepages(room, root);
	apply_control_groups(room, root);

	snprintf(path, sizeof(path), "%s/dev/shm", root);
	if (!statvfs(path, &shm))
		room->shm_bytes = (uint64_t)shm.f_bavail * shm.f_frsize;
	return 0;
}

#define CAP_IPC_LOCK_BIT 14

uint64_t room_lockable_of(uint64_t limit, const char *status)
{
	const char *effective = strstr(status, "\nCapEff:");
	const char *pinned = strstr(status, "\nVmPin:");

	if (effective && strtoull(effective + 8, NULL, 16) >> CAP_IPC_LOCK_BIT & 1)
		return ROOM_UNLIMITED;
	if (limit == ROOM_UNLIMITED)
		return limit;
	return subtract(limit, pinned ? strtoull(pinned + 7, NULL, 10) * 1024 : 0);
}

uint64_t room_lockable(void)
{
	char status[8192] = "";
	struct rlimit limit;
	FILE *file = open_file("/proc/self", "status");

	if (file) {
		size_t got = fread(status, 1, sizeof(status) - 1, file);
		status[got] = '\0';
		fclose(file);
	}
	if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
		return ROOM_UNLIMITED;
	return room_lockable_of(limit.rlim_cur, status);
}
