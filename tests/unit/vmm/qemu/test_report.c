/* SPDX-License-Identifier: Apache-2.0 */
/* What the guest gives back, on its way from the agent, which is a thread here, to the engine. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/qemu/agent/discards.h"
#include "vmm/qemu/agent/pass.h"
#include "vmm/qemu/report.h"

#define SMALL 100u /* pages of the first region */
#define HUGE  4u   /* of 2 MiB, of the second */
#define TWO_M (2u << 20)

static const struct regions regions = {
	.count = 2,
	.all = {{.address = 1u << 30, .bytes = SMALL * AGENT_PAGE, .page_bytes = AGENT_PAGE},
		{.address = 2u << 30, .bytes = (uint64_t)HUGE * TWO_M, .page_bytes = TWO_M}}};

/* --- The agent ----------------------------------------------------------------------------------
 */

static int refusal; /* what it says to everything */
static atomic_uint unwatched;
static int agents_end = -1;
static pthread_t agent;
static struct attach attach;

static int obey(const struct agent_watch *asked, int record)
{
	if (refusal)
		return refusal;
	if (asked->head.request == AGENT_WATCH)
		return discards_watch(asked, record);
	discards_unwatch();
	atomic_fetch_add(&unwatched, 1);
	return 0;
}

static void *serve(void *unused)
{
	for (;;) {
		struct agent_watch asked;
		union pass_room room;
		struct iovec part = {&asked, sizeof(asked)};
		struct msghdr message = {.msg_iov = &part,
					 .msg_iovlen = 1,
					 .msg_control = room.bytes,
					 .msg_controllen = sizeof(room.bytes)};
		int record = -1;

		if (recvmsg(agents_end, &message, 0) <= 0)
			return unused;
		struct cmsghdr *passed = CMSG_FIRSTHDR(&message);
		if (passed)
			memcpy(&record, CMSG_DATA(passed), sizeof(record));
		asked.head.result = obey(&asked, record);
		if (record >= 0)
			close(record);
		send(agents_end, &asked.head, sizeof(asked.head), MSG_NOSIGNAL);
	}
}

/* --- The engine ---------------------------------------------------------------------------------
 */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards `told` */
static bool told[2][SMALL];
static struct jaunt_migration *const the_migration = (void *)&told;

/* In place of the engine's own. */
void jaunt_migration_discarded(struct jaunt_migration *migration, size_t region, uint64_t first,
			       uint64_t count)
{
	cr_assert(migration == the_migration && region < 2);
	cr_assert_leq(first + count, region ? HUGE : SMALL);
	pthread_mutex_lock(&mutex);
	for (uint64_t page = first; page < first + count; page++)
		told[region][page] = true;
	pthread_mutex_unlock(&mutex);
}

static bool is_told(size_t region, unsigned page)
{
	pthread_mutex_lock(&mutex);
	bool is = told[region][page];
	pthread_mutex_unlock(&mutex);
	return is;
}

/* Exactly pages `first` to `last` of a region are told, and nothing of the other. */
static void only(size_t region, unsigned first, unsigned last)
{
	for (size_t r = 0; r < 2; r++)
		for (unsigned page = 0; page < (r ? HUGE : SMALL); page++)
			cr_assert_eq(is_told(r, page), r == region && page >= first && page <= last,
				     "page %u of %zu", page, r);
}

/* ------------------------------------------------------------------------------------------------
 */

static struct report report;

static void set_up(void)
{
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	attach.fd = ends[0];
	agents_end = ends[1];
	cr_assert_eq(pthread_create(&agent, NULL, serve, NULL), 0);
}

static void tear_down(void)
{
	report_stop(&report);
	attach_close(&attach);
	pthread_join(agent, NULL);
	close(agents_end);
}

TestSuite(report, .init = set_up, .fini = tear_down, .timeout = 30);

static void start(void)
{
	struct jaunt_error error = {.code = 0};
	cr_assert_eq(report_start(&report, &attach, &regions, the_migration, &error), 0, "%s",
		     error.text);
}

static void discard(size_t region, uint64_t offset, uint64_t bytes)
{
	uint64_t at = regions.all[region].address + offset;
	discards_note_view((void *)(uintptr_t)at, bytes);
}

Test(report, tells_a_region_in_pages_of_its_own)
{
	start();
	discard(0, 98 * AGENT_PAGE, 2 * AGENT_PAGE);
	report_now(&report);
	only(0, 98, 99);
}

/* The next region's bits follow those of the one before it. */
Test(report, tells_of_a_huge_page_that_some_of_it_was_given_back)
{
	start();
	discard(1, TWO_M + 5 * AGENT_PAGE, TWO_M);
	report_now(&report);
	only(1, 1, 2);
}

Test(report, tells_a_run_over_the_end_of_a_region_as_two)
{
	start();
	discard(0, (SMALL - 1) * AGENT_PAGE, AGENT_PAGE);
	discard(1, 0, AGENT_PAGE);
	report_now(&report);
	cr_assert(is_told(0, SMALL - 1) && !is_told(0, SMALL - 2));
	cr_assert(is_told(1, 0) && !is_told(1, 1));
}

Test(report, tells_of_itself_what_nobody_asks_for)
{
	start();
	discard(0, 7 * AGENT_PAGE, AGENT_PAGE);
	while (!is_told(0, 7))
		usleep(1000);
	only(0, 7, 7);
}

Test(report, has_the_agent_stop_when_it_stops)
{
	start();
	report_stop(&report);
	cr_assert_eq(atomic_load(&unwatched), 1);
	discard(0, 0, AGENT_PAGE);
	report_now(&report);
	report_stop(&report);
	cr_assert(!is_told(0, 0));
	cr_assert_eq(atomic_load(&unwatched), 1);
	/* Again, for the next migration: nothing is left of the one before. */
	start();
	discard(0, 3 * AGENT_PAGE, AGENT_PAGE);
	report_now(&report);
	only(0, 3, 3);
}

Test(report, that_the_agent_refuses_is_told_and_does_nothing)
{
	struct jaunt_error error = {.code = 0};

	refusal = -ENOMEM;
	cr_assert_eq(report_start(&report, &attach, &regions, the_migration, &error), -ENOMEM);
	cr_assert_str_eq(error.reason, "agent-refused");
	report_now(&report);
	report_stop(&report);
}

Test(report, lets_go_of_a_qemu_that_is_gone)
{
	start();
	shutdown(agents_end, SHUT_RDWR);
	pthread_join(agent, NULL);
	report_stop(&report);
	cr_assert_eq(pthread_create(&agent, NULL, serve, NULL), 0);
}
