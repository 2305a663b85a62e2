/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes settings as words KEY=VALUE, starts what they ask for, then obeys commands on a line of its
 * own: "ID COMMAND [VALUE]" is answered by "@ID TEXT".
 *
 *   report         everything, as a JSON object
 *   check          verify all memory and all blocks now; then as report
 *   clear          forget the times of accesses so far
 *   rate N         pages a second that each worker visits
 *   allocate N     write and verify N bytes more, in place of those of before
 *   poweroff
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>

struct settings settings;

static const struct {
	const char *key;
	size_t offset, size;
} keys[] = {
#define KEY(name, field)                                                                           \
	{                                                                                          \
		name, offsetof(struct settings, field), sizeof(((struct settings *)NULL)->field)   \
	}
	KEY("memory", memory_bytes), KEY("threads", threads),     KEY("rate", rate),
	KEY("write", write_share),   KEY("spin", spin),           KEY("pulse_us", pulse_us),
	KEY("disk", disk_bytes),     KEY("disk_rate", disk_rate), KEY("screen_rate", screen_rate),
#undef KEY
};

static bool set(const char *word)
{
	for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
		size_t length = strlen(keys[i].key);

		if (strncmp(word, keys[i].key, length) || word[length] != '=')
			continue;
		/* Little-endian: the low bytes come first. */
		uint64_t value = strtoull(word + length + 1, NULL, 10);

		memcpy((char *)&settings + keys[i].offset, &value, keys[i].size);
		return true;
	}
	return false;
}

static void report(FILE *out)
{
	fprintf(out, "{\"beats\": %" PRIu64 ", \"memory\": ", console_beats());
	memory_print(out);
	fprintf(out, ", \"disk\": ");
	disk_print(out);
	fprintf(out, ", \"net\": ");
	net_print(out);
	fprintf(out, ", \"screen\": ");
	screen_print(out);
	fprintf(out, "}\n");
}

static void obey(const char *command, uint64_t value, FILE *out)
{
	if (strcmp(command, "report") == 0) {
		report(out);
	} else if (strcmp(command, "check") == 0) {
		memory_check();
		disk_check();
		report(out);
	} else if (strcmp(command, "clear") == 0) {
		memory_clear_times();
		fprintf(out, "done\n");
	} else if (strcmp(command, "rate") == 0) {
		settings.rate = value;
		fprintf(out, "done\n");
	} else if (strcmp(command, "allocate") == 0) {
		fprintf(out, memory_allocate(value) ? "done\n" : "no memory\n");
	} else if (strcmp(command, "poweroff") == 0) {
		sync();
		reboot(RB_POWER_OFF);
	} else {
		fprintf(out, "no such command\n");
	}
}

static void serve(const char *path)
{
	struct sched_param soon = {.sched_priority = 5};
	struct termios raw;
	char text[256], command[32];
	int file = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	FILE *in = fdopen(file, "r"), *out = fdopen(dup(file), "w");

	pthread_setschedparam(pthread_self(), SCHED_FIFO, &soon);
	if (tcgetattr(file, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(file, TCSANOW, &raw);
	}
	fprintf(out, "@0 ready\n");
	fflush(out);
	for (;;) {
		uint64_t id = 0, value = 0;

		if (!fgets(text, sizeof(text), in)) {
			clearerr(in);
			usleep(100000);
			continue;
		}
		if (sscanf(text, "%" SCNu64 " %31s %" SCNu64, &id, command, &value) < 2)
			continue;
		fprintf(out, "@%" PRIu64 " ", id);
		obey(command, value, out);
		fflush(out);
	}
}

static void complain(const char *what)
{
	printf("guest: %s does not start: %s\n", what, strerror(errno));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	settings.write_share = 50;
	settings.memory_bytes = UINT64_C(64) << 20;
	for (int i = 1; i < argc; i++)
		if (!set(argv[i]))
			printf("guest: no such setting: %s\n", argv[i]);
	if (memory_start())
		complain("the memory workload");
	if (settings.disk_bytes && disk_start("/dev/vda"))
		complain("the disk workload");
	if (access("/sys/class/net/eth0", F_OK) == 0 && net_start("eth0"))
		complain("the network workload");
	if (settings.screen_rate && screen_start())
		complain("the screen workload");
	console_start();
	serve("/dev/ttyS1");
}
