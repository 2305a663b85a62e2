/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to end a round, when to switch, and how: a pure function of what is known of the guest, the
 * link and the limits. No clock, no I/O, no state: the same input gives the same decision, so a
 * trace of inputs can be replayed, and a simulated guest decided about like a real one.
 *
 * Every way to go on is predicted: how long the guest will stand still (downtime), how long it will
 * stand or wait in all (stall), and when all will be over (total). Among the ways that the mode
 * allows and that keep the limits, the one with the least cost is taken,
 *
 *	cost = stall + total_weight * total
 *
 * A fixed mode is the same choice among fewer ways. Where no way keeps the limits, the reason says
 * which limit stands in the way and what would be needed. The formulas: docs/policy.md.
 */
#ifndef ENGINE_SOURCE_POLICY_H
#define ENGINE_SOURCE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POLICY_REASON_BYTES 240u
#define POLICY_ROUNDS_KEPT  8u

/* What a mode allows: */
enum policy_mode {
	POLICY_AUTO,          /* everything */
	POLICY_HYBRID,        /* rounds, then a switch with the rest outstanding */
	POLICY_POSTCOPY,      /* the switch, at once */
	POLICY_PRECOPY,       /* rounds, then a finish */
	POLICY_STOP_AND_COPY, /* a finish, at once */
	POLICY_MODES,
};

enum policy_action {
	POLICY_CONTINUE, /* go on with this round, or, at its end, begin the next one */
	POLICY_SWITCH,   /* pause, and run there with the rest outstanding */
	POLICY_FINISH,   /* pause, send the rest, then run there */
	POLICY_ABORT,    /* the guest stays here */
	POLICY_ACTIONS,
};

/* What an operator asked for. */
struct policy_limits {
	uint64_t downtime_ns; /* 0: none */
	uint64_t total_ns;    /* from the command to the end, 0: none */
	uint64_t timeout_ns;  /* of the rounds, 0: none */
	bool timeout_aborts;  /* else, or where post-copy is forbidden: see docs/policy.md */
	unsigned max_rounds;  /* 0: none; the first counts */
	bool no_postcopy;     /* never run there with pages outstanding */
	bool throttle;        /* the guest may be slowed down, in pre-copy only */
	double bandwidth;     /* of the streams, bytes a second, 0: none */
	double total_weight;  /* what a second of total is worth, in seconds of stall */
};

/* What a thing costs on these hosts. policy_costs_init() gives what was measured on the development
 * machine; what is known better of a migration replaces it. */
struct policy_costs {
	double fault_ns;    /* a demand fault beside the push, as the guest feels it, without the
			     * round trip */
	double tracking_ns; /* the first write to a page after it was collected */
	double round_ns;    /* collecting and the barrier, for each round, without the round trip */
	double run_ns;      /* telling the target of a page that it is stale */
	double touches;     /* pages that a guest touches for each that it writes */
	double paused_speedup; /* bandwidth while the guest stands still, over bandwidth in rounds
				*/
};

/* A round that is over. */
struct policy_round {
	uint64_t duration_ns;
	uint64_t sent_bytes;    /* of pages */
	uint64_t dirtied_bytes; /* distinct pages written during it */
};

struct policy_input {
	enum policy_mode mode;
	struct policy_limits limits;
	struct policy_costs costs;

	/* Where the migration stands. */
	uint64_t elapsed_ns;   /* since the command was accepted */
	unsigned round;        /* the one that runs, or that has just ended; the first is 0 */
	bool round_ended;      /* all of it is acknowledged; false in the first call of all */
	bool switch_requested; /* an operator wants post-copy now */
	bool can_track;        /* dirty pages can be tracked; else there are no rounds */
	bool can_throttle;
	unsigned throttle; /* percent of the time that vCPUs are held now */

	/* What there is to move. */
	uint64_t ram_bytes;
	uint64_t data_bytes;  /* of it, what is no hole; 0: not known */
	uint64_t page_bytes;  /* 0: 4096 */
	unsigned vcpus;       /* 0: one */
	uint64_t left_bytes;  /* of this round, not sent yet; at its end 0 */
	uint64_t dirty_bytes; /* known to be dirty and not in left_bytes: the next round's */

	/* What is estimated (estimate.h). Rates are in bytes a second. */
	double bandwidth;            /* payload on all streams; 0: nothing known */
	double bandwidth_confidence; /* 0 to 1 */
	double dirty_rate;           /* of writes to pages, repeated ones included */
	double dirty_confidence;     /* 0: nothing known */
	double working_set;          /* bytes that are written again and again; 0: not known */
	double horizon_ns;           /* the longest time whose writes were seen */
	bool watched;                /* until it was clear what it writes, or as long as allowed */
	uint64_t since_collect_ns;   /* what was written in that time is not in dirty_bytes yet */
	double round_trip_ns;
	double device_ns; /* pause, save, load and resume, without round trips */

	/* The last rounds that ended, the newest last. */
	unsigned round_count;
	struct policy_round rounds[POLICY_ROUNDS_KEPT];
};

/* The ways to go on. */
enum policy_way {
	POLICY_WAY_FINISH,        /* stop and copy what is left, now */
	POLICY_WAY_ROUNDS_FINISH, /* some more rounds (this one's end is one), then finish */
	POLICY_WAY_SWITCH,        /* switch now; post-copy from the start if nothing was sent yet */
	POLICY_WAY_ROUNDS_SWITCH, /* some more rounds, then switch */
	POLICY_WAYS,
};

/* How a look at the guest's writes goes on. */
enum policy_watch {
	POLICY_WATCH_ON,
	POLICY_WATCH_CLEAR, /* the decision is the same whatever they may still turn out to be */
	POLICY_WATCH_DEAR,  /* more would cost too much of what is decided about */
};

struct policy_prediction {
	bool allowed;    /* by the mode and by what the hosts can do */
	bool in_limits;  /* and it keeps the limits */
	unsigned rounds; /* how many more */
	double downtime_ns;
	double stall_ns; /* downtime, waits for pages, tracking; for the mean vCPU; from now on */
	double total_ns; /* since the command */
	double cost_ns;
};

struct policy_decision {
	enum policy_action action;
	unsigned throttle;   /* percent of the time to hold the vCPUs from now on; 0: not at all */
	enum policy_way way; /* the way that the action is the first step of */
	struct policy_prediction ways[POLICY_WAYS];
	char reason[POLICY_REASON_BYTES]; /* a sentence for a person */
	char code[24];                    /* a stable word for programs, e.g. "converges" */
};

void policy_limits_init(struct policy_limits *limits); /* 300 ms, weight 0.01, nothing else */
void policy_costs_init(struct policy_costs *costs);
void policy_decide(const struct policy_input *input, struct policy_decision *decision);
/* Before the first decision: whether a longer look at the guest's writes would pay. `noted`:
 * written pages that it has seen, each at the price of a tracking fault. */
enum policy_watch policy_watch(const struct policy_input *input, double noted);

/* Names as they stand in options, traces and reports. */
const char *policy_mode_name(enum policy_mode mode);
const char *policy_action_name(enum policy_action action);
const char *policy_way_name(enum policy_way way);
/* False: no mode has that name. */
bool policy_mode_parse(const char *name, enum policy_mode *mode);

#endif
