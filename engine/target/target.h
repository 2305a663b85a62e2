/* SPDX-License-Identifier: Apache-2.0 */
/* The target of one migration: what its modules share. */
#ifndef ENGINE_TARGET_TARGET_H
#define ENGINE_TARGET_TARGET_H

#include "engine/link.h"
#include "engine/migration.h"
#include "engine/process.h"
#include "engine/target/demand.h"
#include "engine/target/fill.h"
#include "engine/target/gate.h"
#include "engine/target/ledger.h"
#include "engine/target/load.h"
#include "engine/target/shared.h"
#include "engine/target/sweep.h"

#define TARGET_STREAMS_MAX 64u

struct target {
	struct jaunt_migration base; /* first */
	const struct jaunt_vm_factory *factory;
	void *context;
	struct listener *listener;
	unsigned port;

	/* The thread in run() owns all of these. */
	struct ring *ring;
	struct process process; /* of the VM, once it is made */
	struct gate gate;
	struct link link;
	bool linked;
	uint64_t pinged_ns; /* when the source's last ping came */
	bool same_clock;
	bool answers_pings;   /* the source said that it does */
	bool complete_first;  /* the VM is not to run here with pages missing */
	bool ran;             /* a vCPU has run here: the VM is not the engine's to destroy */
	bool channels_wanted; /* Ready was sent, not all channels have come */
	bool differ;          /* create() refused what this source described */
	/* What has come, of the present attachment. */
	bool has_urgent[INSTALL_SHARDS_MAX], has_stream[TARGET_STREAMS_MAX];

	/* Coming back after a loss; see rejoin.c. */
	bool awaits_source;      /* a source may begin */
	bool loaded;             /* LOADED was sent: the source may come back */
	bool source_rejoins;     /* it said that it does when the link is lost */
	bool away;               /* the link that was there is lost */
	bool agreed;             /* the link that is there has been heard to go on */
	uint32_t link_epoch;     /* that the link brought; 0: it is the first */
	struct jaunt_error lost; /* why it is away, or was */
	uint64_t first_entry_ns, commit_to_entry_ns;

	/* Set up by prepare, taken down by unprepare or close; read by status under the mutex. */
	void *vm;
	struct jaunt_description description; /* of the VM here */
	struct target_shared shared;
	unsigned streams, shards;
	struct demand *demands[INSTALL_SHARDS_MAX];
	struct fill *fills[TARGET_STREAMS_MAX];
	struct channel *waiting_urgent_check[INSTALL_SHARDS_MAX];
	struct channel *waiting_stream_check[TARGET_STREAMS_MAX];
	struct channel *waiting_urgent[INSTALL_SHARDS_MAX];
	struct channel *waiting_stream[TARGET_STREAMS_MAX];
	bool memory_open, map_open, install_open;
	bool prepared; /* under the mutex: all of this may be looked at by any thread */

	struct load load;
	struct sweep sweep; /* after rounds */
	uint8_t *state;     /* device state, as it arrives */
	size_t state_bytes;
	size_t ahead_bytes; /* of it, told before FREEZE and loaded already */
	uint64_t last_instruction_ns;
	uint64_t copied; /* pages present when the epoch began; under the mutex */

	struct ledger ledger; /* of a VM that outlives this process */
	bool taken_up;        /* from a process that died; see takeup.c */
	bool may_have_run;    /* it cannot be said of this VM that no vCPU has run here */
	uint64_t kept;        /* pages that the one before brought after the switch */
};

/* --- prepare.c: everything that can be done while the VM still runs at the source ----------------
 */

/* Creates the VM that is asked for, takes its memory over and registers it. */
int target_prepare(struct target *target, const Jaunt__Configure *configure,
		   struct jaunt_error *error);
/* Opens the VM's memory, the page map and the userfaultfds; with the target's ledger, or a new one
 * if it can have one. */
int target_open_memory(struct target *target, struct jaunt_error *error);
/* A channel of the session has come (owned from here on): starts what it was waited for. */
void target_attach(struct target *target, struct channel *channel, const struct attach *attach);
/* The session goes on: all channels are wanted anew. */
void target_reattach(struct target *target, uint32_t epoch);
/* Whether all of them have. */
bool target_attached(const struct target *target);
/* Takes everything down; the VM has not run, or never will again. */
void target_unprepare(struct target *target);
/* Every page is present (or the VM is stopped): from here on the kernel serves the guest. */
void target_release_memory(struct target *target);
/* Ends the threads and their channels; the figures stay. */
void target_stop_threads(struct target *target);

/* --- takeup.c: going on after the death of the process before
 * ----------------------------------------------------------------------------------- */

/* Has the VM keep the ledger, if there is one: from now on it can be taken up. */
void target_keep_ledger(struct target *target);
/* How far it has come, in which epoch, and what was set. They do nothing without a ledger. */
void target_note(struct target *target, enum ledger_state state);
void target_note_epoch(struct target *target);
void target_note_push(struct target *target);
/* Of one that was taken up, on the thread that works through the phases. */
void target_go_on(struct target *target);
/* Nothing is to be taken up any more. */
void target_forget_ledger(struct target *target);

/* --- target.c ------------------------------------------------------------------------------------
 */

/* All but the listening. */
int target_new(struct target **out, const struct jaunt_vm_factory *factory, void *context,
	       const struct jaunt_options *options, struct jaunt_error *error);
int target_listen(struct target *target, struct jaunt_error *error);

/* --- turn.c: waiting
 * ------------------------------------------------------------------------------- */

/* Whether to let somebody connect: see listener_admit(). */
bool target_admits(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]);

/* One wait: lets visitors in, and takes a message if there is one. 1: *message. 0: something else
 * happened, or the time is up. -errno: the link is down. */
int target_turn(struct target *target, uint64_t until_ns, Jaunt__Control **message);
/* The same, as long as nothing is wrong and nobody has cancelled: 0 or 1, or -errno with `error`.
 */
int target_look(struct target *target, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error);
/* Waits for the next message until the deadline. 1, or -errno with `error`: too late, link down,
 * cancelled here, a page channel lost. */
int target_next(struct target *target, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error);
/* When a peer that should answer now counts as silent. */
uint64_t target_deadline(const struct target *target);
/* What to say of a message that has no place here; also of ABORT. */
int target_unexpected(const Jaunt__Control *message, struct jaunt_error *error);
/* Sends REFUSED, FAILED (with reason and text), ATTACHED or CANCEL REQUEST (without). */
void target_say(struct target *target, Jaunt__Control__MessageCase what, const char *reason,
		const char *text);
void target_drop_link(struct target *target);
/* Makes the channel (taken over) the link. 0 or -errno. */
int target_open_link(struct target *target, struct channel *channel);

/* --- rejoin.c: the source comes back after the link was lost
 * ------------------------------------------------------------------------------------------ */

/* Why the link is lost, or a page channel is: into `lost`. */
void target_note_loss(struct target *target);
/* The link is down, or of no use any more: forgets it, and says why in `lost`. */
void target_lose_link(struct target *target);
/* A visitor names a session that goes on (owned from here on). */
void target_rejoin_knock(struct target *target, struct channel *channel,
			 const struct attach *attach);
/* The link is there, and is heard to go on with what was agreed. */
bool target_in_touch(const struct target *target);
/* Takes what is said on a link until it is agreed that it goes on; false: it is for others. */
bool target_rejoin_take(struct target *target, const Jaunt__Control *message);
/* COMMIT was heard on a link that came back: says what the source may have missed, and wants all
 * channels anew if pages are missing. */
void target_rejoin_agree(struct target *target);
/* COMMIT was heard on a link that came back, and the VM is yet to run: wants all channels, and
 * waits for them, since running it may take pages. At most the peer timeout: it runs in any case.
 */
void target_rejoin_attach(struct target *target);
/* The source's HELLO is answered and believed; -errno: there is no going on with it. */
int target_take_hello(struct target *target, const Jaunt__Hello *hello, struct jaunt_error *error);
/* RESUMED, with what was noted at the first entry. */
void target_say_resumed(struct target *target);

/* --- agree.c, switchover.c, postcopy.c: the phases, in order
 * ------------------------------------------ */

/* 1: a VM is prepared and the source knows. -errno: cancelled here. */
int target_await_source(struct target *target, struct jaunt_error *error);
/* Everything up to a loaded VM, and LOADED sent. */
int target_receive_state(struct target *target, struct jaunt_error *error);
enum target_verdict {
	TARGET_COMMIT,    /* heard */
	TARGET_ABORT,     /* heard: the VM is the source's */
	TARGET_ABANDONED, /* an operator gives this copy up; whose the VM is, is not known */
	TARGET_FENCED,    /* an operator warrants that the source does not run it */
};
/* In doubt, until one of these. */
enum target_verdict target_await_commit(struct target *target, struct jaunt_error *error);
/* The first entry. */
int target_resume(struct target *target, uint64_t commit_ns, struct jaunt_error *error);
/* Before LOADED: until every page is present. 0, or -errno with `error`. */
int target_await_remainder(struct target *target, struct jaunt_error *error);
/* Until every page is present; the outcome. */
int target_serve_postcopy(struct target *target, struct jaunt_error *error);

/* --- exposed.c: memory of the source that may be READ
 * ------------------------------------------------- */

/* Makes room to note it, if the link's transport can READ. -ENOMEM. */
int target_open_reads(struct target *target);
/* Whether the message told of such memory; then it was taken. */
bool target_take_exposed(struct target *target, const Jaunt__Control *message);
/* What FREEZE takes back; before the epoch begins. */
int target_forget_exposed(struct target *target, const Jaunt__Freeze *freeze,
			  struct jaunt_error *error);

/* --- report.c: figures
 * ------------------------------------------------------------------------------- */

void target_status(struct jaunt_migration *migration, struct jaunt_status *status);
int target_send_progress(struct target *target, bool complete, const char *blocked);

#endif
