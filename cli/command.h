/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The subcommands of `jaunt`. Each takes its own argc and argv, argv[0] being "jaunt NAME" so that
 * help and messages name the command in full, and returns the exit code of the process: an enum
 * jaunt_outcome. Only commands print and only main() exits; what they share returns -errno.
 */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include <argp.h>
#include <stdbool.h>

#include "jaunt.h"

struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
};

int command_cancel(int argc, char **argv);
int command_doctor(int argc, char **argv);
int command_migrate(int argc, char **argv);
int command_qemu(int argc, char **argv);
int command_receive(int argc, char **argv);
int command_resume(int argc, char **argv);
int command_set(int argc, char **argv);
int command_status(int argc, char **argv);
int command_switch(int argc, char **argv);
int command_version(int argc, char **argv);
int command_vm(int argc, char **argv);

/* Keys of options without a short form. */
enum {
	COMMAND_KEY_FIRST = 0x100,
	COMMAND_KEY_ABANDON,
	COMMAND_KEY_AGENT,
	COMMAND_KEY_ALLOW_DIFFERENCE,
	COMMAND_KEY_AS,
	COMMAND_KEY_BANDWIDTH,
	COMMAND_KEY_DIRTY_TRACKING,
	COMMAND_KEY_DOWNTIME_LIMIT,
	COMMAND_KEY_DRY_RUN,
	COMMAND_KEY_EXPLAIN,
	COMMAND_KEY_FAULT_THREADS,
	COMMAND_KEY_INSECURE,
	COMMAND_KEY_JSON,
	COMMAND_KEY_MAX_ROUNDS,
	COMMAND_KEY_MEMORY,
	COMMAND_KEY_MODE,
	COMMAND_KEY_NO_POST_COPY,
	COMMAND_KEY_PAGE_SIZE,
	COMMAND_KEY_PEER_FENCED,
	COMMAND_KEY_PEER_TIMEOUT,
	COMMAND_KEY_PUSH,
	COMMAND_KEY_STREAMS,
	COMMAND_KEY_THREAD_BACKED,
	COMMAND_KEY_THROUGHPUT,
	COMMAND_KEY_THROTTLE,
	COMMAND_KEY_TIMEOUT,
	COMMAND_KEY_TIMEOUT_ACTION,
	COMMAND_KEY_TOTAL_LIMIT,
	COMMAND_KEY_TOTAL_WEIGHT,
	COMMAND_KEY_TRACE,
	COMMAND_KEY_TRACKER,
	COMMAND_KEY_VCPUS,
	COMMAND_KEY_VERIFY,
	COMMAND_KEY_WORKLOAD,
};

/* Inside an argp parser: the message, a hint at --help, and exit code 2. */
void command_usage(struct argp_state *state, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));

/* "jaunt migrate: text" on stderr. */
void command_complain(const char *command, const char *text);

#endif
