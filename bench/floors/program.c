/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors/program.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

void program_fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;
	va_start(arguments, format);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	va_end(arguments);
	exit(1);
}

void program_usage(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, " (try --help)\n");
	va_end(arguments);
	exit(2);
}

uint64_t program_bytes(const char *text)
{
	char *end;
	errno = 0;
	uint64_t value = strtoull(text, &end, 10);
	static const char suffixes[] = "kmgt";
	const char *suffix = *end ? strchr(suffixes, *end | 0x20) : NULL;
	if (suffix) {
		unsigned shift = 10 * (unsigned)(suffix - suffixes + 1);
		if (value > UINT64_MAX >> shift)
			errno = ERANGE;
		value <<= shift;
		end++;
	}
	if (errno || *end || end == text || *text == '-')
		program_usage("%s is not a size", text);
	return value;
}

uint64_t program_count(const char *text, uint64_t least)
{
	char *end;
	errno = 0;
	uint64_t value = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text == '-' || value < least)
		program_usage("%s is not a whole number of at least %lu", text, least);
	return value;
}

pid_t program_fork(void)
{
	pid_t parent = getpid();
	pid_t child = fork();
	if (child < 0)
		program_fail("fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1); /* it died before the line above */
	}
	return child;
}

void program_tell(int fd, const void *from, size_t bytes)
{
	if (write(fd, from, bytes) != (ssize_t)bytes)
		program_fail("tell the other process");
}

void program_hear(int fd, void *to, size_t bytes)
{
	for (size_t have = 0; have < bytes;) {
		ssize_t more = read(fd, (uint8_t *)to + have, bytes - have);
		if (more <= 0)
			program_fail("hear from the other process");
		have += (size_t)more;
	}
}

static void parse_cpus(const char *cpus, cpu_set_t *set)
{
	CPU_ZERO(set);
	const char *next = cpus;
	do {
		char *end;
		unsigned long first = strtoul(next, &end, 10), last = first;
		if (end == next)
			program_usage("%s is not a list of CPUs", cpus);
		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		if ((*end && *end != ',') || last < first || last >= CPU_SETSIZE)
			program_usage("%s is not a list of CPUs", cpus);
		for (unsigned long cpu = first; cpu <= last; cpu++)
			CPU_SET(cpu, set);
		next = *end ? end + 1 : end;
	} while (*next);
}

void program_pin(const char *cpus)
{
	if (!cpus)
		return;
	cpu_set_t set;
	parse_cpus(cpus, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		program_fail("run on CPUs %s", cpus);
}

void program_pin_attributes(pthread_attr_t *attributes, const char *cpus)
{
	if (!cpus)
		return;
	cpu_set_t set;
	parse_cpus(cpus, &set);
	int error = pthread_attr_setaffinity_np(attributes, sizeof(set), &set);
	if (error) {
		errno = error;
		program_fail("run on CPUs %s", cpus);
	}
}
