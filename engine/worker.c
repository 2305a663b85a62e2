/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RING_DEPTH     256
#define URGENT_NICE    (-15)
#define SHORT_SLICE_NS 100000
#define RESET_ON_FORK  1u /* of sched_attr.flags, by <linux/sched.h> */

/* struct sched_attr of Linux (include/uapi/linux/sched/types.h), which Debian 12's C library lacks.
 */
struct rank_attributes {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns;
	uint64_t deadline_ns;
	uint64_t period_ns;
};

/*
 * Where the scheduler has to choose, the thread that a guest waits for comes first. It runs for
 * microseconds at a time, so besides a low nice value it asks for a short slice, which lets it
 * preempt a thread in the middle of a longer one (Linux 6.12, EEVDF; older kernels ignore it).
 * Without the permission (CAP_SYS_NICE) the nice value stays as it is. What an urgent thread starts
 * is not urgent for that: bulk that outranks a guest's vCPU takes the CPU from it for as long as
 * the bulk lasts.
 *
 * A thread that moves bulk keeps its nice value but asks for the short slice, too: a slice protects
 * whoever has the CPU, and a vCPU that was just woken should not wait out three milliseconds of it.
 */
static struct worker_rank_saved set_rank(bool urgent)
{
	struct worker_rank_saved before = {.known = false};
	struct rank_attributes attributes = {.size = sizeof(attributes)};
	pid_t thread = (pid_t)syscall(SYS_gettid);

	if (syscall(SYS_sched_getattr, thread, &attributes, sizeof(attributes), 0) < 0 ||
	    attributes.policy != 0)
		return before; /* whoever chose another policy knows better */
	before = (struct worker_rank_saved){true, attributes.nice, attributes.runtime_ns};
	attributes.runtime_ns = SHORT_SLICE_NS;
	if (urgent) {
		attributes.nice = URGENT_NICE;
		attributes.flags |= RESET_ON_FORK;
	}
	if (syscall(SYS_sched_setattr, thread, &attributes, 0) < 0 && urgent)
		(void)setpriority(PRIO_PROCESS, (id_t)thread, URGENT_NICE);
	return before;
}

struct worker_rank_saved worker_rank_raise(void)
{
	return set_rank(true);
}

void worker_rank_restore(const struct worker_rank_saved *before)
{
	struct rank_attributes attributes = {
		.size = sizeof(attributes), .nice = before->nice, .runtime_ns = before->slice_ns};
	pid_t thread = (pid_t)syscall(SYS_gettid);

	if (before->known && syscall(SYS_sched_setattr, thread, &attributes, 0) < 0)
		(void)setpriority(PRIO_PROCESS, (id_t)thread, before->nice);
}

static void tell_started(struct worker *worker, int result)
{
	pthread_mutex_lock(&worker->mutex);
	worker->begin_result = result;
	worker->started = true;
	pthread_cond_signal(&worker->changed);
	pthread_mutex_unlock(&worker->mutex);
}

static void *worker_main(void *argument)
{
	struct worker *worker = argument;

	pthread_setname_np(pthread_self(), worker->name);
	atomic_store(&worker->id, (int)syscall(SYS_gettid));
	if (worker->rank != WORKER_NORMAL)
		(void)set_rank(worker->rank == WORKER_URGENT);
	int result = ring_create(&worker->ring, RING_DEPTH);
	if (result < 0) {
		atomic_store(&worker->id, 0);
		tell_started(worker, result);
		return NULL;
	}
	if (worker->ops->begin)
		result = worker->ops->begin(worker->user, worker->ring);
	tell_started(worker, result);
	if (result == 0) {
		while (!atomic_load(&worker->stop)) {
			int64_t sleep_ns = worker->ops->pump(worker->user);
			if (atomic_load(&worker->stop))
				break;
			if (ring_wait(worker->ring, sleep_ns) < 0)
				break;
		}
		if (worker->ops->end)
			worker->ops->end(worker->user);
	}
	/* worker_wake() may still be on its way: the ring lives until worker_stop() has been
	 * called. */
	while (result == 0 && !atomic_load(&worker->stop))
		ring_wait(worker->ring, -1);
	atomic_store(&worker->busy_ns, worker_busy_ns(worker));
	atomic_store(&worker->id, 0);
	pthread_mutex_lock(&worker->mutex);
	ring_destroy(worker->ring);
	worker->ring = NULL;
	pthread_mutex_unlock(&worker->mutex);
	return NULL;
}

int worker_start(struct worker *worker, const char *name, enum worker_rank rank,
		 const struct worker_ops *ops, void *user)
{
	sigset_t all, before;

	worker->ops = ops;
	worker->user = user;
	worker->rank = rank;
	worker->ring = NULL;
	atomic_store(&worker->busy_ns, 0);
	worker->started = false;
	worker->begin_result = 0;
	atomic_store(&worker->id, 0);
	atomic_store(&worker->stop, false);
	snprintf(worker->name, sizeof(worker->name), "%s", name);
	worker->mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	worker->changed = (pthread_cond_t)PTHREAD_COND_INITIALIZER;

	/* Signals are the application's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int result = -pthread_create(&worker->thread, NULL, worker_main, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (result < 0)
		return result;
	pthread_mutex_lock(&worker->mutex);
	while (!worker->started)
		pthread_cond_wait(&worker->changed, &worker->mutex);
	pthread_mutex_unlock(&worker->mutex);
	if (worker->begin_result < 0) {
		pthread_join(worker->thread, NULL);
		return worker->begin_result;
	}
	worker->running = true;
	return 0;
}

void worker_wake(struct worker *worker)
{
	pthread_mutex_lock(&worker->mutex);
	if (worker->ring)
		ring_wake(worker->ring);
	pthread_mutex_unlock(&worker->mutex);
}

void worker_tell_to_stop(struct worker *worker)
{
	atomic_store(&worker->stop, true);
	worker_wake(worker);
}

uint64_t worker_busy_ns(const struct worker *worker)
{
	char path[64], text[96];
	unsigned long long ran = 0, waited = 0;
	int id = atomic_load(&worker->id);

	snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", id);
	int fd = id ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return atomic_load(&worker->busy_ns);
	ssize_t bytes = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[bytes > 0 ? bytes : 0] = '\0';
	return sscanf(text, "%llu %llu", &ran, &waited) == 2 ? ran + waited : 0;
}

void worker_stop(struct worker *worker)
{
	if (!worker->running)
		return;
	worker_tell_to_stop(worker);
	pthread_join(worker->thread, NULL);
	worker->running = false;
}
