/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/vmname.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define SHOWN 40 /* characters of the socket's own name */

const char *vmname_monitor(const char *text)
{
	size_t length = strlen(VMNAME_QEMU);
	return strncmp(text, VMNAME_QEMU, length) == 0 ? text + length : NULL;
}

/* FNV-1a: the same for the same place, whoever asks. */
static uint64_t hash(const char *text)
{
	uint64_t value = UINT64_C(0xcbf29ce484222325);

	for (; *text; text++)
		value = (value ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
	return value;
}

/* Where the socket is, however it was spelt: its folder resolved, and its own name. The socket need
 * not be there. */
static int resolve(const char *monitor, char *path, size_t room)
{
	char folder[PATH_MAX], whole[PATH_MAX];
	const char *slash = strrchr(monitor, '/');
	const char *base = slash ? slash + 1 : monitor;

	snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - monitor) + 1 : 1,
		 slash ? monitor : ".");
	if (!realpath(folder, whole))
		snprintf(whole, sizeof(whole), "%s", folder);
	int length = snprintf(path, room, "%s/%s", strcmp(whole, "/") == 0 ? "" : whole, base);
	return length < 0 || (size_t)length >= room ? -ENAMETOOLONG : 0;
}

int vmname_runtime(char name[RUNTIME_NAME_MAX + 1], const char *text, struct jaunt_error *error)
{
	const char *monitor = vmname_monitor(text);
	char path[PATH_MAX], shown[SHOWN + 1];
	size_t count = 0;

	if (!monitor) {
		int result = runtime_name_check(text, error);
		if (result == 0)
			snprintf(name, RUNTIME_NAME_MAX + 1, "%s", text);
		return result;
	}
	const char *slash = strrchr(monitor, '/');
	const char *base = slash ? slash + 1 : monitor;
	if (!*base || resolve(monitor, path, sizeof(path)))
		return error_set(error, EINVAL, "bad-name",
				 "\"%s\" does not name the socket of a QEMU; write qemu:PATH",
				 text);
	for (; *base && count < SHOWN; base++)
		shown[count++] =
			isalnum((unsigned char)*base) || strchr("._-", *base) ? *base : '_';
	shown[count] = '\0';
	snprintf(name, RUNTIME_NAME_MAX + 1, "qemu-%s-%08x", shown,
		 (unsigned)(hash(path) ^ hash(path) >> 32));
	return 0;
}

int vmname_check(const char *text, struct jaunt_error *error)
{
	char name[RUNTIME_NAME_MAX + 1];
	return vmname_runtime(name, text, error);
}
