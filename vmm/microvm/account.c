/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * About once a millisecond of its TSC each guest polls, and hands over what it counted since. Slow
 * touches lie in its block; they are fetched then, so that the guest starts over at the same few
 * pages and the ring never fills. They are read from the file, never through the view: a page that
 * is missing reads as zeros there, and nobody waits for it. Pages that the guest has just written
 * are present; records from before the switchover, which may be missing, are told by their time and
 * left out.
 *
 * The guest's TSC is related to the monotonic clock by the polls: the call takes time, never
 * negative, so the earliest seen within a second or so is the best.
 */
#include "vmm/microvm/account.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"

#define ANCHOR_LIFE_NS UINT64_C(1000000000)
/* A restored TSC that is off by less may have been, by a thread that was not scheduled meanwhile.
 */
#define TSC_TOLERANCE_US 10000.0
#define TSC_POLLS        100
#define SAMPLE_NS        UINT64_C(1000000)
#define RECOVERY_SAMPLES 20
#define RECOVERY_SHARE   0.9
#define BEFORE_NS        UINT64_C(60000000000) /* rounds of pre-copy come before arrival */

void account_init(struct account *account, uint64_t tsc_khz)
{
	memset(account, 0, sizeof *account);
	pthread_mutex_init(&account->lock, NULL);
	account->tsc_khz = (double)tsc_khz;
}

void account_destroy(struct account *account)
{
	pthread_mutex_destroy(&account->lock);
	free(account->touches);
}

static double us_of(const struct account *account, uint64_t cycles)
{
	return (double)cycles * 1e3 / account->tsc_khz;
}

static uint64_t time_of(const struct account *account, uint64_t tsc)
{
	double ns = (double)(int64_t)(tsc - account->anchor_tsc) * 1e6 / account->tsc_khz;
	return account->anchor_ns + (uint64_t)(int64_t)ns;
}

static uint64_t tsc_of(const struct account *account, uint64_t ns)
{
	double cycles = (double)(int64_t)(ns - account->anchor_ns) * account->tsc_khz / 1e6;
	return account->anchor_tsc + (uint64_t)(int64_t)cycles;
}

static void set_anchor(struct account *account, uint64_t tsc, uint64_t now)
{
	if (account->anchor_set_ns && now - account->anchor_set_ns < ANCHOR_LIFE_NS &&
	    now >= time_of(account, tsc))
		return;
	account->anchor_tsc = tsc;
	account->anchor_ns = account->anchor_set_ns = now;
}

/* From when on things count; UINT64_MAX: not yet. */
static uint64_t since(const struct vcpu *vcpu)
{
	if (vcpu->vm->loaded) {
		uint64_t arrived = atomic_load(&vcpu->vm->arrived_ns);
		return arrived ? arrived : UINT64_MAX;
	}
	return vcpu->account.ready_ns ? vcpu->account.ready_ns : UINT64_MAX;
}

static void add_touch(struct account *account, const struct microvm *vm,
		      const struct guest_touch *touch)
{
	if (account->touch_count == account->touch_room) {
		size_t room = account->touch_room ? account->touch_room * 2 : 1024;
		struct microvm_touch *grown = NULL;
		if (room <= ACCOUNT_TOUCHES)
			grown = realloc(account->touches, room * sizeof *grown);
		if (!grown) {
			account->touches_dropped++;
			return;
		}
		account->touches = grown;
		account->touch_room = room;
	}
	account->touches[account->touch_count++] = (struct microvm_touch){
		.region_page = touch->page * GUEST_PAGE_BYTES / vm->page_bytes,
		.time_ns = time_of(account, touch->tsc),
		.latency_us = us_of(account, touch->cycles)};
}

static void fetch_touches(struct vcpu *vcpu, uint64_t count, uint64_t since_ns)
{
	struct guest_touch records[128];
	uint64_t start = memory_block(vcpu) + GUEST_BLOCK_TOUCHES;
	if (count > GUEST_TOUCHES)
		count = GUEST_TOUCHES;
	for (uint64_t done = 0; done < count;) {
		uint64_t now = count - done < 128 ? count - done : 128;
		ssize_t got = pread(vcpu->vm->memory_fd, records, now * sizeof records[0],
				    (off_t)(start + done * sizeof records[0]));
		if (got != (ssize_t)(now * sizeof records[0])) {
			vcpu->account.touches_dropped += count - done;
			return;
		}
		for (uint64_t i = 0; i < now; i++)
			if (records[i].tsc && time_of(&vcpu->account, records[i].tsc) >= since_ns)
				add_touch(&vcpu->account, vcpu->vm, &records[i]);
		done += now;
	}
}

/* Did the TSC go on from where it was? The call takes time, never negative, so the poll that finds
 * it furthest on is the best. */
static void compare_tsc(struct vcpu *vcpu, uint64_t tsc, uint64_t now)
{
	struct account *account = &vcpu->account;
	double expected = (double)(now - vcpu->restored_ns) * account->tsc_khz / 1e6;
	double found = (double)(int64_t)(tsc - vcpu->restored_tsc);
	double off_us = (found - expected) * 1e3 / account->tsc_khz;
	if (!account->tsc_polls || off_us > account->tsc_off_us)
		account->tsc_off_us = off_us;
	account->tsc_polls++;
}

static void add_stall(struct vcpu *vcpu, uint64_t cycles, uint64_t end_tsc, uint64_t since_ns)
{
	struct account *account = &vcpu->account;
	uint64_t end = time_of(account, end_tsc);
	uint64_t begin = end - (uint64_t)(us_of(account, cycles) * 1e3);
	if (end < since_ns)
		return;
	if (cycles > account->stall)
		account->stall = cycles;
	if (vcpu->vm->loaded && begin < since_ns && cycles > account->arrival_gap)
		account->arrival_gap = cycles;
}

static void add_point(struct account *account, uint64_t tsc, uint64_t operations)
{
	struct account_point point = {tsc, operations}, *points = account->points;
	uint64_t half_second = (uint64_t)(account->tsc_khz * 500);
	if (!points[1].tsc || tsc < points[1].tsc)
		points[1] = points[2] = point;
	if (tsc - points[1].tsc > half_second) {
		points[2] = points[1];
		points[1] = point;
	}
	points[0] = point;
}

void account_poll(struct vcpu *vcpu, const uint64_t arguments[6])
{
	struct account *account = &vcpu->account;
	uint64_t now = clock_ns(), since_ns = since(vcpu);
	if (atomic_load(&vcpu->vm->released))
		return;
	pthread_mutex_lock(&account->lock);
	account->operations = arguments[0];
	account->errors = arguments[1];
	set_anchor(account, arguments[2], now);
	if (since_ns != UINT64_MAX) {
		if (vcpu->vm->loaded && account->tsc_polls < TSC_POLLS)
			compare_tsc(vcpu, arguments[2], now);
		add_stall(vcpu, arguments[3], arguments[4], since_ns);
		uint32_t touches = (uint32_t)arguments[5];
		account->touches_dropped += arguments[5] >> 32;
		if (touches)
			fetch_touches(vcpu, touches, since_ns);
		add_point(account, arguments[2], arguments[0]);
	}
	pthread_mutex_unlock(&account->lock);
}

static const char *fault_text(uint64_t fault)
{
	static const char *const texts[GUEST_FAULTS] = {
		[GUEST_FAULT_ZERO] = "reads as zeros",
		[GUEST_FAULT_INDEX] = "holds another page, or none of the guest's",
		[GUEST_FAULT_OWNER] = "holds a page of another vCPU or run",
		[GUEST_FAULT_VERSION] = "is valid, but of another version",
		[GUEST_FAULT_CONTENTS] = "has contents that do not fit its header: torn or damaged",
		[GUEST_FAULT_SUM] = "is stale or lost: the sum over all pages and versions differs",
	};
	return fault && fault < GUEST_FAULTS ? texts[fault] : "is damaged";
}

void account_error(struct vcpu *vcpu, const uint64_t arguments[6])
{
	struct account *account = &vcpu->account;
	if (atomic_load(&vcpu->vm->released))
		return;
	pthread_mutex_lock(&account->lock);
	account->errors = arguments[4];
	if (!account->first_error[0] && arguments[1] == GUEST_FAULT_SUM)
		snprintf(account->first_error, sizeof account->first_error,
			 "vCPU %u: some page of its working set %s", vcpu->index,
			 fault_text(arguments[1]));
	else if (!account->first_error[0])
		snprintf(account->first_error, sizeof account->first_error,
			 "vCPU %u: page at guest address 0x%" PRIx64
			 " %s (version expected: %" PRIu64 ", found: %" PRIu64 ")",
			 vcpu->index, arguments[0] * GUEST_PAGE_BYTES, fault_text(arguments[1]),
			 arguments[2], arguments[3]);
	pthread_mutex_unlock(&account->lock);
}

void account_ready(struct vcpu *vcpu, const uint64_t arguments[6])
{
	struct account *account = &vcpu->account;
	uint64_t now = clock_ns();
	pthread_mutex_lock(&account->lock);
	set_anchor(account, arguments[3], now);
	account->ready_ns = now;
	account->operations_at_arrival = arguments[1];
	pthread_mutex_unlock(&account->lock);
}

void account_swept(struct vcpu *vcpu, const uint64_t arguments[6])
{
	struct account *account = &vcpu->account;
	if (atomic_load(&vcpu->vm->released))
		return;
	pthread_mutex_lock(&account->lock);
	account->operations = arguments[1];
	account->errors = arguments[2];
	account->sweeps++;
	pthread_mutex_unlock(&account->lock);
}

double account_rate(struct vcpu *vcpu)
{
	struct account *account = &vcpu->account;
	pthread_mutex_lock(&account->lock);
	const struct account_point *now = &account->points[0], *then = &account->points[2];
	double rate = now->tsc > then->tsc
			      ? (double)(now->operations - then->operations) /
					((double)(now->tsc - then->tsc) * 1e-3 / account->tsc_khz)
			      : 0;
	pthread_mutex_unlock(&account->lock);
	return rate;
}

/* --- The whole VM's
 * ------------------------------------------------------------------------------- */

/* Adds a vCPU's buckets to the samples that begin at `start`. */
static void add_samples(struct vcpu *vcpu, struct microvm_account *out, uint64_t start,
			uint64_t *buckets)
{
	struct account *account = &vcpu->account;
	uint64_t bytes = GUEST_BUCKETS * sizeof *buckets;
	pthread_mutex_lock(&account->lock);
	uint64_t tsc = account->anchor_set_ns ? tsc_of(account, start) : 0;
	pthread_mutex_unlock(&account->lock);
	if (!tsc || pread(vcpu->vm->memory_fd, buckets, bytes,
			  (off_t)(memory_block(vcpu) + GUEST_BLOCK_BUCKETS)) != (ssize_t)bytes)
		return;
	uint32_t first = (uint32_t)(tsc / vcpu->vm->tsc_khz);
	for (unsigned i = 0; i < GUEST_BUCKETS; i++) {
		uint32_t at = GUEST_BUCKET_TICK(buckets[i]) - first;
		if (at < out->sample_count)
			out->samples[at].operations += GUEST_BUCKET_COUNT(buckets[i]);
	}
}

static int take_samples(struct microvm *vm, struct microvm_account *out, uint64_t since_ns)
{
	uint64_t now = clock_ns(), most = GUEST_BUCKETS * SAMPLE_NS;
	uint64_t start = since_ns - BEFORE_NS;
	if (now - start > most)
		start = now - most;
	out->sample_count = (now - start) / SAMPLE_NS;
	out->samples = calloc(out->sample_count + 1, sizeof *out->samples);
	uint64_t *buckets = malloc(GUEST_BUCKETS * sizeof *buckets);
	if (!out->samples || !buckets) {
		free(buckets);
		return -ENOMEM;
	}
	for (size_t i = 0; i < out->sample_count; i++)
		out->samples[i].time_ns = start + i * SAMPLE_NS;
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		add_samples(&vm->vcpus[i], out, start, buckets);
	free(buckets);
	return 0;
}

static double recovery_ms(const struct microvm_account *account, uint64_t arrived_ns)
{
	double wanted = account->operations_per_s_before * RECOVERY_SHARE * RECOVERY_SAMPLES *
			(double)SAMPLE_NS * 1e-9;
	double sum = 0;
	size_t from = 0;
	while (from < account->sample_count && account->samples[from].time_ns < arrived_ns)
		from++;
	for (size_t i = from; wanted > 0 && i < account->sample_count; i++) {
		sum += account->samples[i].operations;
		if (i < from + RECOVERY_SAMPLES - 1)
			continue;
		if (sum >= wanted)
			return (double)(i - (from + RECOVERY_SAMPLES - 1)) * (double)SAMPLE_NS *
			       1e-6;
		sum -= account->samples[i - (RECOVERY_SAMPLES - 1)].operations;
	}
	return -1;
}

static void add_vcpu(struct vcpu *vcpu, struct microvm_account *out)
{
	struct account *account = &vcpu->account;
	pthread_mutex_lock(&account->lock);
	out->operations += account->operations;
	out->operations_since_arrival += account->operations - account->operations_at_arrival;
	out->memory_errors += account->errors;
	out->sweeps += account->sweeps;
	out->longest_stall_us = fmax(out->longest_stall_us, us_of(account, account->stall));
	out->arrival_gap_us = fmax(out->arrival_gap_us, us_of(account, account->arrival_gap));
	out->touches_dropped += account->touches_dropped;
	if (!out->first_error[0])
		memcpy(out->first_error, account->first_error, sizeof out->first_error);
	if (account->tsc_polls && fabs(account->tsc_off_us) > TSC_TOLERANCE_US)
		snprintf(out->tsc_note, sizeof out->tsc_note,
			 "the restored TSC did not take effect: vCPU %u is %+.0f us off; this "
			 "host's "
			 "KVM ignores the setting",
			 vcpu->index, account->tsc_off_us);
	if (account->touch_count) {
		memcpy(out->touches + out->touch_count, account->touches,
		       account->touch_count * sizeof *account->touches);
		out->touch_count += account->touch_count;
	}
	pthread_mutex_unlock(&account->lock);
}

int microvm_account(struct microvm *vm, struct microvm_account *out, struct jaunt_error *error)
{
	memset(out, 0, sizeof *out);
	out->ms_to_90_percent_throughput = -1;
	out->ready = true;
	uint64_t since_ns = UINT64_MAX;
	out->touches = malloc(sizeof *out->touches * (size_t)vm->vcpu_count * ACCOUNT_TOUCHES);
	if (!out->touches)
		return error_set(error, ENOMEM, "no-memory", "guest's account: out of memory");
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];
		add_vcpu(vcpu, out);
		uint64_t from = since(vcpu);
		since_ns = from < since_ns ? from : since_ns;
		pthread_mutex_lock(&vm->lock);
		out->ready &= vcpu->ready;
		if (vcpu->crashed) {
			out->memory_errors++;
			if (!out->first_error[0])
				snprintf(out->first_error, sizeof out->first_error, "vCPU %u %s", i,
					 vcpu->crash);
		}
		pthread_mutex_unlock(&vm->lock);
	}
	out->arrived = vm->loaded && since_ns != UINT64_MAX;
	out->operations_per_s_before = out->arrived ? vm->operations_per_s_before : 0;
	if (since_ns == UINT64_MAX)
		return 0;
	if (take_samples(vm, out, since_ns)) {
		microvm_account_free(out);
		return error_set(error, ENOMEM, "no-memory", "guest's account: out of memory");
	}
	if (out->arrived)
		out->ms_to_90_percent_throughput = recovery_ms(out, since_ns);
	return 0;
}

void microvm_account_free(struct microvm_account *account)
{
	free(account->touches);
	free(account->samples);
	account->touches = NULL;
	account->samples = NULL;
	account->touch_count = account->sample_count = 0;
}
