/* SPDX-License-Identifier: Apache-2.0 */
/*
 * New channels for a running thread, when the session has been attached again: one thread gives
 * them, the other takes them where it can let go of its old ones. The thread, and all that it knows
 * but the channels, stays.
 */
#ifndef ENGINE_TARGET_HANDOVER_H
#define ENGINE_TARGET_HANDOVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct channel;

struct handover {
	pthread_mutex_t mutex; /* guards what follows */
	struct channel *channel, *check_channel;
	uint32_t attachment;
	_Atomic bool pending; /* also read without: a hint to look */
};

void handover_init(struct handover *handover);
/* Frees what nobody took, when the other thread has ended. */
void handover_forget(struct handover *handover);

/* Unbound channels of that attachment, owned from here on; `check_channel` may be NULL. Those of an
 * earlier one that nobody took are freed. */
void handover_give(struct handover *handover, struct channel *channel,
		   struct channel *check_channel, uint32_t attachment);
/* false: there is nothing. */
bool handover_take(struct handover *handover, struct channel **channel,
		   struct channel **check_channel, uint32_t *attachment);

#endif
