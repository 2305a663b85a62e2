/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/storage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <xxhash.h>

#define DIGEST_BYTES_MAX (16u << 20)
#define LEAVES_MAX       16 /* block devices below one */
#define DEPTH_MAX        8

/* --- Block devices ------------------------------------------------------------------------------
 */

static bool read_line(const char *path, char *text, size_t room)
{
	FILE *file = fopen(path, "re");
	bool read = file && fgets(text, (int)room, file);

	if (file)
		fclose(file);
	if (!read)
		text[0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return read && text[0];
}

/* Assigned once in the world; what a vendor's text makes up may be on every disk of its kind. */
static bool is_unique(const char *wwid)
{
	return strncmp(wwid, "naa.", 4) == 0 || strncmp(wwid, "eui.", 4) == 0 ||
	       strncmp(wwid, "uuid.", 5) == 0;
}

struct leaves {
	char all[LEAVES_MAX][160];
	size_t count;
	bool all_unique;
};

/* The hardware below a device of sysfs: itself, or what it is made of. */
static void find_leaves(const char *device, struct leaves *leaves, int depth)
{
	char path[PATH_MAX], wwid[128];
	bool is_leaf = true;

	snprintf(path, sizeof(path), "%.3000s/slaves", device);
	DIR *folder = opendir(path);
	for (struct dirent *one; folder && depth < DEPTH_MAX && (one = readdir(folder));) {
		if (one->d_name[0] == '.')
			continue;
		is_leaf = false;
		snprintf(path, sizeof(path), "%.3000s/slaves/%.255s", device, one->d_name);
		find_leaves(path, leaves, depth + 1);
	}
	if (folder)
		closedir(folder);
	if (!is_leaf)
		return;
	char partition[16] = "", suffix[32] = "";
	snprintf(path, sizeof(path), "%.3000s/partition", device);
	bool part = read_line(path, partition, sizeof(partition));
	if (part)
		snprintf(suffix, sizeof(suffix), " part %.15s", partition);
	snprintf(path, sizeof(path), "%.3000s/%sdevice/wwid", device, part ? "../" : "");
	bool found = read_line(path, wwid, sizeof(wwid));
	if (!found) {
		snprintf(path, sizeof(path), "%.3000s/%swwid", device, part ? "../" : "");
		found = read_line(path, wwid, sizeof(wwid));
	}
	if (!found || !is_unique(wwid) || leaves->count == LEAVES_MAX)
		leaves->all_unique = false;
	else
		snprintf(leaves->all[leaves->count++], sizeof(leaves->all[0]), "%s%s", wwid,
			 suffix);
}

static int by_text(const void *a, const void *b)
{
	return strcmp(a, b);
}

void storage_wwid(const char *sysfs, unsigned major, unsigned minor, char *text, size_t room)
{
	struct leaves leaves = {.all_unique = true};
	char path[PATH_MAX], device[PATH_MAX], mapping[256];
	size_t used = 0;

	text[0] = '\0';
	snprintf(path, sizeof(path), "%.1000s/dev/block/%u:%u", sysfs, major, minor);
	if (!realpath(path, device))
		return;
	find_leaves(device, &leaves, 0);
	if (!leaves.all_unique || !leaves.count)
		return;
	snprintf(path, sizeof(path), "%.3000s/dm/uuid", device);
	if (read_line(path, mapping, sizeof(mapping)))
		used = (size_t)snprintf(text, room, "%s", mapping);
	qsort(leaves.all, leaves.count, sizeof(leaves.all[0]), by_text);
	for (size_t i = 0; i < leaves.count && used < room; i++)
		if (i == 0 || strcmp(leaves.all[i], leaves.all[i - 1]) != 0)
			used += (size_t)snprintf(text + used, room - used, "%s%s", used ? " " : "",
						 leaves.all[i]);
	if (used >= room)
		text[0] = '\0'; /* what is cut short may look like another's */
}

/* --- Filesystems --------------------------------------------------------------------------------
 */

/* Octal escapes of blanks and their like, in place. */
static void unescape(char *text)
{
	char *to = text;

	for (char *from = text; *from; to++) {
		unsigned code;
		if (*from == '\\' && sscanf(from + 1, "%3o", &code) == 1 && code < 256) {
			*to = (char)code;
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = '\0';
}

static void below(const char *root, const char *point, const char *path, char *out, size_t room)
{
	size_t length = strcmp(point, "/") == 0 ? 0 : strlen(point);

	out[0] = '\0';
	if (strncmp(path, point, length) == 0 && path[length] == '/')
		snprintf(out, room, "%s%s", strcmp(root, "/") == 0 ? "" : root, path + length);
}

static bool parse_mount(char *row, unsigned long mount, const char *path, struct storage_mount *out)
{
	char *rest = NULL, *field[6];

	for (size_t i = 0; i < 6; i++)
		if (!(field[i] = strtok_r(i ? NULL : row, " ", &rest)))
			return false;
	if (strtoul(field[0], NULL, 10) != mount)
		return false;
	/* Optional fields, up to a single dash. */
	char *word = strtok_r(NULL, " ", &rest);
	while (word && strcmp(word, "-") != 0)
		word = strtok_r(NULL, " ", &rest);
	char *type = strtok_r(NULL, " ", &rest), *source = strtok_r(NULL, " ", &rest);
	if (!type || !source)
		return false;
	unescape(field[3]);
	unescape(field[4]);
	unescape(source);
	snprintf(out->type, sizeof(out->type), "%s", type);
	snprintf(out->source, sizeof(out->source), "%s", source);
	below(field[3], field[4], path, out->below, sizeof(out->below));
	return true;
}

bool storage_mount(const char *table, unsigned long mount, const char *path,
		   struct storage_mount *out)
{
	FILE *file = fopen(table, "re");
	size_t room = 0;
	char *row = NULL;
	bool found = false;

	*out = (struct storage_mount){.type = ""};
	while (file && !found && getline(&row, &room, file) > 0) {
		row[strcspn(row, "\n")] = '\0';
		found = parse_mount(row, mount, path, out);
	}
	free(row);
	if (file)
		fclose(file);
	return found;
}

/* --- Both ---------------------------------------------------------------------------------------
 */

static void tell_digest(struct facts *facts, const char *key, int fd, uint64_t bytes)
{
	if (!bytes || bytes > DIGEST_BYTES_MAX)
		return;
	char *contents = malloc(bytes);
	uint64_t done = 0;
	ssize_t got = 1;

	while (contents && done < bytes && got > 0) {
		got = pread(fd, contents + done, bytes - done, (off_t)done);
		done += got > 0 ? (uint64_t)got : 0;
	}
	if (contents && done == bytes) {
		XXH128_hash_t hash = XXH3_128bits(contents, bytes);
		facts_add(facts, key, "digest=%016llx%016llx", (unsigned long long)hash.high64,
			  (unsigned long long)hash.low64);
	}
	free(contents);
}

static void tell_block_device(struct facts *facts, const char *key, const struct stat *found,
			      int fd)
{
	uint64_t bytes = 0;
	char wwid[2048];

	facts_add(facts, key, "kind=block device");
	facts_add(facts, key, "identity=%u:%u", major(found->st_rdev), minor(found->st_rdev));
	if (fd >= 0 && ioctl(fd, BLKGETSIZE64, &bytes) == 0)
		facts_add(facts, key, "size=%llu", (unsigned long long)bytes);
	storage_wwid("/sys", major(found->st_rdev), minor(found->st_rdev), wwid, sizeof(wwid));
	if (wwid[0])
		facts_add(facts, key, "wwid=%s", wwid);
}

static void tell_regular_file(struct facts *facts, const char *key, const struct stat *found,
			      pid_t process, const char *path, unsigned long mount)
{
	struct storage_mount where;
	char table[64];

	facts_add(facts, key, "kind=file");
	facts_add(facts, key, "identity=%u:%u %llu", major(found->st_dev), minor(found->st_dev),
		  (unsigned long long)found->st_ino);
	facts_add(facts, key, "size=%llu", (unsigned long long)found->st_size);
	facts_add(facts, key, "inode=%llu", (unsigned long long)found->st_ino);
	snprintf(table, sizeof(table), "/proc/%ld/mountinfo", (long)process);
	if (!storage_mount(table, mount, path, &where))
		return;
	facts_add(facts, key, "filesystem=%s", where.type);
	/* A block device's name is each host's own. */
	if (strncmp(where.source, "/dev/", 5) != 0)
		facts_add(facts, key, "server=%s", where.source);
	if (where.below[0])
		facts_add(facts, key, "path in it=%s", where.below);
}

/* `there` is a name under /proc of the file, `path` the process's own. */
static void tell(struct facts *facts, const char *key, pid_t process, const char *there,
		 const char *path, bool digest)
{
	struct statx more = {.stx_mask = 0};
	struct stat found;
	int fd = open(there, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || fstat(fd, &found) || statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &more)) {
		facts_add(facts, key, "problem=cannot be looked at: %s; run jaunt as root",
			  strerror(errno));
	} else if (S_ISBLK(found.st_mode)) {
		tell_block_device(facts, key, &found, fd);
	} else if (S_ISREG(found.st_mode)) {
		tell_regular_file(facts, key, &found, process, path, more.stx_mnt_id);
		if (digest)
			tell_digest(facts, key, fd, (uint64_t)found.st_size);
	} else {
		facts_add(facts, key, "problem=neither a file nor a block device");
	}
	if (fd >= 0)
		close(fd);
}

/* The number under which a process has a file open; -ENOENT: it has not. */
static int find_open(pid_t process, const struct stat *wanted)
{
	char path[64], link[PATH_MAX];
	int found = -ENOENT;

	snprintf(path, sizeof(path), "/proc/%ld/fd", (long)process);
	DIR *folder = opendir(path);
	if (!folder)
		return -errno;
	for (struct dirent *one; found < 0 && (one = readdir(folder));) {
		struct stat open_one;
		snprintf(link, sizeof(link), "%s/%.20s", path, one->d_name);
		if (one->d_name[0] != '.' && stat(link, &open_one) == 0 &&
		    open_one.st_dev == wanted->st_dev && open_one.st_ino == wanted->st_ino)
			found = atoi(one->d_name);
	}
	closedir(folder);
	return found;
}

void storage_tell_descriptor(struct facts *facts, const char *key, pid_t process, int descriptor,
			     bool digest)
{
	char there[64], path[PATH_MAX];

	snprintf(there, sizeof(there), "/proc/%ld/fd/%d", (long)process, descriptor);
	ssize_t bytes = readlink(there, path, sizeof(path) - 1);
	path[bytes > 0 ? bytes : 0] = '\0';
	tell(facts, key, process, there, path, digest);
}

void storage_tell_file(struct facts *facts, const char *key, pid_t process, const char *path,
		       bool digest)
{
	char there[PATH_MAX + 64];
	struct stat found;

	snprintf(there, sizeof(there), "/proc/%ld/%s%.4000s", (long)process,
		 path[0] == '/' ? "root" : "cwd/", path);
	if (stat(there, &found)) {
		facts_add(facts, key, "problem=%s; was it removed or renamed since QEMU opened it?",
			  strerror(errno));
		return;
	}
	int descriptor = find_open(process, &found);
	if (descriptor == -ENOENT)
		facts_add(facts, key,
			  "problem=QEMU does not have this file open: was it replaced by another?");
	else if (descriptor < 0)
		facts_add(facts, key, "problem=cannot be looked at: %s; run jaunt as root",
			  strerror(-descriptor));
	else
		storage_tell_descriptor(facts, key, process, descriptor, digest);
}
