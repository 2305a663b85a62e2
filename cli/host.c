/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The loop waits for four things: clients (server.c), signals (a signalfd), and wake_fd, which a
 * migration writes on every change of phase and at its end. Everything is decided here, on one
 * thread; the target's factory, which runs on the migration's, only leaves what it made under the
 * lock.
 *
 * Who may end this process: before COMMIT anybody may, since the VM runs on at the source or ends
 * with its owner. After COMMIT and until COMPLETE each side holds memory that the other cannot make
 * up for, the source the pages not yet sent, the target those already changed; a signal is refused
 * then. The engine is the judge of that: its answer to a cancel says whether COMMIT has passed.
 */
#include "cli/host.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/explain.h"
#include "cli/mismatch.h"
#include "cli/notify.h"
#include "cli/progress.h"
#include "cli/snapshot.h"
#include "cli/text.h"

#define HOST_TELL_NS UINT64_C(100000000) /* between events to followers */
/* The same while this host only waits for the other to have all pages: it hears of that as seldom
 * where the other reads them by itself, and should have nothing to do. */
#define HOST_TELL_AWAY_NS UINT64_C(500000000)
/* A signal ends the process within 5 s. The guest's last check of its memory may use what of them
 * the rest does not need: stopping it, giving its memory back, the last words to clients. */
#define HOST_END_MS      5000
#define HOST_REST_MS     1000
#define HOST_REST_GIB_MS 100 /* more of it for each GiB of memory, up to: */
#define HOST_REST_MOST   2500
#define HOST_CHECK_LEAST 500
#define HOST_HANG_MS     500 /* beyond its check, until a guest counts as one that hangs */
#define HOST_START_MS    20  /* between questions whether a new guest is at work */
#define HOST_DRAIN_MS    500
/* For the source to say that it has heard of the end, once a signal came: of the same 5 s. */
#define HOST_FAREWELL_NS UINT64_C(500000000)
#define HOST_RETRY_MS    100 /* after the kernel had no memory to wait with */

void host_say(struct host *host, const char *format, ...)
{
	char text[1400], clean[1400];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	text_clean(clean, sizeof(clean), text);
	if (host->quiet)
		return;
	fprintf(stderr, "%s: %s\n", host->command, clean);
}

static int take_over_signals(struct host *host)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	host->signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
	return host->signal_fd < 0 ? -errno : 0;
}

int host_open(struct host *host, const char *command, bool signals, struct jaunt_error *error)
{
	const struct server_handler handler = {.request = host_request, .user = host};

	*host = (struct host){.command = command,
			      .kind = &guest_builtin_kind,
			      .claim = RUNTIME_NO_CLAIM,
			      .pending = RUNTIME_NO_CLAIM,
			      .signal_fd = -1,
			      .wake_fd = -1};
	pthread_mutex_init(&host->lock, NULL);
	host->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (host->wake_fd < 0 || (signals && take_over_signals(host) < 0))
		return error_set(error, errno, "no-files",
				 "cannot open the descriptors that it needs: %s; see `ulimit -n`",
				 strerror(errno));
	return server_open(&host->server, &handler, error);
}

int host_claim(struct host *host, const char *name, struct jaunt_error *error)
{
	struct runtime_claim claim;
	int result = runtime_claim(&claim, name, error);

	if (result)
		return result;
	pthread_mutex_lock(&host->lock);
	host->claim = claim;
	pthread_mutex_unlock(&host->lock);
	server_listen(host->server, claim.listen_fd);
	return 0;
}

void host_adopt(struct host *host, const struct guest_kind *kind, void *vm,
		const struct guest_facts *facts)
{
	host->kind = kind;
	host->vm = vm;
	host->facts = *facts;
	host->vm_here = true;
	host->starting = !kind->separate;
}

void host_leave(struct host *host)
{
	uint64_t one = 1;

	atomic_store(&host->leave, true);
	if (write(host->wake_fd, &one, sizeof(one)) < 0)
		return; /* EAGAIN: it is awake already */
}

static void tell_followers(struct host *host, const struct jaunt_status *status)
{
	json_t *event = json_pack("{s:s, s:o}", "event", "status", "migration",
				  host_describe_migration(host->job, status));
	server_broadcast(host->server, event, true, false);
	host->told_ns = clock_ns();
}

static void tell_phase(struct host *host, const struct jaunt_status *status)
{
	const char *name = host_name(host);
	bool outgoing = job_outgoing(host->job);
	char missing[48] = "";

	host->shown = status->phase;
	switch (status->phase) {
	case JAUNT_PHASE_PREPARING:
		if (outgoing)
			host_say(host, "%s: preparing to move to %s", name, status->peer);
		break;
	case JAUNT_PHASE_POSTCOPY:
		if (outgoing)
			host_say(host, "%s: runs at %s now, which fetches its pages from here",
				 name, status->peer);
		else
			host_say(host, "%s: runs here now, its pages follow", name);
		/* The source had committed before it heard of our wish. */
		if (host->stop_wanted)
			host_say(host, "%s: the signal came too late to cancel; it goes on", name);
		host->stop_wanted = false;
		break;
	case JAUNT_PHASE_BLOCKED:
	case JAUNT_PHASE_IN_DOUBT:
		if (status->pages.missing)
			snprintf(missing, sizeof(missing), ", %" PRIu64 " pages missing",
				 status->pages.missing);
		host_say(host, "%s: %s%s: %s%s%s", name, progress_phase_words(status->phase),
			 missing,
			 status->reason[0] ? status->reason : "no word from the other side",
			 status->error[0] ? ": " : "", status->error);
		break;
	default:
		break;
	}
}

/* A source that was turned away while the target goes on waiting. */
static void tell_refusal(struct host *host, const struct jaunt_status *status)
{
	if (job_outgoing(host->job) || strcmp(host->told_error, status->error) == 0 ||
	    (status->phase != JAUNT_PHASE_WAITING && status->phase != JAUNT_PHASE_PREPARING))
		return;
	snprintf(host->told_error, sizeof(host->told_error), "%s", status->error);
	if (status->error[0])
		host_say(host, "%s; still waiting", status->error);
}

static void end_outgoing(struct host *host, const struct jaunt_status *status,
			 enum jaunt_outcome outcome)
{
	const char *name = host_name(host);

	host->has_left = true;
	host->left = *status;
	host->left_outcome = outcome;
	/* A dry run is done and the VM is still here: the place counts, not the outcome. */
	if (status->vm_is_at == JAUNT_AT_SOURCE || outcome == JAUNT_FAILED ||
	    outcome == JAUNT_CANCELLED || outcome == JAUNT_USAGE) {
		if (outcome == JAUNT_DONE)
			host_say(host, "%s: a dry run to %s went well", name, status->peer);
		else
			host_say(host, "%s: runs on here: %s", name, status->error);
		host->finished = host->kind->separate;
		host->outcome = outcome;
		return;
	}
	host->vm_here = false;
	host->finished = true;
	host->outcome = outcome;
	if (outcome == JAUNT_DONE)
		host_say(host, "%s: moved to %s, complete; nothing is left of it here", name,
			 status->peer);
	else
		host_say(host,
			 "%s: given up after it was committed to %s, %" PRIu64 " pages short: %s",
			 name, status->peer, status->pages.missing, status->error);
}

static void end_incoming(struct host *host, const struct jaunt_status *status,
			 enum jaunt_outcome outcome)
{
	const char *name = host_name(host);

	host->has_arrived = true;
	host->arrived = *status;
	if (outcome == JAUNT_DONE && status->vm_is_at == JAUNT_AT_TARGET) {
		host->vm_here = true;
		host_say(host, "%s: complete, every page is here; the source is released", name);
		host->finished = host->kind->separate; /* it can do without us now */
		host->outcome = outcome;
		return;
	}
	host->finished = true;
	host->outcome = outcome;
	host_say(host, "%s", status->error[0] ? status->error : "no VM came");
}

/* It is of no more use here; `left`: it runs elsewhere. */
static void let_go(struct host *host, bool left)
{
	pthread_mutex_lock(&host->lock);
	void *vm = host->vm;
	host->vm = NULL;
	pthread_mutex_unlock(&host->lock);
	if (vm && left)
		host->kind->has_left(vm);
	else if (vm)
		host->kind->let_go(vm);
}

static void job_ended(struct host *host, enum jaunt_outcome outcome)
{
	struct job *job = host->job;
	struct jaunt_status status;

	job_status(job, &status);
	json_t *event = json_pack("{s:s, s:i, s:o}", "event", "end", "outcome", (int)outcome,
				  "migration", host_describe_migration(job, &status));
	if (job_outgoing(job)) {
		json_object_set_new(event, "decisions", explain_json(job_migration(job)));
		json_object_set_new(event, "differences", mismatch_json(job_migration(job)));
		end_outgoing(host, &status, outcome);
	} else {
		end_incoming(host, &status, outcome);
	}
	host->job = NULL;
	host->abandon_ns = 0;
	/* Closing the migration takes the handler from a guest that may still wait for a page, and
	 * would then read zeros: the guest goes first. */
	if (!job_outgoing(job) && outcome == JAUNT_INCOMPLETE && !host->kind->separate)
		let_go(host, false);
	bool left = job_outgoing(job) && outcome == JAUNT_DONE && !host->vm_here;
	if (left && host->kind->leaves && host->vm)
		host->kind->leaves(host->vm);
	/* Whoever hears of the end may ask for the next migration: close this one first. */
	if (!job_outgoing(job) && host->vm_here && !host->kind->separate)
		host->arrival = job; /* it knows which pages were demanded */
	else
		job_close(job);
	if (host->kind->separate)
		let_go(host, left);
	server_broadcast(host->server, event, false, true);
}

static void stop_asked(struct host *host, const char *by)
{
	struct jaunt_error error = {.code = 0};
	struct jaunt_status status;

	if (!host->stop_wanted)
		host->stop_ns = clock_ns();
	if (!host->job) {
		host->stop_wanted = true;
		return;
	}
	int result = job_cancel(host->job, &error);
	if (!result || result == -EALREADY) {
		host->stop_wanted = true;
		return;
	}
	job_status(host->job, &status);
	/* Every page is where it belongs and only the farewell is left: it ends by itself, or,
	 * where the source says nothing any more, without it. */
	if (status.phase == JAUNT_PHASE_COMPLETED ||
	    (!job_outgoing(host->job) && !status.pages.missing)) {
		host->stop_wanted = true;
		if (!job_outgoing(host->job) && !host->abandon_ns)
			host->abandon_ns = clock_ns() + HOST_FAREWELL_NS;
		return;
	}
	host_say(host,
		 "%s refused: %s is committed to %s and %" PRIu64 " pages are still missing; "
		 "without this process %s. Wait until it is complete, or give it up with `jaunt "
		 "cancel %s --abandon`",
		 by, host_name(host), job_outgoing(host->job) ? status.peer : "this host",
		 status.pages.missing,
		 job_outgoing(host->job) ? "the guest would lose its memory"
					 : "the VM would be lost",
		 host_name(host));
}

static void take_signals(struct host *host)
{
	struct signalfd_siginfo info;

	while (read(host->signal_fd, &info, sizeof(info)) == sizeof(info))
		stop_asked(host, info.ssi_signo == SIGINT    ? "SIGINT"
				 : info.ssi_signo == SIGTERM ? "SIGTERM"
							     : "SIGHUP");
}

/* The VM is stopped on a thread of its own, so that a guest that cannot be stopped does not keep
 * this process from ending. */
struct stopper {
	void *vm;
	unsigned check_ms;
	enum guest_check check;
	struct jaunt_error error;
};

static void *stop_guest(void *argument)
{
	struct stopper *stopper = argument;
	stopper->check = guest_stop(stopper->vm, stopper->check_ms, &stopper->error);
	return NULL;
}

void host_settle_arrival(struct host *host)
{
	struct jaunt_error error = {.code = 0};

	if (!host->arrival)
		return;
	if (guest_touch_latency(host->vm, job_migration(host->arrival), &host->touches,
				&host->waited_us, &error))
		host_say(host, "no account of the guest's touches: %s", error.text);
	else
		host->has_touches = true;
	job_close(host->arrival);
	host->arrival = NULL;
}

/* How long the guest may take to check its memory. */
static unsigned check_ms(const struct host *host)
{
	uint64_t used = (clock_ns() - host->stop_ns) / 1000000;
	uint64_t rest = HOST_REST_MS + (host->facts.memory_bytes >> 30) * HOST_REST_GIB_MS;

	if (rest > HOST_REST_MOST)
		rest = HOST_REST_MOST;
	if (used + rest + HOST_CHECK_LEAST > HOST_END_MS)
		return HOST_CHECK_LEAST;
	return (unsigned)(HOST_END_MS - rest - used);
}

static void stop(struct host *host)
{
	unsigned limit_ms = check_ms(host);
	struct stopper *stopper = calloc(1, sizeof(*stopper));
	struct timespec limit;
	pthread_t thread;

	notify_send("STOPPING=1");
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_nsec += (limit_ms + HOST_HANG_MS) % 1000 * 1000000L;
	limit.tv_sec += (limit_ms + HOST_HANG_MS) / 1000 + limit.tv_nsec / 1000000000;
	limit.tv_nsec %= 1000000000;
	if (stopper) {
		stopper->vm = host->vm;
		stopper->check_ms = limit_ms;
	}
	if (!stopper || pthread_create(&thread, NULL, stop_guest, stopper)) {
		free(stopper);
		host_say(host, "the VM cannot be stopped in order: no memory or threads");
	} else if (pthread_timedjoin_np(thread, NULL, &limit)) {
		/* Neither freed nor destroyed: the thread still uses them, and the process ends. */
		host_say(host, "the guest could not be stopped within %u ms",
			 limit_ms + HOST_HANG_MS);
		host->check = GUEST_UNFINISHED;
		host_take_account(host);
		host->vm = NULL;
		host->vm_here = false;
		host->finished = true;
		return;
	} else {
		host->check = stopper->check;
		if (stopper->error.code)
			host_say(host, "%s", stopper->error.text);
		free(stopper);
	}
	host_take_account(host);
	host_settle_arrival(host);
	struct jaunt_error error = {.code = 0};
	if (host->throughput_path &&
	    guest_write_throughput(host->vm, host->throughput_path, &error))
		host_say(host, "%s", error.text);
	guest_destroy(host->vm);
	host->vm = NULL;
	host->vm_here = false;
	host->finished = true;
	/* Where the VM is says nothing any more; that its memory was wrong must not go unnoticed.
	 */
	host->outcome = host->account.memory_errors ? JAUNT_FAILED : JAUNT_DONE;
}

static uint64_t tell_ns(const struct host *host)
{
	bool away = host->shown == JAUNT_PHASE_POSTCOPY || host->shown == JAUNT_PHASE_BLOCKED;

	return away && job_outgoing(host->job) ? HOST_TELL_AWAY_NS : HOST_TELL_NS;
}

static void look_after_job(struct host *host)
{
	struct jaunt_status status;
	enum jaunt_outcome outcome;

	if (job_done(host->job, &outcome)) {
		job_ended(host, outcome);
		return;
	}
	if (host->abandon_ns && clock_ns() >= host->abandon_ns) {
		host->abandon_ns = 0;
		job_abandon(host->job, NULL);
	}
	job_status(host->job, &status);
	bool changed = status.phase != host->shown;
	if (changed)
		tell_phase(host, &status);
	tell_refusal(host, &status);
	if (server_has_followers(host->server) &&
	    (changed || clock_ns() - host->told_ns >= tell_ns(host)))
		tell_followers(host, &status);
}

static void look_after_start(struct host *host)
{
	struct jaunt_error error = {.code = 0};
	int result = guest_at_work(host->vm, &error);

	if (!result)
		return;
	host->starting = false;
	if (result < 0) {
		host_say(host, "%s: %s", host_name(host), error.text);
		return;
	}
	host_say(host, "ready: %s is at work on its memory", host_name(host));
	notify_send("READY=1");
}

static int patience_ms(const struct host *host)
{
	if (host->starting || host->abandon_ns)
		return HOST_START_MS;
	return host->job && server_has_followers(host->server) ? (int)(tell_ns(host) / 1000000)
							       : -1;
}

/* To leave would end the VM, or what another host still needs of it: whatever fails, this process
 * stays, hears signals, and tries again. */
static void wait_without_clients(struct host *host, struct pollfd *own, nfds_t count, int code)
{
	if (!host->told_poll)
		host_say(host,
			 "cannot listen to other commands for now: %s; it goes on and tries again",
			 strerror(-code));
	host->told_poll = true;
	if (poll(own, count, HOST_RETRY_MS) >= 0)
		return;
	nanosleep(&(struct timespec){.tv_nsec = HOST_RETRY_MS * 1000000L}, NULL);
	/* Both are non-blocking: looking in vain costs nothing. */
	for (nfds_t i = 0; i < count; i++)
		own[i].revents = POLLIN;
}

enum jaunt_outcome host_run(struct host *host)
{
	while (!host->finished) {
		struct pollfd own[] = {{.fd = host->signal_fd, .events = POLLIN},
				       {.fd = host->wake_fd, .events = POLLIN}};
		uint64_t ignored;

		int result = server_poll(host->server, own, 2, patience_ms(host));
		if (result) {
			wait_without_clients(host, own, 2, result);
		} else {
			host->told_poll = false;
		}
		if (own[1].revents && read(host->wake_fd, &ignored, sizeof(ignored)) < 0)
			own[1].revents = 0;
		host_settle_name(host);
		if (own[0].revents)
			take_signals(host);
		if (atomic_load(&host->leave))
			host->stop_wanted = true;
		if (host->starting)
			look_after_start(host);
		if (host->job)
			look_after_job(host);
		if (host->stop_wanted && !host->job && !host->finished && host->kind->separate)
			host->finished = true;
		else if (host->stop_wanted && !host->job && !host->finished)
			stop(host);
	}
	/* Those who wait for the last event get it before the process goes. */
	server_drain(host->server, HOST_DRAIN_MS);
	return host->outcome;
}

void host_close(struct host *host)
{
	job_close(host->arrival);
	let_go(host, false);
	server_close(host->server);
	runtime_release(&host->pending);
	runtime_release(&host->claim);
	if (host->signal_fd >= 0)
		close(host->signal_fd);
	if (host->wake_fd >= 0)
		close(host->wake_fd);
	pthread_mutex_destroy(&host->lock);
}
