/* SPDX-License-Identifier: Apache-2.0 */
/* The source of one migration: what its modules share. */
#ifndef ENGINE_SOURCE_SOURCE_H
#define ENGINE_SOURCE_SOURCE_H

#include "engine/inject.h"
#include "engine/link.h"
#include "engine/migration.h"
#include "engine/process.h"
#include "engine/source/digester.h"
#include "engine/source/eta.h"
#include "engine/source/expose.h"
#include "engine/source/holes.h"
#include "engine/source/precopy.h"
#include "engine/source/pusher.h"
#include "engine/source/serve.h"
#include "engine/source/shared.h"
#include "engine/source/tracker.h"

#define SOURCE_SERVES_MAX  16u
#define SOURCE_STREAMS_MAX 64u

/* Coming back after the link was lost; see rejoin.c. */
struct rejoin {
	bool away;               /* all channels are gone; one looks for the target */
	uint32_t epoch;          /* of the last attempt; 0: there was none */
	unsigned attempts;       /* of this outage */
	uint64_t next_ns;        /* when to try again */
	uint64_t attached_ns;    /* when it last succeeded */
	uint64_t explain_ns;     /* how long a loss may still be explained; 0: nothing is lost */
	struct jaunt_error lost; /* what it began with */
	/* A wish for push: told and not known to have been heard; to be told again. -1: none */
	int push_told, push_again;
};

/* What rounds brought and the VM has written since; see stale.c. */
struct stale {
	struct dirty told; /* pages; they are stale for good */
	uint64_t next_ns;  /* when to look again, while the VM's state goes ahead */
	unsigned looks;    /* meanwhile */
	uint64_t beside;   /* pages that were told meanwhile */
	uint64_t last;     /* and that were left for the pause */
};

struct source {
	struct jaunt_migration base; /* first */
	const struct jaunt_vm_ops *ops;
	void *vm;
	struct address peer;

	/* The thread in run() owns all of these. */
	struct ring *ring;
	struct process process;
	struct link link;
	bool linked;
	bool same_clock;
	bool takes_set_push, takes_holes, takes_ahead; /* what the target said it can do */
	_Atomic bool discarded_late; /* the VM gave back pages that the target may be READing */
	bool to_resume;    /* its driver was told to stop it, or may have: resume() takes it back */
	bool stands_still; /* pause() has said so: no vCPU runs */
	bool complete_first; /* the VM is not to run there with pages missing */
	bool resumed_there;  /* RESUMED was heard */
	struct jaunt_description description;
	struct source_shared shared;
	bool memory_open;
	struct tracker *tracker; /* NULL: not opened */
	struct precopy precopy;
	struct stale stale;
	struct holes holes;
	bool holes_told; /* all of them, in the first round */
	struct digester digester;
	bool takes_read;      /* the target said that it can */
	struct expose expose; /* all zero: nothing can be READ */
	bool exposing;        /* the first pass goes on, or has not been told whole */
	unsigned serve_count, stream_count;
	struct serve *serves[SOURCE_SERVES_MAX]; /* under the mutex for status */
	struct pusher *pushers[SOURCE_STREAMS_MAX];
	uint64_t last_instruction_ns, pause_ns, save_ns, load_ns, commit_ns;
	bool state_sent;   /* the target may have loaded it */
	bool abort_sent;   /* on a link that was up */
	bool proven;       /* whoever was knocked at last showed the target's half of the secret */
	bool takes_rejoin; /* it said that it can */
	bool insists;      /* a cancel does not end what is being waited for: it came before */
	uint32_t wait_ms;  /* for a connection, and for the first word on it */
	struct rejoin rejoin; /* after COMMIT */
	/* Of channels that were replaced, and of their streams. */
	uint64_t past_payload_bytes, past_wire_bytes, past_busy_ns;
	/* Heard within the peer timeout. Set with the mutex held, and then nobody has said that the
	 * target is fenced: see source_note_alive(). */
	bool target_alive;
	uint64_t round_trip_ns;  /* median of a few, on the control link */
	struct eta eta;          /* under the mutex */
	uint64_t target_busy_ns; /* of the mean stream's thread there, as told last */
};

/* --- connect.c: everything up to a target that is ready, while the VM runs
 * ------------------------- */

/* 0, or -errno with `error`. */
int source_connect(struct source *source, struct jaunt_error *error);
/* One wait, as long as nothing is wrong and nobody has cancelled: 1 a message, 0 the time is up or
 * something else happened, or -errno with `error`. */
int source_look(struct source *source, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error);
/* The next message, as long as nothing is wrong and nobody has cancelled: 1, or -errno. */
int source_next(struct source *source, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error);
uint64_t source_deadline(const struct source *source);
/* Asks the target, which answers when it has dealt with all that was sent before: 0, or -errno. */
int source_ping(struct source *source, uint64_t *took_ns, struct jaunt_error *error);
/* The two halves of that: when it was sent, and whether a message, which it frees, is the answer.
 */
uint64_t source_send_ping(struct source *source);
int source_take_pong(Jaunt__Control *message, struct jaunt_error *error);
/* What to say of a message that has no place here; also of REFUSED and FAILED. */
int source_unexpected(const Jaunt__Control *message, struct jaunt_error *error);
/* HELLO, and what the target can do. 0 or -errno. */
int source_greet(struct source *source, struct jaunt_error *error);
/* The control link, by a knock that shows that session, in that epoch; 0: it begins. */
int source_open_control(struct source *source, uint32_t epoch, struct jaunt_error *error);
/* How many channels it wants. 0 or -errno. */
int source_take_ready(struct source *source, const Jaunt__Ready *ready, struct jaunt_error *error);

/* --- channels.c: the page channels
 * ------------------------------------------------------------------------------------------ */

/* A connection that says what it is for, and is unbound. 0 or -errno. */
int source_open_channel(struct source *source, struct channel **channel, enum attach_role role,
			struct jaunt_error *error);
/* The page channels and the threads that serve them, in place of any before. */
int source_open_channels(struct source *source, struct jaunt_error *error);
/* What each stream may send, bytes per second; 0: no limit. Any thread. */
uint64_t source_stream_rate(const struct source *source);
/* Ends every thread and channel but the control link: none of the target's READs is under way any
 * more. */
void source_stop(struct source *source);
/* The same, and takes back what is exposed, which takes the longer the more there is. */
void source_disconnect(struct source *source);

/* --- rejoin.c: after COMMIT the link may be lost, and found again
 * ------------------------------------------------------------------------------------------ */

/* Looks whether it is lost, and tries to come back when it is time to. -1: go on; else the outcome,
 * which the target told on the way. */
int source_keep_in_touch(struct source *source, struct jaunt_error *error);
/* Until when to wait for what happens. */
uint64_t source_wait_until(const struct source *source, uint64_t until_ns);
/* The VM runs here, and a target that may have loaded it did not hear so: tells it. */
void source_tell_abort(struct source *source, const struct jaunt_error *why);

/* --- source.c
 * ------------------------------------------------------------------------------------------ */

/* After COMMIT. -1: go on; else the outcome. */
int source_take(struct source *source, const Jaunt__Control *message, struct jaunt_error *error);
int source_send_abort(struct source *source, const struct jaunt_error *why);

/* --- switchover.c: from the pause to COMMIT
 * --------------------------------------------------------------------------------------------- */

/* 0: COMMIT is recorded. -errno with `error`: it is not, and the VM may be paused. */
int source_switch_over(struct source *source, struct jaunt_error *error);
/* Fault injection: stays in the phase, hearing all that may end it. 0 or -errno. */
int source_hold(struct source *source, enum inject_point point, struct jaunt_error *error);
/* Memory stands still: where it has holes can be told, unless it was. */
void source_tell_holes(struct source *source);
void source_note_figures(struct source *source, const Jaunt__Progress *progress);

/* --- track.c: dirty tracking. Called by the thread in run()
 * --------------------------------------------------------------------------------------------- */

/* Notes whether about one page in `every` is written, until source_track() or source_untrack().
 * -errno: it cannot be done here. */
int source_sample(struct source *source, enum tracker_kind kind, unsigned every,
		  struct jaunt_error *error);
/* How many of them were written since, or -errno. */
int64_t source_sampled(struct source *source);
/* From when it returns every page that changes is marked in shared.dirty by the next
 * source_collect(), or at once where the driver reports it. Nothing is dirty then. */
int source_track(struct source *source, enum tracker_kind kind, struct jaunt_error *error);
/* Marks what was written since. */
int source_collect(struct source *source, struct jaunt_error *error);
/* The same while the VM runs, behind the last round: what is marked is told as stale. */
int source_collect_stale(struct source *source, struct jaunt_error *error);
/* Ends tracking, if there is any: 0, the guest is as fast as before. Else -errno with `error`; it
 * is tried again at the end. Marks stay. */
int source_untrack(struct source *source, struct jaunt_error *error);
void source_changed(struct jaunt_migration *migration, size_t region, uint64_t first,
		    uint64_t count, bool discarded);

/* --- stale.c: what of the rounds' is not as it was sent. Called by the thread in run(), behind
 * the last round; 0 or -errno with `error`
 * ------------------------------------------------------------------------------------------ */

/* While the VM runs: until few are left. */
int source_tell_stale(struct source *source, struct jaunt_error *error);
/* While its state goes ahead, if it is time to, and if looking does not pause the VM; not as long
 * as the target has not said that it took what was sent. Adds what it sends to *unanswered, in
 * bytes, about. */
int source_tell_stale_beside(struct source *source, size_t *unanswered, struct jaunt_error *error);
/* For how long not to look again: where a look took so long, and the VM had written again so many
 * pages that were told already. */
uint64_t source_stale_rest_ns(uint64_t took_ns, uint64_t again, double tracking_ns, unsigned vcpus);
/* The vCPUs stand still, their state is saved: what is stale beyond what was told. */
int source_tell_last_stale(struct source *source, uint32_t epoch, struct jaunt_error *error);

/* --- announce.c: memory that the target may READ
 * ------------------------------------------------------ */

/* Registers what there is while the VM runs, where the transport can READ: to the end, or, where
 * the mode has rounds, beside them. 0, or -errno with `error`: cancelled, lost. */
int source_expose(struct source *source, struct jaunt_error *error);
/* The end of that: awaits it, or, before the pause, ends it where it stands. What is missing then
 * is registered after the switch. */
int source_await_exposed(struct source *source, struct jaunt_error *error);
void source_end_exposing(struct source *source);
/* After COMMIT, on new channels: registers all of it anew. */
void source_expose_again(struct source *source);
/* Tells the target of what has been registered since. */
void source_tell_exposed(struct source *source);
/* The target lives, which takes back that an operator called it fenced; or it may be dead. */
void source_note_alive(struct source *source, bool alive);
/* Adds what is stale to FREEZE, until source_freeze_forget(). -ENOMEM with `error`. */
int source_freeze_exposed(struct source *source, Jaunt__Freeze *freeze, struct jaunt_error *error);
void source_freeze_forget(Jaunt__Freeze *freeze);
/* Figures. Any thread. */
void source_exposed_status(struct source *source, struct jaunt_status *status);

#endif
