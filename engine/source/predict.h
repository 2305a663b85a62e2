/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each way to go on would cost: the arithmetic of the policy. Pure, like it. Bytes and
 * nanoseconds are doubles here: they are estimates.
 */
#ifndef ENGINE_SOURCE_PREDICT_H
#define ENGINE_SOURCE_PREDICT_H

#include "engine/source/policy.h"

/* Where a migration stands, or would stand after some more rounds. */
struct predict {
	const struct policy_input *input;
	double left;     /* bytes of the running round that are not sent */
	double dirty;    /* bytes that are the next round's */
	double total_ns; /* since the command */
	double stall_ns; /* from now on */
	unsigned rounds; /* ended since now */
	unsigned throttle;
};

void predict_init(struct predict *at, const struct policy_input *input);
/* Lets the running round end; at its end, lets the next one run and end. */
void predict_round(struct predict *at);
/* The guest stops, what is left is sent, and it runs there. */
void predict_finish(const struct predict *at, struct policy_prediction *out);
/* The guest stops and runs there with what is left outstanding. */
void predict_switch(const struct predict *at, struct policy_prediction *out);

/* Bytes a second while the guest runs, and while it stands still; never 0. */
double predict_bandwidth(const struct policy_input *input);
double predict_paused_bandwidth(const struct policy_input *input);
/* The pause without what is copied in it: that of a switch, and that of a finish. */
double predict_fixed_ns(const struct policy_input *input);
double predict_finish_fixed_ns(const struct policy_input *input);
/* Bytes that can still be outstanding when the guest stops, for a downtime of limit_ns. */
double predict_affordable(const struct policy_input *input, double limit_ns);
/* Distinct bytes that are dirty after `ns`, when `dirty` are already: they saturate at the working
 * set W,  W - (W - dirty) exp(-rate t / W). */
double predict_dirtied(const struct policy_input *input, unsigned throttle, double dirty,
		       double ns);

#endif
