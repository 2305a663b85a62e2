/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/identity.h"

#include <sys/utsname.h>
#include <unistd.h>

#include "cli/text.h"
#include "jaunt.h"
#include "revision.h" /* made by meson */

const char *identity_revision(void)
{
	return CLI_REVISION;
}

const char *identity_compiler(void)
{
#if defined(__clang__)
	return "clang " __clang_version__;
#else
	return "gcc " __VERSION__;
#endif
}

void identity_add(json_t *object)
{
	struct utsname names = {.nodename = ""};

	uname(&names);
	json_object_set_new(object, "host", text_json(names.nodename));
	json_object_set_new(object, "kernel", text_json(names.release));
	json_object_set_new(object, "machine",
			    json_pack("{s:o, s:I, s:I}", "architecture", text_json(names.machine),
				      "processors", (json_int_t)sysconf(_SC_NPROCESSORS_ONLN),
				      "memory_bytes",
				      (json_int_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE)));
	json_object_set_new(object, "build",
			    json_pack("{s:s, s:s, s:s}", "version", jaunt_version(), "revision",
				      identity_revision(), "compiler", identity_compiler()));
}
