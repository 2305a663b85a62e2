/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/preload.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"

/* Beside this program: where both were installed, and where both were built. */
static const char *const places[] = {
	"/" JAUNT_AGENT_FROM_BIN "/jaunt-agent.so",
	"/../vmm/qemu/agent/jaunt-agent.so",
};

static int own_folder(char *folder, size_t room)
{
	ssize_t length = readlink("/proc/self/exe", folder, room - 1);

	if (length < 0)
		return -errno;
	folder[length] = '\0';
	*strrchr(folder, '/') = '\0';
	return 0;
}

int preload_find(char *path, size_t room, const char *wanted, struct jaunt_error *error)
{
	char folder[PATH_MAX], candidate[PATH_MAX + 128], found[PATH_MAX];
	bool is_there = false;

	if (wanted)
		is_there = realpath(wanted, found);
	else if (own_folder(folder, sizeof(folder)) == 0)
		for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && !is_there; i++) {
			snprintf(candidate, sizeof(candidate), "%s%s", folder, places[i]);
			is_there = realpath(candidate, found);
		}
	if (!is_there)
		return error_set(error, ENOENT, "no-agent",
				 "the agent's library is not at %s; name it with --agent FILE",
				 wanted ? wanted : candidate);
	if (strlen(found) >= room)
		return error_set(error, ENAMETOOLONG, "no-agent",
				 "the path of the agent is too long");
	memcpy(path, found, strlen(found) + 1);
	return 0;
}

int preload_list(char *list, size_t room, const char *agent, const char *before,
		 struct jaunt_error *error)
{
	/* The loader takes both as the end of a name, and knows no way of quoting them. */
	if (agent[strcspn(agent, " :")])
		return error_set(error, EINVAL, "no-agent",
				 "the loader cannot load %s: its path has a blank or a colon; "
				 "install jaunt elsewhere",
				 agent);
	int length = snprintf(list, room, "%s%s%s", agent, before && *before ? ":" : "",
			      before ? before : "");
	if (length < 0 || (size_t)length >= room)
		return error_set(error, ENAMETOOLONG, "no-agent", "LD_PRELOAD is too long");
	return 0;
}
