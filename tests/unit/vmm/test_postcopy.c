/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vCPUs whose memory is missing: served page by page from a paused source, as an engine would, or
 * left waiting.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bits.h"
#include "fault/events.h"
#include "fault/uffd.h"
#include "harness.h"

#define PAGE GUEST_PAGE_BYTES

struct postcopy {
	struct microvm *source, *target;
	uint8_t *from, *to;
	uint8_t *served; /* a byte a page: a second fault on it is a discard of the guest's */
	struct uffd uffd;
	int stop;
	pthread_t server;
	unsigned failures;
};

static struct postcopy *prepare(enum harness_backing backing, const char *workload)
{
	harness_require(backing);
	struct jaunt_error error = {0};
	struct postcopy *p = calloc(1, sizeof *p);
	if (uffd_open(&p->uffd, &error))
		cr_skip("%s", error.text);
	p->source = harness_start(backing, workload);
	p->target = harness_target(p->source);
	p->from = harness_memory(p->source);
	p->to = harness_memory(p->target);
	p->served = calloc(1, harness_memory_bytes(p->source) / PAGE);
	p->stop = eventfd(0, EFD_CLOEXEC);
	cr_assert(
		!uffd_register(&p->uffd, (uintptr_t)p->to, harness_memory_bytes(p->target), &error),
		"%s", error.text);
	harness_pause(p->source);
	harness_move_state(p->source, p->target);
	return p;
}

static void finish(struct postcopy *p)
{
	microvm_destroy(p->target);
	uffd_close(&p->uffd);
	microvm_destroy(p->source);
	close(p->stop);
	free(p->served);
	free(p);
}

static void serve(struct postcopy *p, uint64_t address)
{
	uint64_t page = (address - (uintptr_t)p->to) / PAGE, at = address / PAGE * PAGE;
	int64_t done;
	do
		done = p->served[page]
			       ? uffd_zeropage(&p->uffd, at, PAGE, UFFD_WAKE)
			       : uffd_copy(&p->uffd, at, p->from + page * PAGE, PAGE, UFFD_WAKE);
	while (done == -EAGAIN);
	/* Two vCPUs may have faulted on it. */
	if (done == -EEXIST)
		done = uffd_wake(&p->uffd, at, PAGE);
	p->served[page] = 1;
	p->failures += done < 0;
}

/* All but the pages that the workload works on: what vCPUs then wait for is a page of data. */
static void serve_monitor_pages(struct postcopy *p)
{
	uint64_t end = round_up(GUEST_BLOCKS + 2 * GUEST_BLOCK_BYTES, MIB(2));
	for (uint64_t at = 0; at < end; at += PAGE)
		serve(p, (uintptr_t)p->to + at);
	cr_assert_eq(p->failures, 0);
}

static void *server_main(void *argument)
{
	struct postcopy *p = argument;
	struct pollfd polls[2] = {{.fd = p->uffd.fd, .events = POLLIN},
				  {.fd = p->stop, .events = POLLIN}};
	while (poll(polls, 2, -1) >= 0 && !polls[1].revents) {
		struct fault_event events[EVENTS_BATCH];
		unsigned other = 0;
		int count = events_read(&p->uffd, events, EVENTS_BATCH, &other);
		for (int i = 0; i < count; i++)
			serve(p, events[i].address);
	}
	return NULL;
}

static void start_server(struct postcopy *p)
{
	cr_assert(!pthread_create(&p->server, NULL, server_main, p));
}

static void stop_server(struct postcopy *p)
{
	eventfd_write(p->stop, 1);
	pthread_join(p->server, NULL);
	cr_expect_eq(p->failures, 0);
}

static void wait_for_fault(struct postcopy *p)
{
	struct pollfd faulted = {.fd = p->uffd.fd, .events = POLLIN};
	cr_assert_eq(poll(&faulted, 1, HARNESS_PATIENCE_MS), 1);
}

static void expect_intact(enum harness_backing backing)
{
	static const char *const workloads[] = {"sweep:ws=2m", "random:ws=2m", "kv:ws=2m",
						"discard:ws=2m", "idle:ws=2m"};
	for (unsigned i = 0; i < sizeof workloads / sizeof workloads[0]; i++) {
		struct postcopy *p = prepare(backing, workloads[i]);
		start_server(p);
		harness_resume(p->target);
		harness_check(p->target);
		struct microvm_account account = harness_account(p->target);
		cr_expect(account.arrived);
		cr_expect_eq(account.memory_errors, 0, "%s: %s", workloads[i], account.first_error);
		/* The check alone went through every page, and each took a trip to the server. */
		unsigned told = 0;
		for (size_t j = 0; j < account.touch_count; j++)
			told += p->served[account.touches[j].region_page];
		cr_expect_gt(told, 0, "%s recorded no touch of a page that was served",
			     workloads[i]);
		microvm_account_free(&account);
		harness_pause(p->target);
		stop_server(p);
		finish(p);
	}
}

Test(postcopy, a_guest_whose_pages_come_when_touched_finds_no_error_under_kvm, .timeout = 120)
{
	expect_intact(HARNESS_KVM);
}

Test(postcopy, a_guest_whose_pages_come_when_touched_finds_no_error_on_threads, .timeout = 120)
{
	expect_intact(HARNESS_THREAD);
}

static void destroy_while_waiting(enum harness_backing backing)
{
	struct postcopy *p = prepare(backing, "random:ws=2m");
	harness_resume(p->target);
	wait_for_fault(p);
	finish(p);
}

Test(postcopy, a_vm_whose_vcpus_wait_for_pages_can_be_destroyed_under_kvm, .timeout = 60)
{
	destroy_while_waiting(HARNESS_KVM);
}

Test(postcopy, a_vm_whose_vcpus_wait_for_pages_can_be_destroyed_on_threads, .timeout = 60)
{
	destroy_while_waiting(HARNESS_THREAD);
}

Test(postcopy, a_vcpu_that_waits_for_a_page_can_be_paused_and_goes_on_later, .timeout = 60)
{
	struct postcopy *p = prepare(HARNESS_KVM, "random:ws=2m");
	serve_monitor_pages(p);
	harness_resume(p->target);
	wait_for_fault(p);
	harness_pause(p->target);
	harness_resume(p->target);
	start_server(p);
	harness_check(p->target);
	harness_pause(p->target);
	stop_server(p);
	finish(p);
}

Test(postcopy, the_account_can_be_asked_for_while_pages_are_missing, .timeout = 60)
{
	struct postcopy *p = prepare(HARNESS_KVM, "random:ws=2m");
	harness_resume(p->target);
	wait_for_fault(p);
	struct microvm_account account = harness_account(p->target);
	cr_expect(account.arrived && account.ready);
	cr_expect_eq(account.operations_since_arrival, 0);
	microvm_account_free(&account);
	finish(p);
}

static uint64_t operations_since_arrival(struct postcopy *p, uint64_t *errors)
{
	struct microvm_account account = harness_account(p->target);
	uint64_t operations = account.operations_since_arrival;
	*errors = account.memory_errors;
	microvm_account_free(&account);
	return operations;
}

/* Its vCPUs wait for pages as threads, which nothing but the page gets out of its fault. */
static struct postcopy *prepare_unstoppable(void)
{
	struct postcopy *p = prepare(HARNESS_THREAD, "random:ws=2m");
	struct jaunt_error error = {0};
	uint64_t last;

	serve_monitor_pages(p);
	harness_resume(p->target);
	wait_for_fault(p);
	cr_assert_eq(microvm_ops.pause(p->target, &last, &error), -ETIMEDOUT);
	cr_assert_str_eq(error.reason, "vcpu-stuck");
	return p;
}

Test(postcopy, a_vcpu_that_was_told_to_stop_stays_so_when_its_page_comes_late, .timeout = 120)
{
	struct postcopy *p = prepare_unstoppable();
	struct jaunt_error error = {0};
	uint64_t errors;

	start_server(p);
	/* It takes no steps, and so never gets through a check, until it is resumed. */
	cr_expect_eq(microvm_self_check(p->target, 2000, &error), -ETIMEDOUT);
	/* It saw the order within microseconds of its page; from then on it stands still. */
	uint64_t stopped_at = operations_since_arrival(p, &errors);
	cr_expect_eq(microvm_self_check(p->target, 500, &error), -ETIMEDOUT);
	cr_expect_eq(operations_since_arrival(p, &errors), stopped_at);
	cr_expect_eq(errors, 0);
	harness_resume(p->target);
	harness_check(p->target);
	harness_pause(p->target);
	stop_server(p);
	finish(p);
}

Test(postcopy, a_vm_that_is_given_up_does_nothing_more_and_reads_nothing_wrong, .timeout = 120)
{
	struct postcopy *p = prepare_unstoppable();
	struct jaunt_error error = {0};
	uint64_t errors, before = operations_since_arrival(p, &errors);

	cr_expect_eq(errors, 0);
	/* Ends the vCPUs at the cost of what they see: none of it counts, and no step follows. */
	cr_expect_eq(microvm_stop(p->target, false, 0, &error), 0);
	cr_expect_eq(operations_since_arrival(p, &errors), before);
	cr_expect_eq(errors, 0);
	finish(p);
}
