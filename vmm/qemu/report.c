/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/report.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"

/* A record that nobody wrote to costs a few hundred nanoseconds to look at. */
#define LOOK_NS 20000000u

static uint64_t bits_of(const struct regions_one *one)
{
	return agent_pages(one->bytes);
}

/* A run of the record, as one or more of the engine's: in pages of the region's own size. */
static void tell(void *context, uint64_t first, uint64_t count)
{
	struct report *report = context;
	const struct regions *regions = report->regions;
	uint64_t start = 0;

	for (size_t i = 0; i < regions->count; i++) {
		uint64_t end = start + bits_of(&regions->all[i]);
		uint64_t from = first > start ? first : start;
		uint64_t to = first + count < end ? first + count : end;
		uint64_t unit = regions->all[i].page_bytes / AGENT_PAGE;
		if (from < to) {
			uint64_t page = (from - start) / unit;
			jaunt_migration_discarded(report->migration, i, page,
						  (to - start + unit - 1) / unit - page);
		}
		start = end;
	}
}

static void *look(void *argument)
{
	struct report *report = argument;

	pthread_setname_np(pthread_self(), "jaunt-discards");
	pthread_mutex_lock(&report->mutex);
	while (!report->stop) {
		record_collect(&report->record, tell, report);
		uint64_t until = clock_ns() + LOOK_NS;
		struct timespec when = {.tv_sec = (time_t)(until / 1000000000),
					.tv_nsec = (long)(until % 1000000000)};
		pthread_cond_timedwait(&report->changed, &report->mutex, &when);
	}
	pthread_mutex_unlock(&report->mutex);
	return NULL;
}

static int start_thread(struct report *report)
{
	pthread_condattr_t monotonic;
	sigset_t all, before;

	pthread_mutex_init(&report->mutex, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&report->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int result = -pthread_create(&report->thread, NULL, look, report);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (result) {
		pthread_mutex_destroy(&report->mutex);
		pthread_cond_destroy(&report->changed);
	}
	return result;
}

/* A region of the record begins behind those before it. */
static int watch(struct report *report, struct jaunt_error *error)
{
	struct agent_region watched[REGIONS_MAX];
	uint64_t bit = 0;

	memset(watched, 0, sizeof(watched));
	for (size_t i = 0; i < report->regions->count; i++) {
		const struct regions_one *one = &report->regions->all[i];
		watched[i] = (struct agent_region){.address = one->address,
						   .bytes = one->bytes,
						   .device = one->device,
						   .inode = one->inode,
						   .first_bit = bit};
		bit += bits_of(one);
	}
	return attach_watch(report->attach, watched, report->regions->count, report->record.fd,
			    error);
}

int report_start(struct report *report, struct attach *attach, const struct regions *regions,
		 struct jaunt_migration *migration, struct jaunt_error *error)
{
	uint64_t bits = 0;

	*report = (struct report){.attach = attach, .regions = regions, .migration = migration};
	for (size_t i = 0; i < regions->count; i++)
		bits += bits_of(&regions->all[i]);
	int result = record_open(&report->record, bits);
	if (result)
		return error_set(error, -result, "no-memory", "room for the record of discards: %s",
				 strerror(-result));
	result = watch(report, error);
	if (result == 0 && (result = start_thread(report))) {
		attach_unwatch(attach, NULL);
		error_set(error, -result, "no-threads", "start a thread: %s", strerror(-result));
	}
	if (result)
		record_close(&report->record);
	report->on = result == 0;
	return result;
}

void report_now(struct report *report)
{
	if (!report->on)
		return;
	pthread_mutex_lock(&report->mutex);
	record_collect(&report->record, tell, report);
	pthread_mutex_unlock(&report->mutex);
}

void report_stop(struct report *report)
{
	if (!report->on)
		return;
	report->on = false;
	pthread_mutex_lock(&report->mutex);
	report->stop = true;
	pthread_cond_signal(&report->changed);
	pthread_mutex_unlock(&report->mutex);
	pthread_join(report->thread, NULL);
	/* QEMU may be gone, or hang. */
	attach_unwatch(report->attach, NULL);
	record_close(&report->record);
	pthread_mutex_destroy(&report->mutex);
	pthread_cond_destroy(&report->changed);
}
