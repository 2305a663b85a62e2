/* SPDX-License-Identifier: Apache-2.0 */
/* Each test builds the files of a pretended host below a directory of its own. */
#include <criterion/criterion.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/room.h"

static char root[64];

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *where)
{
	(void)status, (void)kind, (void)where;
	return remove(path);
}

static void put(const char *path, const char *text)
{
	char full[512];
	snprintf(full, sizeof(full), "%s%s", root, path);
	for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(full, 0700);
		*slash = '/';
	}
	FILE *file = fopen(full, "we");
	cr_assert_not_null(file, "%s: %s", full, strerror(errno));
	fputs(text, file);
	fclose(file);
}

static void build(void)
{
	strcpy(root, "/tmp/jaunt-room-XXXXXX");
	cr_assert_not_null(mkdtemp(root));
	put("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         1048576 kB\n"
			     "MemAvailable:    8388608 kB\nHugePages_Total:       0\n");
}

static void clear(void)
{
	nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

TestSuite(room, .init = build, .fini = clear, .timeout = 30);

static struct room measured(void)
{
	struct room room;
	cr_assert_eq(room_measure(&room, root), 0);
	return room;
}

#define V1_MOUNT                                                                                   \
	"30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
#define V2_MOUNT "31 25 0:27 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
#define NO_LIMIT "9223372036854771712\n"

Test(room, this_host_has_some_memory_and_at_most_all_of_it)
{
	struct room room;
	cr_assert_eq(room_measure(&room, NULL), 0);
	cr_assert_gt(room.memory_bytes, 0);
	cr_assert_geq(room.memory_total_bytes, room.memory_bytes);
	cr_assert_leq(room_for_pages(&room), room.memory_bytes);
}

Test(room, a_host_that_cannot_tell_its_memory_is_an_error)
{
	put("/proc/meminfo", "MemTotal: 5 kB\n");
	struct room room;
	cr_assert_eq(room_measure(&room, root), -ENOENT);
}

Test(room, without_control_groups_only_the_available_memory_counts)
{
	struct room room = measured();
	cr_assert_eq(room.memory_bytes, GIB(8));
	cr_assert_eq(room.memory_total_bytes, GIB(16));
	cr_assert_eq(room.cgroup_bytes_free, ROOM_UNLIMITED);
	cr_assert_str_eq(room.cgroup, "");
	cr_assert_eq(room_for_pages(&room), GIB(8));
	cr_assert_eq(room.hugepage_bytes_free, 0);
	cr_assert_eq(room.shm_bytes, 0);
}

Test(room, of_version_1_the_own_group_limits)
{
	put("/proc/self/mountinfo", V1_MOUNT);
	put("/proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/a/b\n0::/\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", NO_LIMIT);
	put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "99999999999\n");
	put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", NO_LIMIT);
	put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "5\n");
	put("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "1073741824\n");
	put("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "268435456\n");
	struct room room = measured();
	cr_assert_eq(room.cgroup_bytes_free, MIB(768));
	cr_assert_eq(room.cgroup_limit_bytes, GIB(1));
	cr_assert_eq(room.cgroup_used_bytes, MIB(256));
	cr_assert(strstr(room.cgroup, "/memory/a/b"));
	cr_assert_eq(room_for_pages(&room), MIB(768));
}

Test(room, a_tighter_group_above_wins_over_the_own_one)
{
	put("/proc/self/mountinfo", V1_MOUNT);
	put("/proc/self/cgroup", "4:memory:/a/b\n");
	put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n");
	put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1063741824\n");
	put("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "536870912\n");
	put("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "0\n");
	struct room room = measured();
	cr_assert_eq(room.cgroup_bytes_free, 10000000);
	cr_assert_eq(room.cgroup_limit_bytes, GIB(1));
}

Test(room, of_version_2_max_and_high_limit_and_the_root_group_has_neither)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "0::/user.slice/one.scope\n");
	put("/sys/fs/cgroup/cgroup.controllers", "memory\n");
	put("/sys/fs/cgroup/user.slice/memory.max", "max\n");
	put("/sys/fs/cgroup/user.slice/memory.high", "2147483648\n");
	put("/sys/fs/cgroup/user.slice/memory.current", "1073741824\n");
	put("/sys/fs/cgroup/user.slice/one.scope/memory.max", "4294967296\n");
	put("/sys/fs/cgroup/user.slice/one.scope/memory.high", "max\n");
	put("/sys/fs/cgroup/user.slice/one.scope/memory.current", "1048576\n");
	struct room room = measured();
	cr_assert_eq(room.cgroup_bytes_free, GIB(1));
	cr_assert(strstr(room.cgroup, "user.slice") && !strstr(room.cgroup, "one.scope"));
}

Test(room, of_version_2_max_everywhere_is_no_limit)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "0::/a\n");
	put("/sys/fs/cgroup/a/memory.max", "max\n");
	put("/sys/fs/cgroup/a/memory.high", "max\n");
	put("/sys/fs/cgroup/a/memory.current", "4096\n");
	cr_assert_eq(measured().cgroup_bytes_free, ROOM_UNLIMITED);
}

Test(room, file_cache_that_would_be_dropped_counts_as_free)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "0::/a\n");
	put("/sys/fs/cgroup/a/memory.max", "1073741824\n");
	put("/sys/fs/cgroup/a/memory.current", "1073741824\n");
	put("/sys/fs/cgroup/a/memory.stat", "anon 5\nfile 536870912\ninactive_file 268435456\n");
	struct room room = measured();
	cr_assert_eq(room.cgroup_bytes_free, MIB(256));
	cr_assert_eq(room.cgroup_used_bytes, MIB(768));
}

Test(room, of_version_1_the_cache_of_the_groups_below_counts_too)
{
	put("/proc/self/mountinfo", V1_MOUNT);
	put("/proc/self/cgroup", "4:memory:/a\n");
	put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n");
	put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1073741824\n");
	put("/sys/fs/cgroup/memory/a/memory.stat",
	    "inactive_file 4096\ntotal_inactive_file 536870912\n");
	cr_assert_eq(measured().cgroup_bytes_free, MIB(512));
}

Test(room, a_group_over_its_limit_has_no_room_rather_than_a_wrapped_figure)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "0::/a\n");
	put("/sys/fs/cgroup/a/memory.max", "4096\n");
	put("/sys/fs/cgroup/a/memory.current", "8192\n");
	struct room room = measured();
	cr_assert_eq(room.cgroup_bytes_free, 0);
	cr_assert_eq(room_for_pages(&room), 0);
}

Test(room, with_both_versions_mounted_the_tighter_counts)
{
	put("/proc/self/mountinfo",
	    V1_MOUNT "31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
	put("/proc/self/cgroup", "4:memory:/a\n0::/b\n");
	put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n");
	put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "0\n");
	put("/sys/fs/cgroup/unified/b/memory.max", "536870912\n");
	put("/sys/fs/cgroup/unified/b/memory.current", "0\n");
	cr_assert_eq(measured().cgroup_bytes_free, MIB(512));
}

Test(room, in_a_container_the_mount_shows_only_the_groups_from_its_own_down)
{
	put("/proc/self/mountinfo", "30 25 0:26 /docker/c1 /sys/fs/cgroup/memory ro - cgroup "
				    "cgroup rw,memory\n");
	put("/proc/self/cgroup", "4:memory:/docker/c1/sub\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
	put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "536870912\n");
	put("/sys/fs/cgroup/memory/sub/memory.limit_in_bytes", NO_LIMIT);
	put("/sys/fs/cgroup/memory/sub/memory.usage_in_bytes", "0\n");
	cr_assert_eq(measured().cgroup_bytes_free, MIB(512));
}

Test(room, a_group_outside_the_namespace_falls_back_to_the_root_of_the_mount)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "0::/../other\n");
	put("/sys/fs/cgroup/memory.max", "1048576\n");
	put("/sys/fs/cgroup/memory.current", "0\n");
	cr_assert_eq(measured().cgroup_bytes_free, MIB(1));
}

Test(room, a_mount_point_with_a_blank_in_its_name_is_found)
{
	put("/proc/self/mountinfo", "31 25 0:27 / /my\\040groups rw - cgroup2 cgroup2 rw\n");
	put("/proc/self/cgroup", "0::/a\n");
	put("/my groups/a/memory.max", "1048576\n");
	put("/my groups/a/memory.current", "0\n");
	cr_assert_eq(measured().cgroup_bytes_free, MIB(1));
}

Test(room, a_controller_whose_name_only_contains_memory_is_not_the_memory_controller)
{
	put("/proc/self/mountinfo", "30 25 0:26 / /groups rw - cgroup cgroup rw,memory2\n");
	put("/proc/self/cgroup", "4:memory2:/\n");
	put("/groups/memory.limit_in_bytes", "1\n");
	put("/groups/memory.usage_in_bytes", "0\n");
	cr_assert_eq(measured().cgroup_bytes_free, ROOM_UNLIMITED);
}

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

Test(room, reserved_huge_pages_are_not_free)
{
	put(POOL "nr_hugepages", "100\n");
	put(POOL "free_hugepages", "40\n");
	put(POOL "resv_hugepages", "30\n");
	struct room room = measured();
	cr_assert_eq(room.hugepage_bytes_total, MIB(200));
	cr_assert_eq(room.hugepage_bytes_reserved, MIB(60));
	cr_assert_eq(room.hugepage_bytes_free, MIB(20));
}

Test(room, a_control_group_limits_huge_pages_apart_from_memory)
{
	put(POOL "nr_hugepages", "100\n");
	put(POOL "free_hugepages", "100\n");
	put(POOL "resv_hugepages", "0\n");
	put("/proc/self/mountinfo", "30 25 0:26 / /huge rw - cgroup cgroup rw,hugetlb\n" V1_MOUNT);
	put("/proc/self/cgroup", "7:hugetlb:/h\n4:memory:/m\n");
	put("/huge/h/hugetlb.2MB.limit_in_bytes", "20971520\n");
	put("/huge/h/hugetlb.2MB.usage_in_bytes", "10485760\n");
	struct room room = measured();
	cr_assert_eq(room.hugepage_bytes_free, MIB(10));
	cr_assert_eq(room.cgroup_bytes_free, ROOM_UNLIMITED);
}

Test(room, shm_is_the_room_of_the_file_system_mounted_there)
{
	put("/dev/shm/a-file", "");
	cr_assert_gt(measured().shm_bytes, 0);
}

Test(room, garbage_in_a_limit_is_no_limit)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "nonsense\n0::/a\n");
	put("/sys/fs/cgroup/a/memory.max", "garbage\n");
	put("/sys/fs/cgroup/a/memory.current", "1\n");
	cr_assert_eq(measured().cgroup_bytes_free, ROOM_UNLIMITED);
}

/* --- Locked memory ------------------------------------------------------------------------------
 */

Test(room, what_is_pinned_already_counts_against_the_limit_of_locked_memory)
{
	const char *status = "Name:\tjaunt\nVmLck:\t    9000 kB\nVmPin:\t    1024 kB\n"
			     "CapEff:\t0000000000000000\n";

	cr_assert_eq(room_lockable_of(8 << 20, status), 7 << 20);
	cr_assert_eq(room_lockable_of(1 << 20, status), 0);
	cr_assert_eq(room_lockable_of(1 << 10, status), 0);
	cr_assert_eq(room_lockable_of(8 << 20, ""), 8 << 20);
	cr_assert_eq(room_lockable_of(ROOM_UNLIMITED, status), ROOM_UNLIMITED);
}

Test(room, who_may_lock_as_much_as_he_likes_has_no_limit)
{
	cr_assert_eq(room_lockable_of(1 << 20, "Name:\tjaunt\nCapEff:\t0000000000004000\n"),
		     ROOM_UNLIMITED);
	cr_assert_eq(room_lockable_of(1 << 20, "Name:\tjaunt\nCapEff:\tffffffffffffbfff\n"),
		     1 << 20);
}
