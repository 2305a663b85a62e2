/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/handover.h"

#include "transport/transport.h"

void handover_init(struct handover *handover)
{
	*handover = (struct handover){.mutex = PTHREAD_MUTEX_INITIALIZER};
}

static void forget(struct handover *handover)
{
	channel_drop(handover->channel);
	channel_drop(handover->check_channel);
	handover->channel = handover->check_channel = NULL;
}

void handover_forget(struct handover *handover)
{
	pthread_mutex_lock(&handover->mutex);
	forget(handover);
	atomic_store(&handover->pending, false);
	pthread_mutex_unlock(&handover->mutex);
}

void handover_give(struct handover *handover, struct channel *channel,
		   struct channel *check_channel, uint32_t attachment)
{
	pthread_mutex_lock(&handover->mutex);
	forget(handover);
	handover->channel = channel;
	handover->check_channel = check_channel;
	handover->attachment = attachment;
	atomic_store(&handover->pending, true);
	pthread_mutex_unlock(&handover->mutex);
}

bool handover_take(struct handover *handover, struct channel **channel,
		   struct channel **check_channel, uint32_t *attachment)
{
	if (!atomic_load(&handover->pending))
		return false;
	pthread_mutex_lock(&handover->mutex);
	*channel = handover->channel;
	*check_channel = handover->check_channel;
	*attachment = handover->attachment;
	handover->channel = handover->check_channel = NULL;
	atomic_store(&handover->pending, false);
	pthread_mutex_unlock(&handover->mutex);
	return *channel != NULL;
}
