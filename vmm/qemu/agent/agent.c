/* SPDX-License-Identifier: MIT */
/*
 * The agent: preloaded into QEMU, so that Jaunt can resolve the faults of its guest.
 *
 * Theory of operation
 *
 * A userfaultfd belongs to the address space that made it, so somebody inside QEMU has to make it.
 * That is all the agent is for: it makes one when asked, hands it out over a unix socket, and keeps
 * a copy open for the life of the process, because a guest whose last userfaultfd is closed reads
 * zeros where a page is missing, while one that is merely not served waits. What Jaunt must find
 * again after its own death (the page map) lies beside it. And since no dirty tracking sees a page
 * being given back, it notes that, where Jaunt asks it to.
 *
 * It begins late: QEMU may fork (-daemonize) before it has memory, and neither threads nor
 * userfaultfds survive that. The sign is the first madvise() of a large range, which QEMU makes for
 * each block of RAM, in the process that will run the guest. Before that nothing happens; without
 * the variable in the environment nothing ever happens. The environment is cleaned at once, so that
 * what QEMU starts (scripts of network devices) does not load the agent.
 *
 * One thread, with all signals blocked. QEMU's own threads run nothing here but the two wrappers.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/qemu/agent/discards.h"
#include "vmm/qemu/agent/protocol.h"
#include "vmm/qemu/agent/serve.h"

#define EXPORT      __attribute__((visibility("default")))
#define RAM_LEAST   (1u << 20) /* bytes of a madvise() that begins it */
#define STACK_BYTES (256u << 10)

int madvise(void *address, size_t bytes, int advice);
int fallocate(int fd, int mode, off_t offset, off_t bytes);
int fallocate64(int fd, int mode, off64_t offset, off64_t bytes);

static struct sockaddr_un place; /* of the socket; sun_path holds the folder until it begins */
static _Atomic pid_t runs_in;    /* the process in which it has begun; 0: none */

static void complain(const char *what)
{
	char line[256];
	int length =
		snprintf(line, sizeof(line), "jaunt agent: %s %s: %s; this QEMU cannot be moved\n",
			 what, place.sun_path, strerror(errno));

	if (length > 0 && write(STDERR_FILENO, line, strnlen(line, sizeof(line))) < 0)
		return;
}

/* --- Beginning ----------------------------------------------------------------------------------
 */

static int listen_there(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	/* A dead process of our number may have left one. Linux takes the mode of the socket from
	 * the descriptor. */
	unlink(place.sun_path);
	if (fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&place, sizeof(place)) ||
	    listen(fd, 8)) {
		int saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

static void *run(void *listener)
{
	serve((int)(intptr_t)listener);
	return NULL;
}

static int start_thread(int listener)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int result = pthread_create(&thread, &attributes, run, (void *)(intptr_t)listener);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return result;
}

/* The folder's name lies in sun_path; what comes behind it is the process's own. */
static size_t folder_length;

static void begin(void)
{
	pid_t self = getpid(), before = atomic_load(&runs_in);

	if (before == self || !atomic_compare_exchange_strong(&runs_in, &before, self))
		return;
	int saved = errno;
	if (before) {
		serve_forget();
		discards_forget();
	}
	snprintf(place.sun_path + folder_length, sizeof(place.sun_path) - folder_length,
		 "/%ld" AGENT_SUFFIX, (long)self);
	int listener = listen_there();
	if (listener < 0) {
		complain("cannot listen at");
	} else if ((errno = start_thread(listener))) {
		complain("cannot start a thread to listen at");
		close(listener);
		unlink(place.sun_path);
	}
	errno = saved;
}

/* Takes this library out of LD_PRELOAD, in place. */
static void leave_preload(void)
{
	char *list = getenv("LD_PRELOAD");
	Dl_info self;

	if (!list || !dladdr((void *)&place, &self) || !self.dli_fname)
		return;
	size_t length = strlen(self.dli_fname);
	for (char *word = list; *word;) {
		size_t bytes = strcspn(word, ": ");
		char *next = word + bytes + strspn(word + bytes, ": ");
		if (bytes == length && memcmp(word, self.dli_fname, bytes) == 0)
			memmove(word, next, strlen(next) + 1);
		else
			word = next;
	}
	if (!*list)
		unsetenv("LD_PRELOAD");
}

__attribute__((constructor)) static void prepare(void)
{
	const char *folder = getenv(AGENT_DIRECTORY);

	if (folder && *folder == '/') {
		place.sun_family = AF_UNIX;
		folder_length = strlen(folder);
		/* Room for the longest process number. */
		if (folder_length + sizeof("/4194304" AGENT_SUFFIX) > sizeof(place.sun_path)) {
			errno = ENAMETOOLONG;
			complain("cannot listen in the folder of " AGENT_DIRECTORY);
			folder_length = 0;
		}
		memcpy(place.sun_path, folder, folder_length);
	}
	leave_preload();
	unsetenv(AGENT_DIRECTORY);
}

__attribute__((destructor)) static void finish(void)
{
	if (atomic_load(&runs_in) == getpid())
		unlink(place.sun_path);
}

/* --- The wrappers -------------------------------------------------------------------------------
 */

EXPORT int madvise(void *address, size_t bytes, int advice)
{
	int result = (int)syscall(SYS_madvise, address, bytes, advice);

	if (folder_length == 0)
		return result;
	int saved = errno;
	if (bytes >= RAM_LEAST)
		begin();
	/* Whatever the answer: part of it may have been done. */
	if (advice == MADV_REMOVE)
		discards_note_view(address, bytes);
	errno = saved;
	return result;
}

static int fallocate_and_note(int fd, int mode, int64_t offset, int64_t bytes)
{
	int result = (int)syscall(SYS_fallocate, fd, mode, offset, bytes);

	if (folder_length && (mode & FALLOC_FL_PUNCH_HOLE)) {
		int saved = errno;
		discards_note_file(fd, offset, bytes);
		errno = saved;
	}
	return result;
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
	return fallocate_and_note(fd, mode, offset, bytes);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
	return fallocate_and_note(fd, mode, offset, bytes);
}
