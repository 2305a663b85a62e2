/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/qemu/compare.h"
#include "vmm/qemu/pairs.h"
#include "vmm/qemu/rules.h"

static struct compared compared;
static struct jaunt_error error;
static struct facts source, here;
static const char *allowed[4];
static size_t allowed_count;
static bool rounds;

static void tear_down(void)
{
	compared_close(&compared);
	facts_close(&source);
	facts_close(&here);
}

TestSuite(compare, .fini = tear_down, .timeout = 60);

static void add_lines(struct facts *facts, const char *key, const char *lines)
{
	while (lines) {
		size_t bytes = strcspn(lines, "\n");
		facts_add(facts, key, "%.*s", (int)bytes, lines);
		lines = lines[bytes] ? lines + bytes + 1 : NULL;
	}
}

static void both(const char *key, const char *there_value, const char *here_value)
{
	add_lines(&source, key, there_value);
	add_lines(&here, key, here_value);
}

static int run(void)
{
	struct jaunt_description description = {.properties = source.all,
						.property_count = source.count,
						.allowed = allowed,
						.allowed_count = allowed_count,
						.rounds = rounds};

	compared_close(&compared);
	memset(&error, 0, sizeof(error));
	return compare_facts(&description, &here, &compared, &error);
}

/* Exactly that item differs. */
static const struct jaunt_difference *only(const char *item)
{
	cr_assert_eq(run(), -22);
	cr_assert_str_eq(error.reason, "configuration");
	cr_assert_eq(compared.count, 1, "%zu: %s", compared.count, error.text);
	cr_assert_str_eq(compared.all[0].item, item);
	cr_assert(strstr(error.text, item), "%s", error.text);
	return &compared.all[0];
}

static void allow(const char *item)
{
	allowed[allowed_count++] = item;
}

Test(compare, finds_nothing_where_all_is_the_same_in_any_order)
{
	both("machine type", "pc-q35-7.2-machine", NULL);
	both("cpu flags", "sse sse2 avx", "avx sse sse2");
	both("device net0", "type=virtio-net-pci\nmac=1", "mac=1\ntype=virtio-net-pci");
	both("machine type", NULL, "pc-q35-7.2-machine");
	cr_assert_eq(run(), 0, "%s", error.text);
	cr_assert_eq(compared.count, 0);
}

Test(compare, names_each_item_that_differs_and_what_each_side_has)
{
	static const char *const items[][3] = {
		{"machine type", "pc-q35-7.2-machine", "pc-i440fx-7.2-machine"},
		{"vcpus", "2", "1"},
		{"cpu model", "max-x86_64-cpu", "qemu64-x86_64-cpu"},
		{"accelerator", "kvm", "not kvm"},
		{"architecture", "x86_64", "i386"},
		{"uuid", "a", "b"},
		{"pci 03.0", "1af4:1000 class 0200", "1af4:1001 class 0100"},
		{"facts", "1", "2"},
		{"something that no rule is about", "a", "b"},
	};

	for (size_t i = 0; i < sizeof(items) / sizeof(items[0]); i++) {
		both(items[i][0], items[i][1], items[i][2]);
		const struct jaunt_difference *one = only(items[i][0]);
		cr_assert_str_eq(one->source, items[i][1]);
		cr_assert_str_eq(one->target, items[i][2]);
		cr_assert_neq(one->advice[0], '\0');
		tear_down();
	}
}

Test(compare, tells_all_of_them_and_not_the_first_only)
{
	both("vcpus", "2", "1");
	both("uuid", "a", "b");
	both("machine", "smm=on\nhpet=on\nusb=off", "smm=off\nhpet=off\nusb=off");
	cr_assert_neq(run(), 0);
	cr_assert_eq(compared.count, 4);
	cr_assert_str_eq(compared.all[0].item, "machine: hpet");
	cr_assert_str_eq(compared.all[1].item, "machine: smm");
	cr_assert_str_eq(compared.all[2].item, "uuid");
	cr_assert_str_eq(compared.all[3].item, "vcpus");
	cr_assert(strstr(error.text, "4 reasons"), "%s", error.text);
}

Test(compare, names_a_device_that_one_side_lacks_by_its_type)
{
	both("device bal", NULL, "addr=16\ntype=virtio-balloon-pci\nvectors=2");
	const struct jaunt_difference *one = only("device bal");
	cr_assert_str_eq(one->source, "");
	cr_assert_str_eq(one->target, "virtio-balloon-pci");
	cr_assert(!one->allowable);
}

Test(compare, tells_of_a_device_only_the_property_that_differs)
{
	both("device net0", "type=virtio-net-pci\nmac=52:54:00:00:00:01\nvectors=4",
	     "type=virtio-net-pci\nmac=52:54:00:00:00:02\nvectors=4");
	const struct jaunt_difference *one = only("device net0: mac");
	cr_assert_str_eq(one->source, "52:54:00:00:00:01");
	cr_assert_str_eq(one->target, "52:54:00:00:00:02");
	cr_assert(!one->allowable);
}

Test(compare, does_not_mind_what_is_each_hosts_own)
{
	both("device net0", "type=virtio-net-pci\nnetdev=n0", "type=virtio-net-pci\nnetdev=tap7");
	both("device vda", "drive=d0\nwerror=stop", "drive=other\nwerror=report");
	both("host", "name=a", "name=b");
	both("disk vda", "holds=an image\ndirect I/O=on", "holds=an image\ndirect I/O=off");
	both("memory block /rom@etc/acpi/tables", "total=2097152\nused=131072",
	     "total=2097152\nused=65536");
	both("memory file ram", "bytes=1\nfile=/dev/shm/a\nidentity=0:1 7",
	     "bytes=1\nfile=/dev/shm/b\nidentity=0:1 8");
	cr_assert_eq(run(), 0, "%s", error.text);
}

/* --- What is allowed ----------------------------------------------------------------------------
 */

Test(compare, lets_an_item_differ_that_is_safe_and_allowed)
{
	both("uuid", "a", "b");
	cr_assert(only("uuid")->allowable);
	cr_assert(strstr(compared.all[0].advice, "--allow-difference 'uuid'"), "%s",
		  compared.all[0].advice);
	allow("uuid");
	cr_assert_eq(run(), 0, "%s", error.text);
}

Test(compare, refuses_what_is_never_safe_although_it_is_allowed_and_says_so)
{
	both("cpu model", "a", "b");
	cr_assert_null(strstr(only("cpu model")->advice, "never safe"));
	allow("cpu model");
	const struct jaunt_difference *one = only("cpu model");
	cr_assert(!one->allowable);
	cr_assert(strstr(one->advice, "never safe"), "%s", one->advice);
}

Test(compare, takes_an_allowed_item_by_its_whole_name)
{
	both("uuid", "a", "b");
	allow("uui");
	allow("uuid ");
	allow("*");
	only("uuid");
}

Test(compare, lets_the_target_have_more_flags_if_told_to_but_never_fewer)
{
	both("cpu flags", "sse sse2", "avx sse sse2");
	cr_assert(only("cpu flags")->allowable);
	cr_assert_str_eq(compared.all[0].source, "");
	cr_assert_str_eq(compared.all[0].target, "avx");
	allow("cpu flags");
	cr_assert_eq(run(), 0);
	facts_close(&here);
	both("cpu flags", NULL, "sse");
	cr_assert(!only("cpu flags")->allowable);
	cr_assert_str_eq(compared.all[0].source, "sse2");
}

/* --- Releases of QEMU ---------------------------------------------------------------------------
 */

Test(compare, lets_a_newer_release_take_it_when_told_to_and_an_older_one_never)
{
	both("qemu version", "7.2.22", "8.2.1");
	cr_assert(only("qemu version")->allowable);
	allow("qemu version");
	cr_assert_eq(run(), 0);
	tear_down();
	both("qemu version", "8.2.1", "7.2.22");
	cr_assert(!only("qemu version")->allowable);
	tear_down();
	both("qemu version", "7.2.22", "7.2.9");
	cr_assert_eq(run(), 0);
	allowed_count = 0;
	cr_assert(only("qemu version")->allowable);
	tear_down();
	both("qemu version", "7.2.22", "a parrot");
	cr_assert(!only("qemu version")->allowable);
}

Test(compare, passes_over_properties_that_only_another_release_has_once_that_is_allowed)
{
	both("qemu version", "7.2.22", "8.2.1");
	both("device net0", "mac=1\nold=on", "mac=1\nnew=on");
	cr_assert_neq(run(), 0);
	cr_assert_eq(compared.count, 3);
	allow("qemu version");
	cr_assert_eq(run(), 0, "%s", error.text);
	facts_close(&here);
	both("qemu version", NULL, "8.2.1");
	both("device net0", NULL, "mac=2\nnew=on");
	only("device net0: mac");
}

Test(compare, passes_over_what_a_newer_release_has_more_of_in_the_same_machine)
{
	both("qemu version", "7.2.22", "10.0.2");
	both("board devices", "ICH9-LPC i8257(2)", "ICH9-LPC");
	both("cpu flags", "full-cpuid-auto-level sse x-old", "legacy-multi-node sse");
	both("device net0", "features=A", "features=A B");
	allow("qemu version");
	cr_assert_eq(run(), 0, "%s", error.text);
	tear_down();
	both("qemu version", "7.2.22", "10.0.2");
	both("cpu flags", "sse", "sse sse2");
	only("cpu flags");
	tear_down();
	both("qemu version", "7.2.22", "10.0.2");
	both("device net0", "features=A B", "features=A C");
	cr_assert(!only("device net0: features")->allowable);
	tear_down();
	both("qemu version", "7.2.22", "7.2.22");
	both("board devices", "ICH9-LPC i8257(2)", "ICH9-LPC");
	cr_assert(!only("board devices")->allowable);
	tear_down();
	both("qemu version", "7.2.22", "7.2.22");
	both("cpu flags", "sse", "legacy-multi-node sse");
	only("cpu flags");
}

/* --- Disks --------------------------------------------------------------------------------------
 */

#define IMAGE "format=qcow2\naccess=read and write\nvirtual size=9\nkind=file\nfilesystem=ext4\n"

Test(compare, refuses_another_file_on_the_same_host_and_takes_the_same)
{
	both("host", "boot=x", "boot=x");
	both("disk vda: image", IMAGE "file=/a\nidentity=8:1 5", IMAGE "file=/b\nidentity=8:1 5");
	cr_assert_eq(run(), 0, "%s", error.text);
	facts_close(&here);
	both("host", NULL, "boot=x");
	both("disk vda: image", NULL, IMAGE "file=/a\nidentity=8:1 6");
	const struct jaunt_difference *one = only("disk vda: image");
	cr_assert(strstr(one->source, "/a"), "%s", one->source);
	cr_assert(!one->allowable);
}

Test(compare, refuses_a_local_file_on_another_host_with_the_same_numbers)
{
	both("host", "boot=x", "boot=y");
	both("disk vda: image", IMAGE "identity=8:1 5", IMAGE "identity=8:1 5");
	const struct jaunt_difference *one = only("disk vda: image");
	cr_assert(!one->allowable);
	cr_assert(strstr(one->advice, "cannot be the same storage"), "%s", one->advice);
}

Test(compare, does_not_know_one_host_by_what_neither_tells)
{
	both("disk vda: image", IMAGE "identity=8:1 5", IMAGE "identity=8:1 5");
	only("disk vda: image");
}

Test(compare, looks_at_every_file_of_a_backing_chain)
{
	both("host", "boot=x", "boot=x");
	both("disk vda: image", IMAGE "identity=8:1 5", IMAGE "identity=8:1 5");
	both("disk vda: backing 1", IMAGE "identity=8:1 6", IMAGE "identity=8:1 7");
	only("disk vda: backing 1");
	tear_down();
	both("host", "boot=x", "boot=x");
	both("disk vda: image", IMAGE "identity=8:1 5", IMAGE "identity=8:1 5");
	both("disk vda: backing 1", IMAGE "identity=8:1 6", NULL);
	only("disk vda: backing 1");
}

Test(compare, lets_a_medium_be_absent_when_told_to)
{
	both("medium cd0", "holds=an image\naccess=read only", "holds=nothing\naccess=read only");
	both("medium cd0: image", IMAGE "identity=8:1 5", NULL);
	allow("medium cd0: holds");
	cr_assert(only("medium cd0: image")->allowable);
	allow("medium cd0: image");
	cr_assert_eq(run(), 0, "%s", error.text);
}

Test(compare, takes_another_file_for_flash_of_the_same_size_only)
{
	both("host", "boot=x", "boot=y");
	both("flash system.flash1: image", "format=raw\nvirtual size=4\nkind=file\nidentity=1:1 5",
	     "format=raw\nvirtual size=4\nkind=file\nidentity=1:1 6");
	cr_assert_eq(run(), 0, "%s", error.text);
	facts_close(&here);
	both("flash system.flash1: image", NULL, "format=raw\nvirtual size=8\nkind=file");
	only("flash system.flash1: image");
}

Test(compare, keeps_snapshots_in_flash_from_being_lost)
{
	both("host", "boot=x", "boot=y");
	both("flash f: image", "format=qcow2\nkind=file\nidentity=1:1 5\nsnapshots=first (1)",
	     "format=qcow2\nkind=file\nidentity=1:1 6");
	const struct jaunt_difference *one = only("flash f: image");
	cr_assert(strstr(one->advice, "snapshots"), "%s", one->advice);
	cr_assert(!one->allowable);
}

/* --- What cannot move ---------------------------------------------------------------------------
 */

Test(compare, refuses_what_cannot_move_on_either_side_whatever_the_other_has)
{
	both("cannot move: device gpu", "why=vfio-pci: passed through\nadvice=unplug it", NULL);
	const struct jaunt_difference *one = only("cannot move: device gpu");
	cr_assert_str_eq(one->source, "vfio-pci: passed through");
	cr_assert_str_eq(one->target, "");
	cr_assert_str_eq(one->advice, "unplug it");
	both("cannot move: device gpu", NULL, "why=vfio-pci: passed through\nadvice=unplug it");
	only("cannot move: device gpu");
	facts_close(&source);
	only("cannot move: device gpu");
}

Test(compare, refuses_in_modes_with_rounds_what_stands_in_the_way_of_those_only)
{
	both("cannot move: /dev/vhost-net", "why=vhost\nadvice=no\nonly=rounds\nmay=yes",
	     "why=vhost\nadvice=no\nonly=rounds\nmay=yes");
	cr_assert_eq(run(), 0);
	rounds = true;
	cr_assert(only("cannot move: /dev/vhost-net")->allowable);
	allow("cannot move: /dev/vhost-net");
	cr_assert_eq(run(), 0);
}

Test(compare, refuses_the_running_guests_own_memory_as_the_targets)
{
	both("host", "boot=x", "boot=x");
	both("memory file ram", "bytes=1\nidentity=0:1 7", "bytes=1\nidentity=0:1 7");
	const struct jaunt_difference *one = only("memory file ram: identity");
	cr_assert(!one->allowable);
	cr_assert(strstr(one->advice, "overwrite"), "%s", one->advice);
	facts_close(&here);
	both("host", NULL, "boot=y");
	both("memory file ram", NULL, "bytes=1\nidentity=0:1 7");
	cr_assert_eq(run(), 0);
}

/* --- Lists that nobody has checked --------------------------------------------------------------
 */

Test(compare, counts_a_key_that_comes_twice_as_a_difference)
{
	struct jaunt_property twice[] = {{"uuid", "a"}, {"uuid", "a"}};
	struct jaunt_description description = {.properties = twice, .property_count = 2};

	both("uuid", NULL, "a");
	cr_assert_eq(compare_facts(&description, &here, &compared, &error), -22);
	cr_assert_eq(compared.count, 1);
}

Test(compare, does_not_look_for_lines_in_lines)
{
	static char nested[60000];

	memset(nested, '=', sizeof(nested) - 1);
	memcpy(nested, "device x", 8);
	struct jaunt_property deep[] = {{"device y", nested}, {"device y: device z", nested}};
	struct jaunt_description description = {.properties = deep, .property_count = 2};
	cr_assert_eq(compare_facts(&description, &here, &compared, &error), -22);
	cr_assert_eq(compared.count, 2);
}

Test(compare, keeps_a_bounded_number_of_differences_and_tells_how_many_more_there_are)
{
	static struct jaunt_property many[1024];
	static char keys[1024][16];

	for (int i = 0; i < 1024; i++) {
		snprintf(keys[i], sizeof(keys[i]), "key %d", i);
		many[i] = (struct jaunt_property){keys[i], "value"};
	}
	struct jaunt_description description = {.properties = many, .property_count = 1024};
	cr_assert_eq(compare_facts(&description, &here, &compared, &error), -22);
	cr_assert_eq(compared.count, COMPARE_MAX);
	cr_assert_eq(compared.beyond, 1024 - COMPARE_MAX);
	cr_assert(strstr(error.text, "1024 reasons"), "%s", error.text);
	cr_assert(strstr(error.text, "more"), "%s", error.text);
}

Test(compare, keeps_to_its_bounds_and_ends_whatever_the_lists_hold)
{
	static const char *const keys[] = {"",
					   "host",
					   "device ",
					   "device a: b",
					   ": ",
					   "cpu flags",
					   "cpu 0",
					   "disk a: image",
					   "memory file x",
					   "flash a: image",
					   "qemu version",
					   "cannot move: ",
					   "machine",
					   "medium a",
					   "memory block a",
					   "cpu"};
	static const char letters[] = "=\n: ab1.%\\/{}[]*?";
	unsigned seed = 1;

	for (int turn = 0; turn < 3000; turn++) {
		char values[32][48];
		struct jaunt_property list[32];
		for (size_t i = 0; i < 32; i++) {
			size_t bytes = (size_t)rand_r(&seed) % 47;
			for (size_t j = 0; j < bytes; j++)
				values[i][j] =
					letters[(size_t)rand_r(&seed) % (sizeof(letters) - 1)];
			values[i][bytes] = '\0';
			list[i].key = keys[(size_t)rand_r(&seed) % (sizeof(keys) / sizeof(*keys))];
			list[i].value = values[i];
		}
		struct jaunt_description description = {.properties = list, .property_count = 16};
		struct facts other = {.all = list + 16, .count = 16};
		int result = compare_facts(&description, &other, &compared, &error);
		cr_assert_eq(result, compared.count ? -22 : 0);
		for (size_t i = 0; i < compared.count; i++)
			cr_assert(compared.all[i].item && compared.all[i].source &&
				  compared.all[i].target && compared.all[i].advice);
		/* A list beside itself differs in nothing but what cannot move or be told. */
		compared_close(&compared);
	}
}

/* --- Rules --------------------------------------------------------------------------------------
 */

Test(compare, has_a_rule_that_is_strict_for_what_it_does_not_know)
{
	cr_assert_eq(rule_of("whatever")->how, HOW_EQUAL);
	cr_assert(!rule_of("whatever")->may);
	cr_assert_eq(rule_of("device x: mac")->how, HOW_EQUAL);
	cr_assert(!rule_of("device x: mac")->may);
	cr_assert_eq(rule_of("disk x: image")->how, HOW_STORAGE);
	cr_assert_eq(rule_of("disk x: backing 12")->how, HOW_STORAGE);
	cr_assert_eq(rule_of("cpu 0: type")->how, HOW_EQUAL);
}

/* --- Facts --------------------------------------------------------------------------------------
 */

Test(compare, keeps_facts_as_lines_under_one_key)
{
	char text[8];

	facts_add(&here, "device a", "x=%d", 1);
	facts_add(&here, "device a", "yy=two\twords");
	cr_assert_str_eq(facts_find(&here, "device a"), "x=1\nyy=two words");
	cr_assert(facts_line(facts_find(&here, "device a"), "x", text, sizeof(text)));
	cr_assert_str_eq(text, "1");
	cr_assert(facts_line(facts_find(&here, "device a"), "yy", text, sizeof(text)));
	cr_assert_str_eq(text, "two wor");
	cr_assert(!facts_line(facts_find(&here, "device a"), "y", text, sizeof(text)));
	cr_assert(!facts_line(NULL, "y", text, sizeof(text)));
	cr_assert_null(facts_find(&here, "device"));
	cr_assert(!here.lost);
}

Test(compare, takes_no_line_of_a_fact_for_two_whatever_a_name_has_in_it)
{
	char text[32];

	facts_add(&here, "disk a: image", "file=%s", "/vm/a\nwwid=naa.1\x1b[2J\x7f\r");
	cr_assert_str_eq(facts_find(&here, "disk a: image"), "file=/vm/a wwid=naa.1 [2J  ");
	cr_assert(!facts_line(facts_find(&here, "disk a: image"), "wwid", text, sizeof(text)));
}

Test(compare, says_when_facts_do_not_fit)
{
	static char large[FACTS_VALUE_MAX + 1];

	memset(large, 'x', FACTS_VALUE_MAX);
	facts_add(&here, "a", "%s", large);
	cr_assert(here.lost);
	here.lost = false;
	for (int i = 0; i < JAUNT_MAX_PROPERTIES + 1; i++) {
		char key[16];
		snprintf(key, sizeof(key), "%d", i);
		facts_add(&here, key, "x");
	}
	cr_assert(here.lost);
	cr_assert_eq(here.count, JAUNT_MAX_PROPERTIES);
}
