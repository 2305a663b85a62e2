/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A name is a lock: NAME.lock is flock()ed for as long as its owner lives, and holds the owner's
 * process id for messages. The lock, not the existence of a file, says whether somebody is there,
 * so that nothing a killed process leaves behind is ever in the way: whoever gets the lock may
 * remove NAME.sock. Lock files are unlinked on release; whoever opened one just before finds out by
 * comparing inodes after locking, and tries again.
 *
 * Sockets are bound and connected through /proc/self/fd/DIR/NAME.sock: a sun_path has 108 bytes,
 * and a runtime directory may be deeper than that.
 */
#include "cli/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

bool runtime_name_valid(const char *name)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789._-";
	size_t length = strlen(name);

	return length >= 1 && length <= RUNTIME_NAME_MAX && strspn(name, allowed) == length &&
	       !strchr("._-", name[0]);
}

int runtime_name_check(const char *name, struct jaunt_error *error)
{
	if (runtime_name_valid(name))
		return 0;
	return error_set(error, EINVAL, "bad-name",
			 "\"%s\" cannot name a VM; use 1 to %d letters, digits, dots, dashes and "
			 "underscores, a letter or digit first",
			 name, RUNTIME_NAME_MAX);
}

int runtime_path(char *path, size_t room, struct jaunt_error *error)
{
	const char *wanted = getenv("JAUNT_RUNTIME_DIR");
	const char *user = getenv("XDG_RUNTIME_DIR");
	int length;

	if (wanted && *wanted)
		length = snprintf(path, room, "%s", wanted);
	else if (geteuid() == 0)
		length = snprintf(path, room, "/run/jaunt");
	else if (user && *user)
		length = snprintf(path, room, "%s/jaunt", user);
	else
		return error_set(error, ENOENT, "no-runtime-dir",
				 "no runtime directory: set JAUNT_RUNTIME_DIR to a directory of "
				 "yours, or log in so that XDG_RUNTIME_DIR is set");
	if (length < 0 || (size_t)length >= room)
		return error_set(error, ENAMETOOLONG, "no-runtime-dir",
				 "the path of the runtime directory is too long; set "
				 "JAUNT_RUNTIME_DIR to a shorter one");
	return 0;
}

int runtime_open(struct jaunt_error *error)
{
	char path[4096];
	struct stat status;
	int result = runtime_path(path, sizeof(path), error);

	if (result)
		return result;
	if (mkdir(path, 0700) && errno != EEXIST)
		return error_set(error, errno, "no-runtime-dir",
				 "cannot make the runtime directory %s: %s; set JAUNT_RUNTIME_DIR "
				 "to a directory that you may write to",
				 path, strerror(errno));
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status)) {
		result = error_set(error, errno, "no-runtime-dir",
				   "cannot use %s as the runtime directory: %s; set "
				   "JAUNT_RUNTIME_DIR to a directory of yours",
				   path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return result;
	}
	/* Whoever can write here could stand in for a VM and be handed commands. */
	if (status.st_uid != geteuid() && status.st_uid != 0 && geteuid() != 0)
		result = error_set(error, EPERM, "unsafe-runtime-dir",
				   "the runtime directory %s belongs to user %u, not to you; set "
				   "JAUNT_RUNTIME_DIR to a directory of yours",
				   path, (unsigned)status.st_uid);
	else if (status.st_mode & 022)
		result = error_set(error, EPERM, "unsafe-runtime-dir",
				   "others may write to the runtime directory %s (mode %04o); "
				   "chmod 700 it, or set JAUNT_RUNTIME_DIR to another",
				   path, (unsigned)status.st_mode & 07777);
	if (result) {
		close(fd);
		return result;
	}
	return fd;
}

static void socket_address(struct sockaddr_un *address, int directory, const char *name)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s.sock",
		 directory, name);
}

static void moment(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* The lock on a name. -EWOULDBLOCK if somebody has it, with *owner the process that says so. */
static int lock_name(int directory, const char *name, long *owner)
{
	char file[RUNTIME_NAME_MAX + 8];
	snprintf(file, sizeof(file), "%s.lock", name);

	for (;;) {
		struct stat opened, named;
		int fd = openat(directory, file, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd < 0)
			return -errno;
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			char text[32] = "";
			int code = errno;
			ssize_t got = pread(fd, text, sizeof(text) - 1, 0);
			*owner = got > 0 ? strtol(text, NULL, 10) : 0;
			close(fd);
			return -code;
		}
		if (!fstat(fd, &opened) && !fstatat(directory, file, &named, AT_SYMLINK_NOFOLLOW) &&
		    opened.st_ino == named.st_ino && opened.st_dev == named.st_dev)
			return fd;
		close(fd); /* its former owner unlinked it between the two calls */
	}
}

static void unlink_name(int directory, const char *name)
{
	char file[RUNTIME_NAME_MAX + 8];
	snprintf(file, sizeof(file), "%s.sock", name);
	unlinkat(directory, file, 0);
	snprintf(file, sizeof(file), "%s.lock", name);
	unlinkat(directory, file, 0);
}

int runtime_claim(struct runtime_claim *claim, const char *name, struct jaunt_error *error)
{
	struct sockaddr_un address;
	long owner = 0;
	char text[32];
	int result = runtime_name_check(name, error);

	*claim = RUNTIME_NO_CLAIM;
	if (result)
		return result;
	int directory = runtime_open(error);
	if (directory < 0)
		return directory;
	/* A `status` that looks whether the owner lives holds the lock for a moment too. */
	int lock_fd = lock_name(directory, name, &owner);
	for (int tries = 0; lock_fd == -EWOULDBLOCK && tries < 10; tries++) {
		moment();
		lock_fd = lock_name(directory, name, &owner);
	}
	if (lock_fd < 0) {
		if (lock_fd == -EWOULDBLOCK)
			result = error_set(error, EEXIST, "name-taken",
					   "the name %s is taken by process %ld; choose another "
					   "name, or stop that process first",
					   name, owner);
		else
			result =
				error_set(error, -lock_fd, "no-runtime-dir",
					  "cannot claim the name %s in the runtime directory: %s; "
					  "set JAUNT_RUNTIME_DIR to a directory that you may write "
					  "to and that has room",
					  name, strerror(-lock_fd));
		close(directory);
		return result;
	}
	int length = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
	int listen_fd = -1;
	if (!ftruncate(lock_fd, 0) && pwrite(lock_fd, text, (size_t)length, 0) == length) {
		char file[RUNTIME_NAME_MAX + 8];
		snprintf(file, sizeof(file), "%s.sock", name);
		unlinkat(directory, file, 0);
		listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	}
	socket_address(&address, directory, name);
	if (listen_fd < 0 || bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listen_fd, 64)) {
		result =
			error_set(error, errno, "no-runtime-dir",
				  "cannot listen as %s.sock in the runtime directory: %s; it needs "
				  "room for small files and sockets",
				  name, strerror(errno));
		if (listen_fd >= 0)
			close(listen_fd);
		unlink_name(directory, name);
		close(lock_fd);
		close(directory);
		return result;
	}
	close(directory);
	snprintf(claim->name, sizeof(claim->name), "%s", name);
	claim->lock_fd = lock_fd;
	claim->listen_fd = listen_fd;
	return 0;
}

void runtime_release(struct runtime_claim *claim)
{
	if (claim->lock_fd < 0)
		return;
	int directory = runtime_open(NULL);
	if (directory >= 0) {
		unlink_name(directory, claim->name);
		close(directory);
	}
	close(claim->listen_fd);
	close(claim->lock_fd); /* last: the files are ours until here */
	*claim = RUNTIME_NO_CLAIM;
}

/* Whether a living process holds the name; tidies up after a dead one. */
static bool name_alive(int directory, const char *name)
{
	char file[RUNTIME_NAME_MAX + 8];
	long owner;

	snprintf(file, sizeof(file), "%s.lock", name);
	int fd = openat(directory, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0) {
		bool locked = flock(fd, LOCK_SH | LOCK_NB) != 0;
		close(fd);
		if (locked)
			return true;
	}
	fd = lock_name(directory, name, &owner);
	if (fd == -EWOULDBLOCK)
		return true;
	if (fd >= 0) {
		unlink_name(directory, name);
		close(fd);
	}
	return false;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int list_in(int directory, char ***names, size_t *count)
{
	int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *stream = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *entry;

	*names = NULL;
	*count = 0;
	if (!stream) {
		int code = errno;
		if (copy >= 0)
			close(copy);
		return -code;
	}
	while ((entry = readdir(stream))) {
		char name[sizeof(entry->d_name)];
		size_t length = strlen(entry->d_name);
		if (length <= 5 || strcmp(entry->d_name + length - 5, ".sock") != 0)
			continue;
		memcpy(name, entry->d_name, length - 5);
		name[length - 5] = '\0';
		if (!runtime_name_valid(name) || !name_alive(directory, name))
			continue;
		char **grown = realloc(*names, (*count + 1) * sizeof(*grown));
		if (grown)
			*names = grown;
		if (!grown || !(grown[*count] = strdup(name))) {
			closedir(stream);
			runtime_list_free(*names, *count);
			*names = NULL;
			*count = 0;
			return -ENOMEM;
		}
		(*count)++;
	}
	closedir(stream);
	if (*count)
		qsort(*names, *count, sizeof(**names), compare_names);
	return 0;
}

int runtime_list(char ***names, size_t *count, struct jaunt_error *error)
{
	int directory = runtime_open(error);
	if (directory < 0)
		return directory;
	int result = list_in(directory, names, count);
	close(directory);
	if (result)
		return error_set(error, -result, "no-runtime-dir",
				 "cannot read the runtime directory: %s", strerror(-result));
	return 0;
}

void runtime_list_free(char **names, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(names[i]);
	free(names);
}

static int unknown_name(int directory, const char *name, struct jaunt_error *error)
{
	char known[600] = "";
	size_t used = 0, count = 0;
	char **names = NULL;

	list_in(directory, &names, &count);
	for (size_t i = 0; i < count && used + RUNTIME_NAME_MAX + 8 < sizeof(known); i++)
		used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "",
					 names[i]);
	runtime_list_free(names, count);
	if (!used)
		return error_set(error, ENOENT, "unknown-vm",
				 "there is no VM named %s on this host, nor any other; `jaunt vm "
				 "run %s` would start one",
				 name, name);
	return error_set(error, ENOENT, "unknown-vm",
			 "there is no VM named %s on this host; there is: %s", name, known);
}

int runtime_connect(const char *name, struct jaunt_error *error)
{
	struct sockaddr_un address;
	int result = runtime_name_check(name, error);

	if (result)
		return result;
	int directory = runtime_open(error);
	if (directory < 0)
		return directory;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int code = fd < 0 ? errno : EAGAIN;
	socket_address(&address, directory, name);
	/* Refused although its owner lives: it has bound the socket and is about to listen. */
	for (int tries = 0; fd >= 0 && code && tries < 20; tries++) {
		if (tries)
			moment();
		code = connect(fd, (struct sockaddr *)&address, sizeof(address)) ? errno : 0;
		if ((code == ENOENT || code == ECONNREFUSED) && !name_alive(directory, name)) {
			result = unknown_name(directory, name, error);
			break;
		}
		if (code && code != EAGAIN && code != ENOENT && code != ECONNREFUSED)
			break;
	}
	close(directory);
	if (!code)
		return fd;
	if (fd >= 0)
		close(fd);
	if (result)
		return result;
	return error_set(error, code, "unreachable-vm",
			 "cannot reach the process that owns %s: %s; is it stopped, or swamped?",
			 name, strerror(code));
}
