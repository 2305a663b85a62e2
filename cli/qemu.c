/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `jaunt qemu -- QEMU …': becomes QEMU, with the agent preloaded. Nothing stays behind: same
 * process, same standard streams, QEMU's own exit status.
 */
#include "cli/command.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/preload.h"
#include "cli/runtime.h"
#include "vmm/qemu/agent/protocol.h"

struct wish {
	const char *agent;
	char **program;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct wish *wish = state->input;

	switch (key) {
	case COMMAND_KEY_AGENT:
		wish->agent = argument;
		return 0;
	case ARGP_KEY_ARG:
		wish->program = &state->argv[state->next - 1];
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		command_usage(state, "which QEMU? For example: jaunt qemu -- qemu-system-x86_64 …");
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* Takes the sockets of dead processes away. */
static void sweep(int directory)
{
	int copy = dup(directory);
	DIR *folder = copy >= 0 ? fdopendir(copy) : NULL;
	struct dirent *entry;
	char *end;

	if (!folder) {
		if (copy >= 0)
			close(copy);
		return;
	}
	while ((entry = readdir(folder))) {
		long process = strtol(entry->d_name, &end, 10);
		if (process > 0 && process <= INT_MAX && strcmp(end, AGENT_SUFFIX) == 0 &&
		    kill((pid_t)process, 0) && errno == ESRCH)
			unlinkat(directory, entry->d_name, 0);
	}
	closedir(folder);
}

/* The folder of the sockets, which must be there before QEMU changes its user. */
static int prepare_folder(char *path, struct jaunt_error *error)
{
	char wanted[PATH_MAX];
	int result = runtime_path(wanted, sizeof(wanted), error);
	int directory = result ? result : runtime_open(error);

	if (directory < 0)
		return directory;
	sweep(directory);
	close(directory);
	if (!realpath(wanted, path))
		return error_set(error, errno, "no-runtime-dir", "%s: %s", wanted, strerror(errno));
	if (strlen(path) + sizeof("/4194304" AGENT_SUFFIX) > 108)
		return error_set(error, ENAMETOOLONG, "no-runtime-dir",
				 "the path of the runtime directory is too long for a socket's; "
				 "set JAUNT_RUNTIME_DIR to a shorter one");
	return 0;
}

static int become(const struct wish *wish, struct jaunt_error *error)
{
	char folder[PATH_MAX], agent[PATH_MAX], list[2 * PATH_MAX];
	int result = prepare_folder(folder, error);

	if (result == 0)
		result = preload_find(agent, sizeof(agent), wish->agent, error);
	if (result == 0)
		result = preload_list(list, sizeof(list), agent, getenv("LD_PRELOAD"), error);
	if (result)
		return result;
	if (setenv("LD_PRELOAD", list, 1) || setenv(AGENT_DIRECTORY, folder, 1))
		return error_set(error, errno, "no-memory", "cannot set the environment: %s",
				 strerror(errno));
	execvp(wish->program[0], wish->program);
	return error_set(error, errno, "no-qemu", "cannot start %s: %s", wish->program[0],
			 strerror(errno));
}

int command_qemu(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"agent", COMMAND_KEY_AGENT, "FILE", 0,
		 "The agent's library, if it is not where it was installed", 0},
		{0}};
	static const struct argp argp = {
		options,
		parse,
		"-- QEMU [ARGUMENT…]",
		"Starts QEMU so that Jaunt can reach its guest's memory: becomes the given "
		"program, "
		"with Jaunt's agent loaded into it. Name QEMU itself, not a script that starts it. "
		"Guest RAM must be a shared file: -object memory-backend-file,id=ram,size=SIZE,"
		"mem-path=FILE,share=on -machine …,memory-backend=ram",
		NULL,
		NULL,
		NULL};
	struct jaunt_error error = {0};
	struct wish wish = {0};

	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &wish);
	become(&wish, &error);
	command_complain("qemu", error.text);
	return JAUNT_FAILED;
}
