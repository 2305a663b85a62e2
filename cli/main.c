/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdio.h>
#include <string.h>

#include "cli/text.h"

static const struct command commands[] = {
	{"vm", command_vm, "start a built-in VM and stay with it: jaunt vm run NAME"},
	{"receive", command_receive, "listen for one VM and run it here"},
	{"migrate", command_migrate, "move a running VM to a waiting receive"},
	{"status", command_status, "the VMs of this host and what happens to them"},
	{"cancel", command_cancel, "stop a migration while the VM is still at the source"},
	{"resume", command_resume, "run a VM whose other host has been fenced"},
	{"set", command_set, "change a migration under way: push, bandwidth, downtime-limit"},
	{"switch", command_switch, "end the copying of memory: let the VM run at the target now"},
	{"qemu", command_qemu,
	 "start QEMU with the agent in it: jaunt qemu -- qemu-system-x86_64 …"},
	{"doctor", command_doctor, "can this host, this VM, this pair do it, and if not, why"},
	{"version", command_version, "version and build"},
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *out)
{
	fputs("Usage: jaunt COMMAND [ARGUMENT…]\n"
	      "Moves a running virtual machine to another host: it runs there at once, its memory\n"
	      "follows.\n\n",
	      out);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
	fprintf(out,
		"\nWithout a command: jaunt status. `jaunt COMMAND --help' says more.\n\n"
		"On one host, in three terminals:\n"
		"  jaunt vm run web --memory 1G --workload random\n"
		"  jaunt receive tcp:127.0.0.1 --as web2\n"
		"  jaunt migrate web tcp:127.0.0.1\n\n"
		"Exit codes say where the VM is: 0 done; 1 failed, the VM runs at the source;\n"
		"2 usage; 3 cancelled; 4 committed but incomplete, do not start it elsewhere;\n"
		"5 ownership unknown, fence first.\n");
}

static int unknown_command(const char *name)
{
	char clean[64];
	size_t best = 0, distance = SIZE_MAX;

	text_clean(clean, sizeof(clean), name);
	for (size_t i = 0; i < COMMANDS; i++) {
		size_t this_one = text_distance(name, commands[i].name);
		if (this_one < distance)
			distance = this_one, best = i;
	}
	fprintf(stderr, "jaunt: there is no command \"%s\"", clean);
	if (distance <= 2)
		fprintf(stderr, "; did you mean \"%s\"?", commands[best].name);
	fputs("\nThe commands are:", stderr);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(stderr, " %s", commands[i].name);
	fputs("\nTry `jaunt --help'.\n", stderr);
	return JAUNT_USAGE;
}

int main(int argc, char **argv)
{
	char name[64];
	char *first = argc > 1 ? argv[1] : NULL;

	argp_err_exit_status = JAUNT_USAGE;
	setvbuf(stderr, NULL, _IOLBF, 0);
	if (first && (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 ||
		      strcmp(first, "-?") == 0 || strcmp(first, "help") == 0)) {
		print_help(stdout);
		return JAUNT_DONE;
	}
	if (first && (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0))
		first = argv[1] = (char *)"version";
	/* Bare, or with nothing but options: status. */
	if (!first || first[0] == '-') {
		argv[0] = (char *)"jaunt status";
		return command_status(argc, argv);
	}
	for (size_t i = 0; i < COMMANDS; i++) {
		if (strcmp(first, commands[i].name) != 0)
			continue;
		snprintf(name, sizeof(name), "jaunt %s", first);
		argv[1] = name;
		return commands[i].run(argc - 1, argv + 1);
	}
	return unknown_command(first);
}
