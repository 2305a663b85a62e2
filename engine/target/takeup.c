/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: going on with a migration whose target's process died
 *
 * A VM with a process of its own outlives Jaunt's, and so does what is kept with it: the
 * userfaultfds, so that a vCPU which needs a missing page waits, and the ledger, in which page map
 * and session are as they were when the last thread of the dead process ended (ledger.c says why no
 * earlier). What was in that process's memory alone is of no consequence: requests are asked again,
 * and faults that it had read are woken, which makes the vCPU fault once more.
 *
 * Pages that it had claimed and not yet called present are in doubt. Each is settled by one
 * question: may the guest have seen it? If so its bytes are the guest's by now, and it is present;
 * nothing of the source's may be written there. If not, its claim is given up, and whatever the
 * file holds of it is overwritten when it comes. That both are right follows from install.c:
 *
 *   where `in_file` is clear, the file has nothing of an absent page. COPY and ZEROPAGE put a page
 *   there and map it in one step. So if the file has it, the guest may have seen it, and it has
 *   bytes that are the source's or newer. If not, it was not placed, or was a hole that is only to
 *   be called present, or the guest has given it back since, whose bytes it then may not rely on.
 *
 *   where `in_file` is set, `written` is set when the file has what the guest is to see and before
 *   it can see any of it. So without it the guest has seen nothing; with it the file has the right
 *   bytes, or newer ones, or nothing where there are to be zeros: what is mapped or not follows
 *   from the next fault, as for every present page.
 *
 * After an answer of the kernel that says that somebody else maps pages (install.c, `broken`), this
 * does not hold: then all claims stay, and the guest blocks on those pages as before.
 *
 * Settling sets bits in an order that may be cut off anywhere: what is settled stays so, and the
 * rest is as much in doubt as it was.
 *
 * Never may both run. A VM whose first entry was noted, or of which its driver says that it runs,
 * is the target's; one that was loaded waits for COMMIT or ABORT as before, from whoever shows the
 * source's half of the secret. Between COMMIT and the first entry nobody can say whether it ran: it
 * waits for the source to repeat COMMIT, so that a source that an operator has resumed meanwhile is
 * not doubled, and it is never handed back. A driver that cannot say whether the VM runs changes
 * nothing of that, for a VM that counts as running is never told to: only that such a VM, too, is
 * never handed back. To tell one that runs does no harm.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/target/target.h"
#include "engine/trace.h"

#define LISTEN_NS       UINT64_C(5000000000)
#define LISTEN_AGAIN_NS 20000000
#define ERRNO_MAX       4095 /* of the kernel's */

/* --- Writing it down ----------------------------------------------------------------------------
 */

static void set_text(char *to, size_t room, const char *from)
{
	snprintf(to, room, "%s", from);
}

void target_keep_ledger(struct target *target)
{
	const struct jaunt_vm_ops *ops = target->factory->ops;
	const struct session *session = &target->shared.session;
	struct ledger_header *header = target->ledger.header;
	struct jaunt_error error = {0};

	if (!header)
		return;
	memcpy(header->session, session->id, sizeof(header->session));
	memcpy(header->secret, session->secret, sizeof(header->secret));
	header->streams = target->streams;
	header->shards = target->shards;
	header->verify = session->verify;
	target_note_push(target);
	header->insecure = target->base.options.insecure;
	header->source_rejoins = target->source_rejoins;
	header->peer_timeout_ms = target->base.options.peer_timeout_ms;
	header->port = target->port;
	set_text(header->peer, sizeof(header->peer), target->base.options.peer);
	set_text(header->vm, sizeof(header->vm), target->base.status.vm);
	set_text(header->mode, sizeof(header->mode), target->base.status.mode);
	/* The migration is as good without it. */
	if (ops->keep(target->vm, target->ledger.fd, &error) < 0)
		trace_event(target->base.lane, "ledger", "not kept: %s", error.text);
}

void target_note(struct target *target, enum ledger_state state)
{
	struct ledger_header *header = target->ledger.header;

	if (!header)
		return;
	atomic_store(&header->complete_first, target->complete_first);
	atomic_store(&header->copied, target->copied);
	atomic_store(&header->last_instruction_ns, target->last_instruction_ns);
	atomic_store(&header->first_entry_ns, target->first_entry_ns);
	atomic_store(&header->commit_to_entry_ns, target->commit_to_entry_ns);
	target_note_epoch(target);
	atomic_store(&header->state, state);
}

void target_note_epoch(struct target *target)
{
	if (target->ledger.header)
		atomic_store(&target->ledger.header->epoch,
			     atomic_load(&target->shared.session.epoch));
}

void target_note_push(struct target *target)
{
	if (target->ledger.header)
		atomic_store(&target->ledger.header->push, atomic_load(&target->shared.push));
}

void target_forget_ledger(struct target *target)
{
	if (target->ledger.header)
		target->factory->ops->keep(target->vm, -1, NULL);
}

/* --- Reading it ---------------------------------------------------------------------------------
 */

static int nothing_to_resume(struct jaunt_error *error, const char *why)
{
	return error_set(error, ENOENT, "nothing-to-resume", "there is nothing to go on with: %s",
			 why);
}

static int check_state(const struct ledger *ledger, struct jaunt_error *error)
{
	if (atomic_load(&ledger->header->state) == LEDGER_PREPARING)
		return nothing_to_resume(error,
					 "the process that received this VM died before it was "
					 "loaded; it goes on at the source");
	if (!ledger->found.source_rejoins)
		return nothing_to_resume(error, "the source is of a version that does not come "
						"back to a target");
	return 0;
}

/* "tcp:host:port,options": where it listened, with the port that it had. */
static int listened_at(const struct ledger_header *header, char *peer, size_t room,
		       struct jaunt_error *error)
{
	char text[sizeof(header->peer)];
	struct address address;

	snprintf(text, sizeof(text), "%.*s", (int)sizeof(header->peer) - 1, header->peer);
	int result = address_parse(&address, text, error);
	if (result < 0)
		return result;
	address.port = (uint16_t)header->port;
	address_format(&address, peer, room);
	size_t used = strlen(peer);
	if (address.options[0])
		snprintf(peer + used, room - used, ",%s", address.options);
	return 0;
}

static void take_session(struct target *target)
{
	const struct ledger_header *header = target->ledger.header, *found = &target->ledger.found;
	struct target_shared *shared = &target->shared;
	struct session *session = &shared->session;

	memcpy(session->id, found->session, sizeof(session->id));
	memcpy(session->secret, found->secret, sizeof(session->secret));
	session->verify = found->verify;
	target->link_epoch = atomic_load(&header->epoch);
	atomic_store(&session->epoch, target->link_epoch);
	atomic_store(&shared->push, atomic_load(&header->push));
	shared->trace = target->base.trace;
	target->streams = shared->streams = found->streams;
	target->shards = found->shards;
	target->complete_first = atomic_load(&header->complete_first);
	target->copied = atomic_load(&header->copied);
	target->last_instruction_ns = atomic_load(&header->last_instruction_ns);
	target->first_entry_ns = atomic_load(&header->first_entry_ns);
	target->commit_to_entry_ns = atomic_load(&header->commit_to_entry_ns);
	target->loaded = target->source_rejoins = target->away = true;
	error_set(&target->lost, ECONNRESET, "taken-up",
		  "the process that received the VM died, and this one goes on with it");
	snprintf(target->base.status.vm, sizeof(target->base.status.vm), "%.*s",
		 (int)sizeof(found->vm) - 1, found->vm);
	snprintf(target->base.status.mode, sizeof(target->base.status.mode), "%.*s",
		 (int)sizeof(found->mode) - 1, found->mode);
}

/* What the state says, and whether the VM runs. */
static void take_state(struct target *target, enum jaunt_runs runs)
{
	uint32_t state = atomic_load(&target->ledger.header->state);

	target->ran = state == LEDGER_RAN || runs == JAUNT_RUNS;
	target->may_have_run = state >= LEDGER_COMMITTED || runs == JAUNT_MAY_RUN;
	if (!target->ran)
		return;
	if (state != LEDGER_RAN) {
		target->first_entry_ns = clock_ns();
		target_note(target, LEDGER_RAN);
	}
	target->base.committed = true;
	target->base.status.vm_is_at = JAUNT_AT_TARGET;
	atomic_store(&target->shared.granting, true);
}

static void settle_region(struct target *target, size_t region)
{
	struct target_shared *shared = &target->shared;
	const struct pagemap_region *at = &shared->map.regions[region];

	for (uint64_t word = 0; word < at->words; word++) {
		uint64_t doubt = atomic_load(&at->claimed[word]) & ~atomic_load(&at->present[word]);
		if (doubt)
			pagemap_settle(&shared->map, region, word, doubt,
				       install_seen(&shared->install, region, word, doubt));
	}
}

static void settle(struct target *target)
{
	struct target_shared *shared = &target->shared;
	int broken = atomic_load(&target->ledger.header->broken_errno);

	if (broken) {
		if (broken > 0 || broken < -ERRNO_MAX) /* whoever keeps the file wrote that */
			broken = -EIO;
		atomic_store(&shared->install.broken_errno, broken);
		atomic_store(&shared->install.broken, true);
	}
	for (size_t i = 0; i < shared->memory.region_count; i++) {
		if (!broken)
			settle_region(target, i);
		install_wake_all(&shared->install, i);
	}
	target->kept = shared->memory.pages - pagemap_missing(&shared->map) - target->copied;
}

static int take_memory(struct target *target, struct jaunt_error *error)
{
	const struct jaunt_vm_ops *ops = target->factory->ops;
	int result = ops->describe(target->vm, &target->description, error);

	if (result == 0)
		result = target_open_memory(target, error);
	if (result < 0)
		return result;
	settle(target);
	/* Nobody answers faults before the channels come: of pages that are here the kernel can. */
	if (!pagemap_missing(&target->shared.map))
		target_release_memory(target);
	else if (target->copied && !target->complete_first &&
		 sweep_open(&target->sweep, &target->shared) == 0)
		sweep_release(&target->sweep, SWEEP_CALLS); /* without it there are more faults */
	return 0;
}

/* Where the dead process listened. Its socket may outlive it for a moment: the kernel takes its
 * rings apart, and what they wait for, on a thread of its own. */
static int listen_again(struct target *target, struct jaunt_error *error)
{
	uint64_t until = clock_ns() + LISTEN_NS;

	for (;;) {
		int result = target_listen(target, error);
		if (result == 0 || strcmp(error->reason, "port-in-use") != 0 || clock_ns() >= until)
			return result;
		error_clear(error);
		nanosleep(&(struct timespec){.tv_nsec = LISTEN_AGAIN_NS}, NULL);
	}
}

static void say_in_doubt(struct target *target)
{
	struct jaunt_error why = {0};

	error_set(&why, ECONNRESET, "in-doubt",
		  target->may_have_run
			  ? "it is not known yet whether the VM runs: the process that received it "
			    "died, and it may already run here: end its process before running it "
			    "anywhere else. The source says what was decided when it reaches this "
			    "host again"
			  : "it is not known yet whether the VM may run here: the process that "
			    "received it died before COMMIT or ABORT was heard. The VM may run at "
			    "the source, which says so itself when it reaches this host again. "
			    "Fence it before running the VM here");
	migration_reason(&target->base, &why);
	migration_place(&target->base, JAUNT_AT_UNKNOWN);
}

static int take_up(struct target *target, enum jaunt_runs runs, struct jaunt_error *error)
{
	int result;

	take_session(target);
	take_state(target, runs);
	result = take_memory(target, error);
	if (result == 0)
		result = listen_again(target, error);
	if (result < 0)
		return result;
	target->taken_up = target->prepared = true;
	target->link.closed = true; /* there has been none */
	target->base.moving_ns = clock_ns();
	target->base.status.phase = target->ran ? JAUNT_PHASE_POSTCOPY : JAUNT_PHASE_IN_DOUBT;
	if (!target->ran)
		say_in_doubt(target);
	return 0;
}

void target_go_on(struct target *target)
{
	process_watch(&target->process, target->factory->ops, target->vm, target->ring);
	trace_event(target->base.lane, "taken-up", "%" PRIu64 " pages are missing",
		    pagemap_missing(&target->shared.map));
	if (target->ran && sweep_start(&target->sweep) < 0)
		trace_event(target->base.lane, "sweep", "the thread did not start");
}

/* --- Beginning ----------------------------------------------------------------------------------
 */

static int open_ledger(struct ledger *ledger, const struct jaunt_vm_ops *ops, void *vm,
		       struct jaunt_error *error)
{
	int fd = ops->kept(vm, error);

	if (fd == -ENOENT)
		return nothing_to_resume(error, "nothing was kept with this VM: no process died "
						"that received it, or its memory is of huge pages");
	if (fd < 0)
		return fd;
	int result = ledger_open(ledger, fd, error);
	if (result == 0 && (result = check_state(ledger, error)) < 0)
		ledger_close(ledger);
	return result;
}

static int begin(struct target **out, const struct jaunt_vm_factory *factory, void *context,
		 const struct jaunt_options *wanted, struct ledger *ledger,
		 struct jaunt_error *error)
{
	const struct ledger_header *found = &ledger->found;
	struct jaunt_options options;
	char peer[sizeof(found->peer) + 16];

	jaunt_options_init(&options);
	options.peer = peer;
	options.insecure = found->insecure;
	options.fault_threads = found->shards;
	options.peer_timeout_ms =
		wanted->peer_timeout_ms ? wanted->peer_timeout_ms : found->peer_timeout_ms;
	options.trace_path = wanted->trace_path;
	options.phase_changed = wanted->phase_changed;
	options.context = wanted->context;
	int result = listened_at(found, peer, sizeof(peer), error);
	if (result == 0)
		result = target_new(out, factory, context, &options, error);
	if (result < 0)
		return result;
	(*out)->ledger = *ledger;
	*ledger = LEDGER_NONE;
	return 0;
}

int jaunt_target_take_up(struct jaunt_migration **out, const struct jaunt_vm_factory *factory,
			 void *context, const struct jaunt_options *options,
			 struct jaunt_error *error)
{
	struct target *target = NULL;
	struct ledger ledger = LEDGER_NONE;
	enum jaunt_runs runs = JAUNT_MAY_RUN;
	void *vm = NULL;

	if (!factory->take_up || !factory->let_go || !factory->ops->kept || !factory->ops->keep)
		return nothing_to_resume(error, "a VM of this kind dies with its process");
	int result = factory->take_up(context, &vm, &runs, error);
	if (result < 0)
		return result;
	result = open_ledger(&ledger, factory->ops, vm, error);
	if (result == 0)
		result = begin(&target, factory, context, options, &ledger, error);
	ledger_close(&ledger); /* nobody has taken it */
	if (result == 0) {
		target->vm = vm;
		result = take_up(target, runs, error);
	}
	if (result == 0) {
		*out = &target->base;
		return 0;
	}
	if (target) { /* the VM stays as it was found */
		target->vm = NULL;
		target->base.side->close(&target->base);
	}
	factory->let_go(context, vm);
	return result;
}
