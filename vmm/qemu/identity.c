/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/identity.h"

#include <stddef.h>
#include <string.h>

#include "vmm/qemu/facts.h"

#define TEXT_MAX     4608
#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyz0123456789.-"

struct side {
	const char *value;
	char text[TEXT_MAX]; /* of the line asked for last */
};

static const char *line(struct side *side, const char *name)
{
	facts_line(side->value, name, side->text, sizeof(side->text));
	return side->text;
}

/* Both tell it, and the same. */
static bool agree(struct side *source, struct side *target, const char *name)
{
	return *line(source, name) && strcmp(source->text, line(target, name)) == 0;
}

static bool either_lacks(struct side *source, struct side *target, const char *name)
{
	return !*line(source, name) || !*line(target, name);
}

static bool is_one_of(const char *text, const char *const *list)
{
	for (; *list; list++)
		if (strcmp(text, *list) == 0)
			return true;
	return false;
}

/* "gluster:///volume", "gluster://:24007/volume": QEMU takes its own host. */
static bool lacks_host(const char *url)
{
	const char *host = strstr(url, "://");

	return host && strchr("/:?", host[3]);
}

/* What each host understands as itself: its names for itself, and what leads to no other host at
 * all. */
static bool is_loopback(const char *url)
{
	static const char *const names[] = {"127.",    "localhost", "ip6-localhost", "::1",
					    "0.0.0.0", "[::]",      "unix",          NULL};
	static const char *const transports[] = {"type\":\"fd\"", "type\":\"vsock\"", NULL};

	for (size_t i = 0; names[i]; i++)
		for (const char *found = url; (found = strstr(found, names[i])); found++)
			if (found == url || !strchr(NAME_LETTERS, found[-1]))
				return true;
	for (size_t i = 0; transports[i]; i++)
		if (strstr(url, transports[i]))
			return true;
	return lacks_host(url);
}

static enum identity network(struct side *source, struct side *target, bool one_host,
			     const char **why)
{
	bool loopback = is_loopback(line(source, "url"));

	if (!agree(source, target, "url")) {
		*why = "other addresses: whether they mean the same storage cannot be told";
		return IDENTITY_UNKNOWN;
	}
	if (!one_host && loopback) {
		*why = "an address that each host understands as itself";
		return IDENTITY_UNKNOWN;
	}
	return IDENTITY_SAME;
}

/* Filesystems that several hosts share, by what tells a file in them apart. */
static const char *const by_inode[] = {"nfs",    "nfs4", "ceph", "fuse.glusterfs", "lustre",
				       "beegfs", "gpfs", "gfs2", "ocfs2",          NULL};
static const char *const by_path[] = {"cifs", "smb3", "fuse.sshfs", NULL};
static const char *const local[] = {"ext2",  "ext3",     "ext4",  "ext2/ext3/ext4", "xfs",
				    "btrfs", "tmpfs",    "zfs",   "overlay",        "f2fs",
				    "vfat",  "bcachefs", "ramfs", "devtmpfs",       NULL};

static enum identity shared_file(struct side *source, struct side *target, const char **why)
{
	bool with_inodes = is_one_of(line(source, "filesystem"), by_inode);

	if (!agree(source, target, with_inodes ? "inode" : "path in it")) {
		*why = "another file of a shared filesystem";
		return IDENTITY_OTHER;
	}
	if (!agree(source, target, "server")) {
		*why = "the filesystem's server goes by other names: whether it is the same cannot "
		       "be told";
		return IDENTITY_UNKNOWN;
	}
	return IDENTITY_SAME;
}

static enum identity file(struct side *source, struct side *target, bool one_host, const char **why)
{
	bool alike = agree(source, target, "filesystem");
	bool shared =
		is_one_of(line(source, "filesystem"), by_inode) || is_one_of(source->text, by_path);
	bool known = is_one_of(source->text, local) && is_one_of(line(target, "filesystem"), local);

	if (one_host && agree(source, target, "identity"))
		return IDENTITY_SAME;
	if (alike && shared)
		return shared_file(source, target, why);
	if (one_host) {
		*why = "another file";
		return IDENTITY_OTHER;
	}
	if (agree(source, target, "digest") && agree(source, target, "size"))
		return IDENTITY_SAME;
	if (alike && !known) {
		*why = "files of a filesystem that Jaunt does not know: whether hosts share it "
		       "cannot be told";
		return IDENTITY_UNKNOWN;
	}
	*why = "a file of one host cannot be the same storage on another";
	return IDENTITY_OTHER;
}

static enum identity block_device(struct side *source, struct side *target, bool one_host,
				  const char **why)
{
	if (one_host && agree(source, target, "identity"))
		return IDENTITY_SAME;
	if (agree(source, target, "wwid") && agree(source, target, "size"))
		return IDENTITY_SAME;
	if (one_host || !either_lacks(source, target, "wwid")) {
		*why = "another block device";
		return IDENTITY_OTHER;
	}
	*why = "a block device without a name that is the same on every host (WWID): whether it "
	       "is the same cannot be told";
	return IDENTITY_UNKNOWN;
}

static enum identity judge(struct side *source, struct side *target, bool one_host,
			   const char **why)
{
	if (*line(source, "problem") || *line(target, "problem")) {
		*why = "what is behind it cannot be told";
		return IDENTITY_UNKNOWN;
	}
	if (!agree(source, target, "format")) {
		*why = "another format";
		return IDENTITY_OTHER;
	}
	if (!agree(source, target, "kind")) {
		*why = "another kind of storage";
		return IDENTITY_OTHER;
	}
	line(source, "kind");
	if (strcmp(source->text, "file") == 0)
		return file(source, target, one_host, why);
	if (strcmp(source->text, "block device") == 0)
		return block_device(source, target, one_host, why);
	if (strcmp(source->text, "network") == 0)
		return network(source, target, one_host, why);
	if (strcmp(source->text, "nothing") == 0)
		return IDENTITY_SAME;
	*why = "a kind of storage that Jaunt does not know";
	return IDENTITY_UNKNOWN;
}

enum identity identity_of(const char *source_value, const char *target_value, bool one_host,
			  const char **why)
{
	struct side source = {.value = source_value}, target = {.value = target_value};
	enum identity found = judge(&source, &target, one_host, why);

	if (found == IDENTITY_SAME)
		return found;
	bool snapshots = *line(&source, "snapshots");
	if (snapshots) {
		*why = "internal snapshots in it, which would be lost";
		return IDENTITY_OTHER;
	}
	if (found == IDENTITY_OTHER && agree(&source, &target, "access") &&
	    strcmp(source.text, "read only") == 0 && agree(&source, &target, "format") &&
	    agree(&source, &target, "virtual size"))
		return IDENTITY_COPY;
	return found;
}
