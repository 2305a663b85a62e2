/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for QEMU: the agent is preloaded into it. Maps a file as guest RAM, tells the kernel
 * about it as QEMU does, and then obeys commands on its standard input, one a line, each answered
 * by a line:
 *
 *   host FILE BYTES [fork]     "fork": in a child, whose number is the first answer either way
 *
 *   environment    "clean", or what is left of the agent's in it
 *   child          the same of a program that it starts
 *   threads        how many it has
 *   read OFFSET    the byte there (waits if it is missing)
 *   punch OFFSET BYTES     fallocate
 *   remove OFFSET BYTES    madvise
 *   address        of the RAM
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

static char *ram;
static size_t bytes;
static int file;

static void count_threads(void)
{
	char line[256];
	FILE *status = fopen("/proc/self/status", "re");

	while (status && fgets(line, sizeof(line), status))
		if (strncmp(line, "Threads:", 8) == 0)
			printf("%d\n", atoi(line + 8));
	if (status)
		fclose(status);
}

static void obey(const char *line)
{
	unsigned long offset = 0, length = 0;

	if (strcmp(line, "environment\n") == 0) {
		const char *list = getenv("LD_PRELOAD"), *folder = getenv("JAUNT_AGENT");
		printf("%s%s\n", list ? list : folder ? "" : "clean", folder ? folder : "");
	} else if (strcmp(line, "child\n") == 0) {
		fflush(stdout);
		if (system("echo \"child:$LD_PRELOAD:$JAUNT_AGENT\""))
			puts("failed");
	} else if (strcmp(line, "threads\n") == 0) {
		count_threads();
	} else if (strcmp(line, "address\n") == 0) {
		printf("%lu\n", (unsigned long)ram);
	} else if (sscanf(line, "read %lu", &offset) == 1) {
		printf("%d\n", *(volatile unsigned char *)(ram + offset));
	} else if (sscanf(line, "punch %lu %lu", &offset, &length) == 2) {
		printf("%d\n", fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					 (off_t)offset, (off_t)length));
	} else if (sscanf(line, "remove %lu %lu", &offset, &length) == 2) {
		printf("%d\n", madvise(ram + offset, length, MADV_REMOVE));
	} else {
		puts("what?");
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[256];

	if (argc < 3)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc > 3) {
		pid_t child = fork();
		if (child < 0)
			return 1;
		if (child) {
			waitpid(child, NULL, 0);
			return 0;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	bytes = strtoul(argv[2], NULL, 10);
	file = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (file < 0 || ftruncate(file, (off_t)bytes))
		return 1;
	ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (ram == MAP_FAILED || madvise(ram, bytes, MADV_DONTFORK))
		return 1;
	printf("%ld\n", (long)getpid());
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	return 0;
}
