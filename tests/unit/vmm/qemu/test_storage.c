/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/qemu/storage.h"

static char folder[] = "/tmp/jaunt-storage-XXXXXX";
static struct facts facts;

static void set_up(void)
{
	cr_assert(mkdtemp(folder));
}

static void tear_down(void)
{
	char command[128];

	facts_close(&facts);
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	cr_assert_eq(system(command), 0);
}

TestSuite(storage, .init = set_up, .fini = tear_down, .timeout = 30);

/* A file in the folder, with the folders it takes. */
static void put(const char *path, const char *text)
{
	char whole[PATH_MAX];

	snprintf(whole, sizeof(whole), "%s/%s", folder, path);
	for (char *slash = strchr(whole + strlen(folder) + 1, '/'); slash;
	     slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(whole, 0700);
		*slash = '/';
	}
	FILE *file = fopen(whole, "we");
	cr_assert(file, "%s", whole);
	fputs(text, file);
	fclose(file);
}

static void point(const char *path, const char *to)
{
	char whole[PATH_MAX];

	put(path, "");
	snprintf(whole, sizeof(whole), "%s/%s", folder, path);
	unlink(whole);
	cr_assert_eq(symlink(to, whole), 0);
}

static const char *wwid(unsigned minor)
{
	static char text[256];

	storage_wwid(folder, 8, minor, text, sizeof(text));
	return text;
}

Test(storage, knows_a_disk_by_the_name_that_it_has_everywhere)
{
	put("block/sda/device/wwid", "naa.5000\n");
	point("dev/block/8:0", "../../block/sda");
	cr_assert_str_eq(wwid(0), "naa.5000");
	put("block/nvme0n1/wwid", "eui.0025\n");
	point("dev/block/8:1", "../../block/nvme0n1");
	cr_assert_str_eq(wwid(1), "eui.0025");
}

Test(storage, knows_a_partition_by_its_disk_and_its_number)
{
	put("block/sda/device/wwid", "naa.5000\n");
	put("block/sda/sda2/partition", "2\n");
	point("dev/block/8:2", "../../block/sda/sda2");
	cr_assert_str_eq(wwid(2), "naa.5000 part 2");
}

Test(storage, knows_a_volume_by_its_own_name_and_all_that_is_below_it)
{
	put("block/sdb/device/wwid", "naa.5002\n");
	put("block/sda/device/wwid", "naa.5001\n");
	put("block/dm-0/dm/uuid", "LVM-abc\n");
	point("block/dm-0/slaves/sdb", "../../sdb");
	point("block/dm-0/slaves/sda", "../../sda");
	point("dev/block/8:3", "../../block/dm-0");
	cr_assert_str_eq(wwid(3), "LVM-abc naa.5001 naa.5002");
	/* A copied volume group has the same name on other disks: one of them without. */
	put("block/sdb/device/wwid", "\n");
	cr_assert_str_eq(wwid(3), "");
}

Test(storage, has_no_name_for_a_device_whose_maker_made_none_up)
{
	put("block/sda/device/wwid", "t10.ATA     QEMU HARDDISK QM00001\n");
	point("dev/block/8:0", "../../block/sda");
	cr_assert_str_eq(wwid(0), "");
	put("block/loop0/size", "8\n");
	point("dev/block/8:1", "../../block/loop0");
	cr_assert_str_eq(wwid(1), "");
	cr_assert_str_eq(wwid(7), "");
}

static struct storage_mount found;

static bool mounted(const char *table, unsigned long number, const char *path)
{
	char whole[PATH_MAX];

	put("mountinfo", table);
	snprintf(whole, sizeof(whole), "%s/mountinfo", folder);
	return storage_mount(whole, number, path, &found);
}

Test(storage, finds_a_mount_by_its_number_and_the_path_below_it)
{
	static const char table[] =
		"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
		"36 22 0:40 /images /srv/vm\\040files rw,relatime shared:1 master:2 - nfs4 "
		"nas:/export rw,vers=4.2\n"
		"37 22 0:41 / /srv/b rw - cifs //nas/b\\040c rw\n";

	cr_assert(mounted(table, 36, "/srv/vm files/a.qcow2"));
	cr_assert_str_eq(found.type, "nfs4");
	cr_assert_str_eq(found.source, "nas:/export");
	cr_assert_str_eq(found.below, "/images/a.qcow2");
	cr_assert(mounted(table, 22, "/a"));
	cr_assert_str_eq(found.type, "ext4");
	cr_assert_str_eq(found.below, "/a");
	cr_assert(mounted(table, 37, "/srv/bb/a"));
	cr_assert_str_eq(found.source, "//nas/b c");
	cr_assert_str_eq(found.below, "");
	cr_assert(!mounted(table, 38, "/a"));
	cr_assert(!mounted("36\n36 \n36 1 2 3 4 5\n36 1 2 3 4 5 -\n", 36, "/a"));
}

static const char *line(const char *name)
{
	static char text[4096];

	facts_line(facts_find(&facts, "x"), name, text, sizeof(text));
	return text;
}

static int open_as(const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	facts_close(&facts);
	storage_tell_file(&facts, "x", getpid(), path, true);
	return fd;
}

Test(storage, is_the_same_by_whatever_name_and_another_with_the_same_contents)
{
	char path[PATH_MAX], other[PATH_MAX], identity[64], digest[64];

	put("disk", "contents");
	put("copy", "contents");
	snprintf(path, sizeof(path), "%s/disk", folder);
	snprintf(other, sizeof(other), "%s/hard", folder);
	cr_assert_eq(link(path, other), 0);
	point("soft", "disk");
	int fd = open_as("disk");
	cr_assert_str_eq(line("kind"), "file");
	cr_assert_str_eq(line("size"), "8");
	cr_assert_neq(line("filesystem")[0], '\0');
	snprintf(identity, sizeof(identity), "%s", line("identity"));
	snprintf(digest, sizeof(digest), "%s", line("digest"));
	cr_assert_neq(digest[0], '\0');
	close(fd);
	close(open_as("hard"));
	cr_assert_str_eq(line("identity"), identity);
	close(open_as("soft"));
	cr_assert_str_eq(line("identity"), identity);
	close(open_as("copy"));
	cr_assert_str_neq(line("identity"), identity);
	cr_assert_str_eq(line("digest"), digest);
}

Test(storage, that_was_replaced_or_removed_since_it_was_opened_is_not_taken_for_what_lies_there)
{
	char path[PATH_MAX], other[PATH_MAX];

	put("disk", "old");
	int fd = open_as("disk");
	cr_assert_str_eq(line("problem"), "");
	put("new", "new");
	snprintf(path, sizeof(path), "%s/disk", folder);
	snprintf(other, sizeof(other), "%s/new", folder);
	cr_assert_eq(rename(other, path), 0);
	facts_close(&facts);
	storage_tell_file(&facts, "x", getpid(), path, true);
	cr_assert(strstr(line("problem"), "replaced"), "%s", line("problem"));
	cr_assert_str_eq(line("identity"), "");
	cr_assert_eq(unlink(path), 0);
	facts_close(&facts);
	storage_tell_file(&facts, "x", getpid(), path, true);
	cr_assert_neq(line("problem")[0], '\0');
	/* What is open is known all the same. */
	facts_close(&facts);
	storage_tell_descriptor(&facts, "x", getpid(), fd, true);
	cr_assert_str_eq(line("size"), "3");
	close(fd);
}

Test(storage, that_is_neither_a_file_nor_a_block_device_is_a_problem)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	storage_tell_file(&facts, "x", getpid(), "/dev/null", true);
	cr_assert_neq(line("problem")[0], '\0');
	close(fd);
}
