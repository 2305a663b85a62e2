/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/qemu/identity.h"
#include "vmm/qemu/location.h"

TestSuite(identity, .timeout = 30);
TestSuite(location, .timeout = 30);

#define RAW   "format=raw\naccess=read and write\nvirtual size=8\n"
#define QCOW2 "format=qcow2\naccess=read and write\nvirtual size=8\n"
#define RO    "format=raw\naccess=read only\nvirtual size=8\n"

static const char *why;

static enum identity one_host(const char *source, const char *target)
{
	return identity_of(source, target, true, &why);
}

static enum identity two_hosts(const char *source, const char *target)
{
	return identity_of(source, target, false, &why);
}

Test(identity, of_a_file_is_its_inode_on_one_host)
{
	const char *file = RAW "kind=file\nfilesystem=ext4\nidentity=8:1 5\nfile=/a";

	cr_assert_eq(one_host(file, RAW "kind=file\nfilesystem=ext4\nidentity=8:1 5\nfile=/b"),
		     IDENTITY_SAME);
	cr_assert_eq(one_host(file, RAW "kind=file\nfilesystem=ext4\nidentity=8:1 6\nfile=/a"),
		     IDENTITY_OTHER);
	cr_assert_eq(one_host(file, RAW "kind=file\nfilesystem=ext4\nidentity=8:2 5\nfile=/a"),
		     IDENTITY_OTHER);
	cr_assert_eq(one_host(file, QCOW2 "kind=file\nfilesystem=ext4\nidentity=8:1 5"),
		     IDENTITY_OTHER);
	cr_assert_eq(one_host(file, RAW "kind=block device\nidentity=8:1 5"), IDENTITY_OTHER);
}

Test(identity, of_a_local_file_ends_at_its_host)
{
	const char *file = RAW "kind=file\nfilesystem=ext4\nidentity=8:1 5\ninode=5\nsize=8";

	cr_assert_eq(two_hosts(file, file), IDENTITY_OTHER);
	cr_assert(strstr(why, "cannot be the same storage"), "%s", why);
	cr_assert_eq(two_hosts(file, RAW "kind=file\nfilesystem=xfs\nidentity=8:1 5\ninode=5"),
		     IDENTITY_OTHER);
}

Test(identity, of_a_file_on_a_server_is_its_inode_there)
{
#define NFS RAW "kind=file\nfilesystem=nfs4\n"
	const char *file = NFS "server=nas:/vm\nidentity=0:40 77\ninode=77\nsize=8";

	cr_assert_eq(two_hosts(file, NFS "server=nas:/vm\nidentity=0:55 77\ninode=77\nsize=9"),
		     IDENTITY_SAME);
	cr_assert_eq(two_hosts(file, NFS "server=nas:/vm\nidentity=0:40 78\ninode=78"),
		     IDENTITY_OTHER);
	cr_assert_eq(two_hosts(file, NFS "server=10.0.0.9:/vm\nidentity=0:40 77\ninode=77"),
		     IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(file, NFS "identity=0:40 77\ninode=77"), IDENTITY_UNKNOWN);
	cr_assert_eq(one_host(file, NFS "server=nas:/vm\nidentity=0:55 77\ninode=77"),
		     IDENTITY_SAME);
}

Test(identity, of_a_file_on_a_server_without_inodes_is_its_path_there)
{
#define CIFS RAW "kind=file\nfilesystem=cifs\nserver=//nas/vm\n"
	cr_assert_eq(two_hosts(CIFS "inode=1\npath in it=/a", CIFS "inode=2\npath in it=/a"),
		     IDENTITY_SAME);
	cr_assert_eq(two_hosts(CIFS "inode=1\npath in it=/a", CIFS "inode=1\npath in it=/b"),
		     IDENTITY_OTHER);
	cr_assert_eq(two_hosts(CIFS "inode=1", CIFS "inode=1"), IDENTITY_OTHER);
}

Test(identity, on_a_filesystem_that_nobody_knows_is_not_known)
{
#define ODD RAW "kind=file\nfilesystem=fuse.odd\ninode=1\nserver=odd\npath in it=/a\n"
	cr_assert_eq(two_hosts(ODD, ODD), IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(RAW "kind=file\ninode=1", RAW "kind=file\ninode=1"), IDENTITY_OTHER);
}

Test(identity, of_what_is_only_read_is_its_contents_where_they_are_known)
{
#define LOCAL RO "kind=file\nfilesystem=ext4\n"
	cr_assert_eq(two_hosts(LOCAL "digest=ab\nsize=8", LOCAL "digest=ab\nsize=8"),
		     IDENTITY_SAME);
	cr_assert_eq(two_hosts(LOCAL "digest=ab\nsize=8", LOCAL "digest=ac\nsize=8"),
		     IDENTITY_COPY);
	cr_assert_eq(two_hosts(LOCAL "size=8", LOCAL "size=8"), IDENTITY_COPY);
	cr_assert_eq(one_host(LOCAL "identity=1:1 1", LOCAL "identity=1:1 2"), IDENTITY_COPY);
	cr_assert_eq(two_hosts(LOCAL "size=8",
			       "format=raw\naccess=read only\nvirtual size=9\nkind=file\n"
			       "filesystem=ext4"),
		     IDENTITY_OTHER);
}

Test(identity, of_a_block_device_is_its_number_here_and_its_wwid_elsewhere)
{
#define BLOCK RAW "kind=block device\nsize=8\n"
	cr_assert_eq(one_host(BLOCK "identity=8:16", BLOCK "identity=8:16"), IDENTITY_SAME);
	cr_assert_eq(one_host(BLOCK "identity=8:16", BLOCK "identity=8:32"), IDENTITY_OTHER);
	cr_assert_eq(two_hosts(BLOCK "identity=8:16", BLOCK "identity=8:16"), IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(BLOCK "wwid=naa.1", BLOCK "wwid=naa.1"), IDENTITY_SAME);
	cr_assert_eq(two_hosts(BLOCK "wwid=naa.1", BLOCK "wwid=naa.2"), IDENTITY_OTHER);
	cr_assert_eq(two_hosts(BLOCK "wwid=naa.1", RAW "kind=block device\nsize=9\nwwid=naa.1"),
		     IDENTITY_OTHER);
}

Test(identity, of_network_storage_is_its_address_unless_that_means_the_host_itself)
{
#define NET RAW "kind=network\n"
	cr_assert_eq(
		two_hosts(NET "url=nbd://10.127.0.1:10809/a", NET "url=nbd://10.127.0.1:10809/a"),
		IDENTITY_SAME);
	cr_assert_eq(two_hosts(NET "url=nbd://nas/a", NET "url=nbd://nas/b"), IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(NET "url=nbd://127.0.0.1/a", NET "url=nbd://127.0.0.1/a"),
		     IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(NET "url=nbd://localhost/a", NET "url=nbd://localhost/a"),
		     IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(NET "url=nbd://[::1]/a", NET "url=nbd://[::1]/a"), IDENTITY_UNKNOWN);
	cr_assert_eq(
		two_hosts(NET "url=nbd+unix:///a?socket=/s", NET "url=nbd+unix:///a?socket=/s"),
		IDENTITY_UNKNOWN);
	cr_assert_eq(two_hosts(NET "url=nbd://nas127.local/a", NET "url=nbd://nas127.local/a"),
		     IDENTITY_SAME);
	cr_assert_eq(one_host(NET "url=nbd://127.0.0.1/a", NET "url=nbd://127.0.0.1/a"),
		     IDENTITY_SAME);
	cr_assert_eq(two_hosts(NET, NET), IDENTITY_UNKNOWN);
}

Test(identity, of_an_address_that_each_host_understands_as_itself_is_known_on_one_host_only)
{
	static const char *const own[] = {
		NET "url=gluster:///volume/a",
		NET "url=gluster+tcp:///volume/a",
		NET "url=gluster://:24007/volume/a",
		NET "url=nbd://",
		NET "url=nbd://10.127.0.1.127.0.0.1/a?socket=127.0.0.1",
		NET "url=nbd://0.0.0.0:10809/a",
		NET "url=nbd://[::]:10809/a",
		NET "url=nbd://ip6-localhost/a",
		NET "url={\"driver\":\"nbd\",\"server\":{\"str\":\"7\",\"type\":\"fd\"}}",
		NET "url={\"driver\":\"nbd\",\"server.cid\":\"2\",\"server.type\":\"vsock\"}",
		NET "url={\"driver\":\"nbd\",\"server.path\":\"/s\",\"server.type\":\"unix\"}",
		NET "url={\"driver\":\"nbd\",\"server\":{\"host\":\"::1\",\"type\":\"inet\"}}",
	};
	static const char *const others[] = {
		NET "url=gluster://nas/volume/a",
		NET "url=nbd://[fd00::2]/vsock",
		NET "url={\"driver\":\"nbd\",\"export\":\"fd\",\"server\":{\"host\":\"nas\","
		    "\"port\":\"1\",\"type\":\"inet\"}}",
	};

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		cr_assert_eq(two_hosts(own[i], own[i]), IDENTITY_UNKNOWN, "%s", own[i]);
		cr_assert_eq(one_host(own[i], own[i]), IDENTITY_SAME, "%s", own[i]);
	}
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		cr_assert_eq(two_hosts(others[i], others[i]), IDENTITY_SAME, "%s", others[i]);
}

Test(identity, of_what_cannot_be_looked_at_is_not_known_even_where_all_else_agrees)
{
	cr_assert_eq(one_host(RAW "kind=file\nidentity=8:1 5\nproblem=x",
			      RAW "kind=file\nidentity=8:1 5"),
		     IDENTITY_UNKNOWN);
	cr_assert_eq(one_host(RAW "kind=passed through", RAW "kind=passed through"),
		     IDENTITY_UNKNOWN);
	cr_assert_eq(one_host("", ""), IDENTITY_OTHER);
}

Test(identity, in_doubt_is_another_where_snapshots_would_be_lost)
{
	cr_assert_eq(two_hosts(ODD "snapshots=first (1)", ODD), IDENTITY_OTHER);
	cr_assert(strstr(why, "snapshots"), "%s", why);
	cr_assert_eq(two_hosts(LOCAL "size=8\nsnapshots=first (1)", LOCAL "size=8"),
		     IDENTITY_OTHER);
	cr_assert_eq(one_host(QCOW2 "kind=file\nidentity=8:1 5\nsnapshots=first (1)",
			      QCOW2 "kind=file\nidentity=8:1 5"),
		     IDENTITY_SAME);
}

/* --- Where it lies ------------------------------------------------------------------------------
 */

static struct location location;

static enum location_kind parse(const char *name)
{
	location_parse(name, &location);
	return location.kind;
}

Test(location, of_a_plain_name_is_a_path_or_an_address)
{
	cr_assert_eq(parse("/vm/a.qcow2"), LOCATION_FILE);
	cr_assert_str_eq(location.text, "/vm/a.qcow2");
	cr_assert_eq(parse("a.qcow2"), LOCATION_FILE);
	cr_assert_eq(parse("./a:b"), LOCATION_FILE);
	cr_assert_str_eq(location.text, "./a:b");
	cr_assert_eq(parse("file:/vm/a"), LOCATION_FILE);
	cr_assert_str_eq(location.text, "/vm/a");
	cr_assert_eq(parse("nbd://nas:10809/a"), LOCATION_NETWORK);
	cr_assert_str_eq(location.text, "nbd://nas:10809/a");
	cr_assert_eq(parse("rbd:pool/image"), LOCATION_NETWORK);
	cr_assert_eq(parse("null-co://"), LOCATION_NOTHING);
	cr_assert_eq(parse("nvme://0000:44:00.0/1"), LOCATION_PASSED);
	cr_assert_eq(parse("fat:rw:/srv"), LOCATION_PASSED);
	cr_assert_eq(parse("blkdebug:x:y"), LOCATION_UNKNOWN);
	cr_assert_eq(parse("whatever://a"), LOCATION_UNKNOWN);
}

Test(location, of_a_json_name_is_that_of_the_innermost_file)
{
	cr_assert_eq(parse("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
			   "\"filename\":\"/vm/a\"}}"),
		     LOCATION_FILE);
	cr_assert_str_eq(location.text, "/vm/a");
	cr_assert_eq(parse("json:{\"driver\":\"throttle\",\"file\":{\"driver\":\"raw\",\"file\":"
			   "{\"driver\":\"host_device\",\"filename\":\"/dev/sdb\"}}}"),
		     LOCATION_FILE);
	cr_assert_str_eq(location.text, "/dev/sdb");
	cr_assert_eq(parse("json:{\"driver\":\"raw\",\"file.driver\":\"file\","
			   "\"file.filename\":\"/vm/a\"}"),
		     LOCATION_FILE);
	cr_assert_str_eq(location.text, "/vm/a");
	cr_assert_eq(parse("json:{\"driver\":\"quorum\",\"children\":[]}"), LOCATION_UNKNOWN);
}

Test(location, of_an_address_in_json_leaves_out_what_is_each_hosts_own)
{
	char first[LOCATION_TEXT_MAX];

	cr_assert_eq(parse("json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\",\"user\":\"a\","
			   "\"cache\":{\"direct\":true}}"),
		     LOCATION_NETWORK);
	strcpy(first, location.text);
	cr_assert_eq(parse("json:{\"image\":\"i\",\"driver\":\"rbd\",\"pool\":\"p\"}"),
		     LOCATION_NETWORK);
	cr_assert_str_eq(location.text, first);
	/* Another cluster may have a pool and an image of these names. */
	parse("json:{\"image\":\"i\",\"driver\":\"rbd\",\"pool\":\"p\","
	      "\"conf\":\"/etc/ceph.conf\"}");
	cr_assert_str_neq(location.text, first);
	parse("json:{\"image\":\"j\",\"driver\":\"rbd\",\"pool\":\"p\"}");
	cr_assert_str_neq(location.text, first);
}

Test(location, of_nonsense_is_not_known)
{
	char *deep = malloc(200000), *end = deep;

	cr_assert_eq(parse("json:"), LOCATION_UNKNOWN);
	cr_assert_eq(parse("json:[1,2]"), LOCATION_UNKNOWN);
	cr_assert_eq(parse("json:{}"), LOCATION_UNKNOWN);
	cr_assert_eq(parse("json:{\"driver\":7}"), LOCATION_UNKNOWN);
	cr_assert_eq(parse("json:{\"driver\":\"file\"}"), LOCATION_UNKNOWN);
	end += sprintf(end, "json:");
	for (int i = 0; i < 1000; i++)
		end += sprintf(end, "{\"driver\":\"raw\",\"file\":");
	end += sprintf(end, "1");
	for (int i = 0; i < 1000; i++)
		*end++ = '}';
	*end = '\0';
	cr_assert_eq(parse(deep), LOCATION_UNKNOWN);
	memset(deep, '/', 5000);
	deep[5000] = '\0';
	cr_assert_eq(parse(deep), LOCATION_UNKNOWN);
	free(deep);
}
