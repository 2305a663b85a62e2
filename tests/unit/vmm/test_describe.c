/* SPDX-License-Identifier: Apache-2.0 */
/* What the target makes of a description, in particular of one that it should refuse. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "harness.h"

#define MOST 1100

/* A description that can be changed: a source's own, without its memory. */
struct offer {
	struct microvm *source;
	struct jaunt_property properties[MOST];
	struct jaunt_region regions[2];
	struct jaunt_description description;
	struct microvm_host host;
};

static struct offer *make_offer(enum harness_backing backing)
{
	harness_require(backing);
	struct jaunt_error error = {0};
	struct offer *offer = calloc(1, sizeof *offer);
	offer->source = harness_create(backing, "random:ws=1m,seed=5");
	cr_assert(!microvm_ops.describe(offer->source, &offer->description, &error));
	memcpy(offer->properties, offer->description.properties,
	       offer->description.property_count * sizeof offer->properties[0]);
	offer->regions[0] = offer->regions[1] = offer->description.regions[0];
	offer->regions[0].fd = -1;
	offer->regions[0].view = NULL;
	offer->description.properties = offer->properties;
	offer->description.regions = offer->regions;
	offer->host.allow_thread_backed = true;
	return offer;
}

static void drop_offer(struct offer *offer)
{
	microvm_destroy(offer->source);
	free(offer);
}

static const char **value_of(struct offer *offer, const char *key)
{
	for (size_t i = 0; i < offer->description.property_count; i++)
		if (!strcmp(offer->properties[i].key, key))
			return &offer->properties[i].value;
	cr_assert_fail("no property %s", key);
	return NULL;
}

static void expect_refused(struct offer *offer, const char *reason, const char *words)
{
	struct jaunt_error error = {0};
	void *vm = NULL;
	int result = microvm_factory.create(&offer->host, &offer->description, &vm, &error);
	cr_assert_lt(result, 0, "a description that should be refused with '%s' was taken", words);
	cr_expect_str_eq(error.reason, reason, "%s", error.text);
	cr_expect(strstr(error.text, words), "'%s' does not say '%s'", error.text, words);
	cr_expect_null(vm);
}

static void expect_value_refused(struct offer *offer, const char *key, const char *value,
				 const char *reason)
{
	const char **place = value_of(offer, key), *original = *place;
	*place = value;
	struct jaunt_error error = {0};
	void *vm = NULL;
	cr_expect_lt(microvm_factory.create(&offer->host, &offer->description, &vm, &error), 0,
		     "%s = '%s' was taken", key, value);
	cr_expect_str_eq(error.reason, reason, "%s = '%s': %s", key, value, error.text);
	*place = original;
}

static void expect_same(enum harness_backing backing)
{
	struct offer *offer = make_offer(backing);
	struct jaunt_error error = {0};
	struct jaunt_description built;
	void *vm;
	cr_assert(!microvm_factory.create(&offer->host, &offer->description, &vm, &error), "%s",
		  error.text);
	cr_assert(!microvm_ops.describe(vm, &built, &error));
	cr_expect_eq(built.region_count, 1);
	cr_expect_eq(built.regions[0].bytes, offer->regions[0].bytes);
	cr_expect_eq(built.regions[0].page_bytes, offer->regions[0].page_bytes);
	cr_expect_geq(built.regions[0].fd, 0);
	cr_expect_not_null(built.regions[0].view);
	cr_expect_str_eq(built.name, "test");
	cr_expect_eq(built.property_count, offer->description.property_count);
	for (size_t i = 0; i < built.property_count; i++) {
		cr_expect_str_eq(built.properties[i].key, offer->properties[i].key);
		cr_expect_str_eq(built.properties[i].value, offer->properties[i].value, "%s",
				 built.properties[i].key);
	}
	microvm_factory.destroy(&offer->host, vm);
	drop_offer(offer);
}

Test(describe, the_target_is_what_the_source_describes_under_kvm)
{
	expect_same(HARNESS_KVM);
}

Test(describe, the_target_is_what_the_source_describes_on_threads)
{
	expect_same(HARNESS_THREAD);
}

static const char *const keys[] = {"vcpus", "backing", "workload", "tsc_khz",
				   "memory.resident_bytes"};

Test(describe, a_missing_property_is_refused_by_name)
{
	struct offer *offer = make_offer(HARNESS_THREAD);
	for (unsigned i = 0; i < sizeof keys / sizeof keys[0]; i++) {
		size_t at = 0;
		while (strcmp(offer->properties[at].key, keys[i]))
			at++;
		offer->properties[at].key = "something else";
		expect_refused(offer, "bad-description", "does not tell the VM's");
		offer->properties[at].key = keys[i];
	}
	drop_offer(offer);
}

Test(describe, values_that_make_no_sense_are_refused)
{
	static const char *const numbers[] = {
		"", "-1", "0x2", "two", "2 ", "99999999999999999999", "18446744073709551615"};
	static const char *const numeric[] = {"vcpus", "tsc_khz", "memory.resident_bytes"};
	struct offer *offer = make_offer(HARNESS_THREAD);
	for (unsigned i = 0; i < sizeof numeric / sizeof numeric[0]; i++)
		for (unsigned j = 0; j < sizeof numbers / sizeof numbers[0]; j++)
			expect_value_refused(offer, numeric[i], numbers[j], "bad-description");
	expect_value_refused(offer, "vcpus", "0", "bad-description");
	expect_value_refused(offer, "vcpus", "65", "bad-description");
	expect_value_refused(offer, "tsc_khz", "0", "bad-description");
	expect_value_refused(offer, "backing", "magic", "bad-description");
	expect_value_refused(offer, "workload", "dance", "bad-workload");
	expect_value_refused(offer, "workload", "", "bad-workload");
	drop_offer(offer);
}

Test(describe, memory_that_is_not_a_built_in_vms_is_refused)
{
	struct offer *offer = make_offer(HARNESS_THREAD);
	struct jaunt_region good = offer->regions[0];
	offer->description.region_count = 2;
	expect_refused(offer, "bad-description", "one region");
	offer->description.region_count = 0;
	expect_refused(offer, "bad-description", "one region");
	offer->description.region_count = 1;
	offer->regions[0].guest_address = 4096;
	expect_refused(offer, "bad-description", "guest address 0");
	offer->regions[0] = good;
	offer->regions[0].name = "vga";
	expect_refused(offer, "bad-description", "one region");
	offer->regions[0] = good;
	offer->regions[0].bytes = UINT64_MAX;
	expect_refused(offer, "bad-description", "makes no sense");
	offer->regions[0].bytes = 4096;
	expect_refused(offer, "bad-size", "at least 64 MiB");
	offer->regions[0] = good;
	offer->regions[0].page_bytes = 3;
	offer->regions[0].bytes = 0;
	expect_refused(offer, "bad-size", "pages of 3 bytes");
	drop_offer(offer);
}

Test(describe, thread_backed_vcpus_are_refused_unless_allowed)
{
	struct offer *offer = make_offer(HARNESS_THREAD);
	offer->host.allow_thread_backed = false;
	expect_refused(offer, "thread-backed", "threads of its process");
	drop_offer(offer);
}

/* --- The CPU
 * -------------------------------------------------------------------------------------- */

/* The leaf's registers with that one replaced, as text. */
static char *changed_leaf(const char *value, unsigned which, uint32_t bits)
{
	unsigned flags, registers[4];
	cr_assert_eq(sscanf(value, "%x %x %x %x %x", &flags, &registers[0], &registers[1],
			    &registers[2], &registers[3]),
		     5);
	registers[which] |= bits;
	char *text;
	cr_assert_geq(asprintf(&text, "%x %08x %08x %08x %08x", flags, registers[0], registers[1],
			       registers[2], registers[3]),
		      0);
	return text;
}

static void expect_lacks(const char *leaf, unsigned which, unsigned bit, const char *name)
{
	struct offer *offer = make_offer(HARNESS_KVM);
	const char **value = value_of(offer, leaf);
	char *text = changed_leaf(*value, which, 1u << bit);
	*value = text;
	expect_refused(offer, "cpu-lacks", name);
	free(text);
	drop_offer(offer);
}

Test(describe, a_feature_that_this_cpu_lacks_is_named)
{
	/* Only ever in one coprocessor that nobody runs this on; and a bit nobody has given a
	 * name. */
	expect_lacks("cpuid.00000007.00", 1, 26, "avx512pf");
	expect_lacks("cpuid.0000000d.00", 0, 29, "cpuid d.0 eax bit 29");
}

Test(describe, a_cpu_of_another_vendor_is_refused)
{
	struct offer *offer = make_offer(HARNESS_KVM);
	*value_of(offer, "cpuid.00000000.00") = "0 0000000d 61727943 6e6f6974 69726574";
	expect_refused(offer, "cpu-lacks", "another vendor");
	drop_offer(offer);
}

Test(describe, leaves_that_make_no_sense_are_refused)
{
	struct offer *offer = make_offer(HARNESS_KVM);
	expect_value_refused(offer, "cpuid.00000001.00", "", "bad-description");
	expect_value_refused(offer, "cpuid.00000001.00", "1 2 3", "bad-description");
	expect_value_refused(offer, "cpuid.00000001.00", "1 2 3 4 5 6", "bad-description");
	expect_value_refused(offer, "cpuid.00000001.00", "x y z 4 5", "bad-description");
	expect_value_refused(offer, "xsave_bytes", "12", "bad-description");
	expect_value_refused(offer, "xsave_bytes", "1048576", "cpu-lacks");
	drop_offer(offer);
}

Test(describe, too_many_leaves_are_refused)
{
	struct offer *offer = make_offer(HARNESS_KVM);
	for (size_t i = offer->description.property_count; i < MOST; i++)
		offer->properties[i] =
			(struct jaunt_property){"cpuid.00000001.00", "0 00000000 0 0 0"};
	offer->description.property_count = MOST;
	expect_refused(offer, "bad-description", "makes no sense");
	drop_offer(offer);
}

Test(describe, a_tsc_that_cannot_be_scaled_to_is_refused)
{
	struct offer *offer = make_offer(HARNESS_KVM);
	const char **khz = value_of(offer, "tsc_khz");
	char doubled[32];
	snprintf(doubled, sizeof doubled, "%llu", 2 * strtoull(*khz, NULL, 10));
	*khz = doubled;
	struct jaunt_error error = {0};
	void *vm = NULL;
	if (!microvm_factory.create(&offer->host, &offer->description, &vm, &error)) {
		microvm_destroy(vm);
		drop_offer(offer);
		cr_skip("this host's KVM scales the TSC");
	}
	cr_expect_str_eq(error.reason, "tsc-frequency", "%s", error.text);
	drop_offer(offer);
}

/* --- Room
 * ----------------------------------------------------------------------------------------- */

static char root[64];

static void put_file(const char *path, const char *text)
{
	char full[256];
	snprintf(full, sizeof full, "%s%s", root, path);
	for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = 0;
		mkdir(full, 0700);
		*slash = '/';
	}
	FILE *file = fopen(full, "w");
	cr_assert_not_null(file);
	fputs(text, file);
	fclose(file);
}

static void pretend_host(unsigned available_mib)
{
	char text[128];
	snprintf(text, sizeof text, "MemTotal: 9999999 kB\nMemAvailable: %u kB\n",
		 available_mib * 1024);
	strcpy(root, "/tmp/jaunt-describe-XXXXXX");
	cr_assert_not_null(mkdtemp(root));
	put_file("/proc/meminfo", text);
}

static void forget_host(void)
{
	char command[128];
	snprintf(command, sizeof command, "rm -rf '%s'", root);
	cr_assert_eq(system(command), 0);
}

static void expect_room_refused(uint64_t bytes, uint64_t page_bytes, const char *reason,
				const char *words)
{
	struct jaunt_error error = {0};
	cr_expect_eq(microvm_check_room(root, bytes, page_bytes, &error), -ENOMEM);
	cr_expect_str_eq(error.reason, reason);
	cr_expect(strstr(error.text, words), "'%s' does not say '%s'", error.text, words);
}

Test(describe, a_host_without_room_is_found_out_before_anything_is_built)
{
	pretend_host(512);
	struct jaunt_error error = {0};
	cr_expect(!microvm_check_room(root, MIB(256), 4096, &error), "%s", error.text);
	expect_room_refused(MIB(512), 4096, "no-memory", "512 MiB available");
	expect_room_refused(UINT64_C(1) << 46, 4096, "no-memory", "512 MiB available");
	forget_host();
}

Test(describe, a_vm_of_holes_needs_room_only_for_what_is_in_use)
{
	pretend_host(512);
	struct offer *offer = make_offer(HARNESS_THREAD);
	offer->host.root = root;
	offer->regions[0].bytes = GIB(64);
	struct jaunt_error error = {0};
	void *vm = NULL;
	*value_of(offer, "memory.resident_bytes") = "1048576";
	cr_expect(!microvm_factory.create(&offer->host, &offer->description, &vm, &error), "%s",
		  error.text);
	microvm_destroy(vm);
	*value_of(offer, "memory.resident_bytes") = "8589934592";
	expect_refused(offer, "no-memory", "uses 8192 MiB");
	drop_offer(offer);
	forget_host();
}

Test(describe, a_control_group_without_room_is_told_by_its_name)
{
	pretend_host(4096);
	put_file("/proc/self/cgroup", "0::/small\n");
	put_file("/proc/self/mountinfo",
		 "31 25 0:27 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n");
	put_file("/sys/fs/cgroup/small/memory.max", "268435456\n");
	put_file("/sys/fs/cgroup/small/memory.current", "134217728\n");
	put_file("/sys/fs/cgroup/small/memory.stat", "anon 0\n");
	expect_room_refused(MIB(256), 4096, "cgroup-memory", "/small");
	forget_host();
}

Test(describe, huge_pages_that_are_missing_are_told_with_the_number_to_set)
{
	pretend_host(4096);
	put_file("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "100\n");
	put_file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "60\n");
	put_file("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "20\n");
	struct jaunt_error error = {0};
	cr_expect(!microvm_check_room(root, MIB(80), MIB(2), &error), "%s", error.text);
	expect_room_refused(MIB(82), MIB(2), "no-hugepages", "vm.nr_hugepages to 101");
	forget_host();
}
