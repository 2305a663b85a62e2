/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/tracefile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

#define TRACEFILE_ROOM_BYTES (1 << 20)

static int room_for_trace(int fd)
{
	struct stat status;

	if (fstat(fd, &status))
		return errno;
	if (S_ISREG(status.st_mode)) {
		int code = fallocate(fd, FALLOC_FL_KEEP_SIZE, status.st_size, TRACEFILE_ROOM_BYTES)
				   ? errno
				   : 0;
		/* Gives back what was reserved beyond the end. */
		if (!code && ftruncate(fd, status.st_size))
			return errno;
		return code == EOPNOTSUPP || code == ENOSYS ? 0 : code;
	}
	/* A device or a pipe: an empty line is no harm to a reader of JSON lines. */
	return write(fd, "\n", 1) == 1 || errno == EAGAIN ? 0 : errno;
}

int tracefile_check(const char *path, struct jaunt_error *error)
{
	bool existed = access(path, F_OK) == 0;
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
	int code = fd < 0 ? errno : room_for_trace(fd);

	if (fd >= 0)
		close(fd);
	if (!code)
		return 0;
	if (fd >= 0 && !existed)
		unlink(path);
	return error_set(error, code, code == ENOSPC || code == EDQUOT ? "no-space" : "trace-file",
			 "cannot write the trace %s: %s; name a file elsewhere, or go without "
			 "--trace",
			 path, strerror(code));
}

int tracefile_absolute(char **out, const char *path, struct jaunt_error *error)
{
	char directory[PATH_MAX];

	*out = NULL;
	if (!*path)
		return error_set(error, EINVAL, "bad-trace",
				 "--trace needs the name of a file, like run.jsonl");
	if (path[0] == '/')
		*out = strdup(path);
	else if (!getcwd(directory, sizeof(directory)) ||
		 asprintf(out, "%s/%s", directory, path) < 0)
		*out = NULL;
	return *out ? 0
		    : error_set(error, ENOMEM, "trace-file", "cannot name the trace file %s", path);
}
