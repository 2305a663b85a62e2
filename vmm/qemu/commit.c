/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/commit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORM                                                                                       \
	"jaunt-commit 1\nprocess %ld\nstarted %llu\nbegun %d\nstopped %d\ncommitted %d\n"          \
	"peer %s\n"

/* For the word "begun"; who does not know it takes it for a plain one. */
#define BEGUN_BY_QEMU 2

uint64_t commit_started(pid_t process)
{
	char path[64], text[1024];
	unsigned long long started = 0;

	snprintf(path, sizeof(path), "/proc/%ld/stat", (long)process);
	FILE *file = fopen(path, "re");
	if (!file)
		return 0;
	size_t bytes = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[bytes] = '\0';
	/* The 22nd field; the second, a name in brackets, may hold blanks. */
	char *at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (at)
		started = strtoull(at + 1, NULL, 10);
	return started;
}

static int write_whole(int fd, const char *text, size_t bytes)
{
	return write(fd, text, bytes) == (ssize_t)bytes ? 0 : errno ? -errno : -ENOSPC;
}

int commit_write(const char *path, const struct commit *commit)
{
	char fresh[PATH_MAX], text[512];

	if (snprintf(fresh, sizeof(fresh), "%s.new", path) >= (int)sizeof(fresh))
		return -ENAMETOOLONG;
	int bytes = snprintf(text, sizeof(text), FORM, (long)commit->process,
			     (unsigned long long)commit->started,
			     commit->by_qemu ? BEGUN_BY_QEMU : commit->begun, commit->stopped,
			     commit->committed, commit->peer[0] ? commit->peer : "-");
	int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	errno = 0;
	int result = write_whole(fd, text, (size_t)bytes);
	if (close(fd) && result == 0)
		result = -errno;
	if (result == 0 && rename(fresh, path))
		result = -errno;
	if (result)
		unlink(fresh);
	return result;
}

int commit_read(const char *path, struct commit *commit)
{
	long process;
	unsigned long long started;
	int begun, stopped, committed;
	char peer[128] = "";

	FILE *file = fopen(path, "re");
	if (!file)
		return -errno;
	int fields = fscanf(file,
			    "jaunt-commit 1\nprocess %ld\nstarted %llu\nbegun %d\nstopped %d\n"
			    "committed %d\npeer %127s",
			    &process, &started, &begun, &stopped, &committed, peer);
	fclose(file);
	if (fields != 6)
		return -ENOENT;
	*commit = (struct commit){.process = (pid_t)process,
				  .started = started,
				  .begun = begun != 0,
				  .by_qemu = begun == BEGUN_BY_QEMU,
				  .stopped = stopped != 0,
				  .committed = committed != 0};
	if (strcmp(peer, "-") != 0)
		memcpy(commit->peer, peer, sizeof(peer));
	return 0;
}

void commit_remove(const char *path)
{
	unlink(path);
}
