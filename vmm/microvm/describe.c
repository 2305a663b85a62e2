/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/microvm/describe.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vmm/microvm/cpuid.h"

#define REGION_NAME      "ram"
#define KEY_BYTES        32
#define VALUE_BYTES      320
#define PLAIN_PROPERTIES 8
#define MOST_MEMORY      (UINT64_C(1) << 47)
#define MOST_XSAVE       (UINT64_C(1) << 20)

struct text {
	char key[KEY_BYTES], value[VALUE_BYTES];
};

static void put(struct microvm *vm, const char *key, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void put(struct microvm *vm, const char *key, const char *format, ...)
{
	struct text *text = (struct text *)vm->property_text + vm->property_count;
	va_list arguments;
	va_start(arguments, format);
	snprintf(text->key, sizeof text->key, "%s", key);
	vsnprintf(text->value, sizeof text->value, format, arguments);
	va_end(arguments);
	vm->properties[vm->property_count++] = (struct jaunt_property){text->key, text->value};
}

static int make_room(struct microvm *vm)
{
	size_t most = PLAIN_PROPERTIES + (vm->cpuid ? vm->cpuid->nent : 0);
	if (!vm->properties)
		vm->properties = calloc(most, sizeof *vm->properties);
	if (!vm->property_text)
		vm->property_text = calloc(most, sizeof(struct text));
	vm->property_count = 0;
	return vm->properties && vm->property_text ? 0 : -ENOMEM;
}

int describe_vm(struct microvm *vm, struct jaunt_description *out, struct jaunt_error *error)
{
	if (make_room(vm))
		return error_set(error, ENOMEM, "no-memory", "describe the VM: out of memory");
	char workload[VALUE_BYTES];
	microvm_workload_format(&vm->workload, workload, sizeof workload);
	put(vm, "vcpus", "%u", vm->vcpu_count);
	put(vm, "backing", "%s", vm->thread_backed ? "thread" : "kvm");
	put(vm, "workload", "%s", workload);
	put(vm, "tsc_khz", "%" PRIu64, vm->tsc_khz);
	put(vm, "memory.resident_bytes", "%" PRIu64, memory_resident_bytes(vm));
	if (!vm->thread_backed) {
		put(vm, "xsave_bytes", "%zu", vm->xsave_bytes);
		put(vm, "xcr0", "%" PRIx64, cpuid_xcr0(vm->cpuid));
		for (unsigned i = 0; i < vm->cpuid->nent; i++) {
			char key[CPUID_KEY_BYTES], value[CPUID_VALUE_BYTES];
			cpuid_format(&vm->cpuid->entries[i], key, value);
			put(vm, key, "%s", value);
		}
	}
	vm->region = (struct jaunt_region){.name = REGION_NAME,
					   .bytes = vm->memory_bytes,
					   .page_bytes = vm->page_bytes,
					   .fd = vm->memory_fd,
					   .view = vm->view};
	*out = (struct jaunt_description){.name = vm->name,
					  .properties = vm->properties,
					  .property_count = vm->property_count,
					  .regions = &vm->region,
					  .region_count = 1};
	return 0;
}

static const char *find(const struct jaunt_description *description, const char *key)
{
	for (size_t i = 0; i < description->property_count; i++)
		if (!strcmp(description->properties[i].key, key))
			return description->properties[i].value;
	return NULL;
}

static int parse_number(const struct jaunt_description *description, const char *key,
			uint64_t least, uint64_t most, uint64_t *number, struct jaunt_error *error)
{
	const char *value = find(description, key);
	if (!value)
		return error_set(error, EPROTO, "bad-description",
				 "the source does not tell the VM's %s", key);
	char *end;
	errno = 0;
	*number = strtoull(value, &end, 10);
	if (errno || *value < '0' || *value > '9' || *end || *number < least || *number > most)
		return error_set(error, EPROTO, "bad-description",
				 "the source gives '%.40s' as the VM's %s, which makes no sense",
				 value, key);
	return 0;
}

static int parse_region(const struct jaunt_description *description, struct described *out,
			struct jaunt_error *error)
{
	const struct jaunt_region *region = description->regions;
	if (description->region_count != 1 || region->guest_address || !region->name ||
	    strcmp(region->name, REGION_NAME))
		return error_set(
			error, EPROTO, "bad-description",
			"the source describes memory that is not a built-in VM's: one region "
			"'" REGION_NAME "' at guest address 0");
	if (region->bytes > MOST_MEMORY)
		return error_set(error, EPROTO, "bad-description",
				 "the source describes a VM of %" PRIu64
				 " bytes, which makes no sense",
				 region->bytes);
	out->memory_bytes = region->bytes;
	out->page_bytes = region->page_bytes;
	return 0;
}

int describe_parse(const struct jaunt_description *description, struct described *out,
		   struct jaunt_error *error)
{
	memset(out, 0, sizeof *out);
	uint64_t vcpus;
	int failed = parse_region(description, out, error);
	if (!failed)
		failed = parse_number(description, "vcpus", 1, MICROVM_MAX_VCPUS, &vcpus, error);
	if (!failed)
		failed =
			parse_number(description, "tsc_khz", 1000, 100000000, &out->tsc_khz, error);
	if (!failed)
		failed = parse_number(description, "memory.resident_bytes", 0, out->memory_bytes,
				      &out->resident_bytes, error);
	if (failed)
		return failed;
	out->vcpus = (unsigned)vcpus;
	out->workload = find(description, "workload");
	const char *backing = find(description, "backing");
	if (!out->workload || !backing || (strcmp(backing, "kvm") && strcmp(backing, "thread")))
		return error_set(
			error, EPROTO, "bad-description",
			"the source does not tell the VM's workload, or what its vCPUs are");
	out->thread_backed = !strcmp(backing, "thread");
	if (out->thread_backed)
		return 0;
	failed = parse_number(description, "xsave_bytes", 4096, MOST_XSAVE, &out->xsave_bytes,
			      error);
	return failed ? failed : cpuid_parse(description, &out->cpuid, error);
}
