/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/regions.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"

#define HUGETLBFS 0x958458f6 /* f_type */

struct search {
	struct qmp *qmp;
	unsigned timeout_ms;
	struct jaunt_error *error;
};

/* --- What QEMU says -----------------------------------------------------------------------------
 */

/* A property that is a string; empty if there is none, or QEMU does not know it. */
static int property(struct search *search, const char *path, const char *name, char *text,
		    size_t room)
{
	json_t *value = NULL;
	int result = qmp_execute(search->qmp, "qom-get",
				 json_pack("{s:s, s:s}", "path", path, "property", name),
				 search->timeout_ms, &value, search->error);

	text[0] = '\0';
	if (result == 0 && json_is_string(value))
		snprintf(text, room, "%s", json_string_value(value));
	json_decref(value);
	if (result == -EINVAL || result == -ENOSYS) {
		error_clear(search->error);
		return 0;
	}
	return result;
}

static int not_shared(struct search *search, const char *id, uint64_t bytes)
{
	char machine[128];
	int result = property(search, "/machine", "type", machine, sizeof(machine));

	if (result)
		return result;
	char *behind = strstr(machine, "-machine");
	if (behind)
		*behind = '\0';
	return error_set(search->error, EOPNOTSUPP, "ram-not-shared",
			 "guest RAM \"%s\" is not a shared file; start QEMU with -object "
			 "memory-backend-file,id=ram,size=%lu,mem-path=/dev/shm/NAME,share=on "
			 "-machine %s,memory-backend=ram",
			 id, (unsigned long)bytes, machine[0] ? machine : "…");
}

/* --- What the kernel says -----------------------------------------------------------------------
 */

uint64_t regions_mapped(FILE *maps, dev_t device, ino_t inode, uint64_t *address)
{
	unsigned long from, to, offset, number;
	unsigned device_major, device_minor;
	uint64_t bytes = 0;
	size_t room = 0;
	char rights[8], *line = NULL;

	while (getline(&line, &room, maps) > 0) {
		if (sscanf(line, "%lx-%lx %7s %lx %x:%x %lu", &from, &to, rights, &offset,
			   &device_major, &device_minor, &number) != 7 ||
		    makedev(device_major, device_minor) != device || number != inode ||
		    rights[1] != 'w' || rights[3] != 's')
			continue;
		if (offset == 0 && bytes == 0)
			*address = from;
		else if (bytes == 0 || offset != bytes || from != *address + bytes)
			continue;
		bytes += to - from;
	}
	free(line);
	return bytes;
}

/* "VmFlags: rd wr sh um": `um` is registration for missing pages, `ui` for minor faults. Write-
 * protection alone is `uw`. */
static bool is_awaited(const char *line)
{
	static const char title[] = "VmFlags:";

	return strncmp(line, title, strlen(title)) == 0 &&
	       (strstr(line, " um") || strstr(line, " ui"));
}

static const struct regions_one *of_file(const struct regions *regions, dev_t device, ino_t inode)
{
	for (size_t i = 0; i < regions->count; i++)
		if (regions->all[i].device == device && regions->all[i].inode == inode)
			return &regions->all[i];
	return NULL;
}

const struct regions_one *regions_awaited(const struct regions *regions, FILE *smaps)
{
	const struct regions_one *one = NULL;
	unsigned long inode;
	unsigned device_major, device_minor;
	bool awaited = false;
	size_t room = 0;
	char *line = NULL;

	while (!awaited && getline(&line, &room, smaps) > 0) {
		if (sscanf(line, "%*x-%*x %*s %*x %x:%x %lu", &device_major, &device_minor,
			   &inode) == 3)
			one = of_file(regions, makedev(device_major, device_minor), inode);
		else
			awaited = one && is_awaited(line);
	}
	free(line);
	return awaited ? one : NULL;
}

int regions_are_whole(const struct regions *regions, pid_t process, struct jaunt_error *error)
{
	char table[64];

	snprintf(table, sizeof(table), "/proc/%ld/smaps", (long)process);
	FILE *smaps = fopen(table, "re");
	if (!smaps)
		return error_set(error, errno, "ram-not-found",
				 "cannot read QEMU's mappings in %s: %s; run jaunt as root or as "
				 "QEMU's user",
				 table, strerror(errno));
	const struct regions_one *awaited = regions_awaited(regions, smaps);
	fclose(smaps);
	if (!awaited)
		return 0;
	return error_set(
		error, EBUSY, "incomplete-memory",
		"pages of \"%s\" have not arrived yet, this guest is still on its way here; "
		"wait until its `jaunt receive` ends, or, if that died, go on with it by `jaunt "
		"resume qemu:SOCKET` here; if the source is lost, too, end this QEMU",
		awaited->id);
}

/* QEMU may live in a root of its own. */
static int open_file(pid_t process, const char *path)
{
	char there[PATH_MAX + 64];

	snprintf(there, sizeof(there), "/proc/%ld/root%s", (long)process, path);
	int fd = path[0] == '/' ? open(there, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0 && path[0] != '/') {
		snprintf(there, sizeof(there), "/proc/%ld/cwd/%s", (long)process, path);
		fd = open(there, O_RDWR | O_CLOEXEC);
	}
	return fd < 0 ? -errno : fd;
}

static int find_mapping(struct search *search, struct regions_one *one)
{
	char table[64];

	snprintf(table, sizeof(table), "/proc/%ld/maps", (long)qmp_process(search->qmp));
	FILE *maps = fopen(table, "re");
	if (!maps)
		return error_set(search->error, errno, "ram-not-found",
				 "cannot read QEMU's mappings in %s: %s; run jaunt as root or as "
				 "QEMU's user",
				 table, strerror(errno));
	uint64_t mapped = regions_mapped(maps, one->device, one->inode, &one->address);
	fclose(maps);
	if (mapped < one->bytes)
		return error_set(search->error, EINVAL, "ram-not-found",
				 "QEMU has mapped %lu bytes of the file of \"%s\", and says that "
				 "it has %lu; was the file replaced?",
				 (unsigned long)mapped, one->id, (unsigned long)one->bytes);
	return 0;
}

/* The file of a backend, opened, and its mapping. */
static int look_at(struct search *search, struct regions_one *one, const char *path)
{
	struct stat file;
	struct statfs system;

	one->fd = open_file(qmp_process(search->qmp), path);
	if (one->fd < 0)
		return error_set(search->error, -one->fd, "ram-not-found",
				 "cannot open %s, the memory of \"%s\": %s", path, one->id,
				 strerror(-one->fd));
	int result = fstat(one->fd, &file) || fstatfs(one->fd, &system) ? -errno : 0;
	if (result == 0 && !S_ISREG(file.st_mode))
		result = -EINVAL;
	if (result) {
		error_set(search->error, -result, "ram-not-found",
			  "%s, the memory of \"%s\", is not a file with a name; give mem-path the "
			  "name of a file, not of a folder",
			  path, one->id);
	} else {
		one->device = file.st_dev;
		one->inode = file.st_ino;
		one->page_bytes =
			system.f_type == HUGETLBFS ? (uint64_t)system.f_bsize : AGENT_PAGE;
		result = find_mapping(search, one);
	}
	if (result)
		close(one->fd);
	return result;
}

/* --- Both ---------------------------------------------------------------------------------------
 */

/* An id of QEMU's is letters, digits and a few signs; -object refuses others. */
static int find_one(struct search *search, struct regions *regions, const json_t *backend)
{
	const char *id = json_string_value(json_object_get(backend, "id"));
	json_int_t bytes = json_integer_value(json_object_get(backend, "size"));
	char object[128], path[PATH_MAX];
	struct regions_one *one = &regions->all[regions->count];

	if (!id || strlen(id) >= sizeof(one->id) || bytes <= 0 || regions->count == REGIONS_MAX)
		return error_set(search->error, EINVAL, "ram-not-found",
				 "QEMU has more than %d memory backends, or one without a name or "
				 "a size",
				 REGIONS_MAX);
	snprintf(object, sizeof(object), "/objects/%s", id);
	int result = property(search, object, "mem-path", path, sizeof(path));
	if (result)
		return result;
	if (!path[0] || !json_is_true(json_object_get(backend, "share")))
		return not_shared(search, id, (uint64_t)bytes);
	*one = (struct regions_one){.bytes = (uint64_t)bytes};
	snprintf(one->id, sizeof(one->id), "%s", id);
	result = look_at(search, one, path);
	if (result == 0)
		regions->count++;
	return result;
}

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct regions_one *)a)->id, ((const struct regions_one *)b)->id);
}

int regions_find(struct regions *regions, struct qmp *qmp, unsigned timeout_ms,
		 struct jaunt_error *error)
{
	struct search search = {qmp, timeout_ms, error};
	json_t *backends = NULL, *backend;
	size_t i;
	int result = qmp_execute(qmp, "query-memdev", NULL, timeout_ms, &backends, error);

	regions->count = 0;
	json_array_foreach (backends, i, backend) {
		if (result == 0)
			result = find_one(&search, regions, backend);
	}
	json_decref(backends);
	if (result == 0 && regions->count == 0)
		result = error_set(error, EINVAL, "ram-not-found",
				   "QEMU says that it has no memory backend at all");
	if (result)
		regions_close(regions);
	else
		qsort(regions->all, regions->count, sizeof(regions->all[0]), by_id);
	return result;
}

void regions_close(struct regions *regions)
{
	while (regions->count)
		close(regions->all[--regions->count].fd);
}
