/* SPDX-License-Identifier: Apache-2.0 */
/* That a limited channel sends evenly, as the kernel counts what it sends. The bounds are of bytes
 * by time, from above: a host that is busy with other things makes both smaller. */
#include <criterion/criterion.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/bits.h"
#include "base/clock.h"
#include "tests/unit/transport/harness.h"
#include "transport/tcp_channel.h"

TestSuite(pacing, .timeout = 60);

#define WINDOW_NS 50000000u
#define SAMPLES   4096u /* what comes after the last of them is not looked at */
/* What one message and one packet add to what a socket takes ahead. */
#define AHEAD_MORE (KIB(256) + KIB(64))

static struct pair pair;
static uint8_t *data;
static uint64_t submitted;
static struct sample {
	uint64_t before_ns, after_ns, bytes;
} samples[SAMPLES];
static unsigned count;

static void look(void)
{
	int fd = tcp_channel_of(pair.left.channel)->fd;
	struct tcp_info info;
	socklen_t bytes = sizeof(info);
	struct sample *sample = &samples[count];

	sample->before_ns = clock_ns();
	cr_assert_eq(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes), 0);
	sample->after_ns = clock_ns();
	sample->bytes = info.tcpi_bytes_sent;
	/* In a millisecond there is little to see. */
	if (count + 1 < SAMPLES &&
	    (!count || sample->after_ns - samples[count - 1].after_ns > 1000000))
		count++;
}

static void expect_limit(uint64_t bytes_per_s, int unsent_bytes)
{
	int fd = tcp_channel_of(pair.left.channel)->fd, unsent;
	uint64_t rate;
	socklen_t bytes = sizeof(rate);

	cr_assert_eq(getsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, &bytes), 0);
	cr_assert_eq(rate, bytes_per_s);
	bytes = sizeof(unsent);
	cr_assert_eq(getsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, &bytes), 0);
	cr_assert_eq(unsent, unsent_bytes);
}

/* Sends until so much more has arrived. */
static void move(size_t bytes)
{
	size_t until = pair.right.count + bytes;

	while (pair.right.count < until) {
		while (submitted - pair.left.sent < 4)
			cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, KIB(256),
						  ++submitted),
				     0);
		cr_assert_geq(ring_wait(pair.ring, 5000000), 0);
		look();
	}
}

/* Offers more than any socket takes; what it has taken and not sent in the end is bounded. */
static void expect_little_unsent(size_t most_bytes)
{
	int fd = tcp_channel_of(pair.left.channel)->fd, unsent, largest = 0;
	uint64_t from = pair.left.sent;

	while (pair.left.sent < from + 4) {
		while (channel_send(pair.left.channel, NULL, 0, data, KIB(256), ++submitted) == 0)
			;
		submitted--;
		cr_assert_geq(ring_wait(pair.ring, -1), 0);
		cr_assert_eq(ioctl(fd, SIOCOUTQNSD, &unsent), 0);
		largest = unsent > largest ? unsent : largest;
	}
	cr_assert_gt(largest, 0);
	cr_assert_lt((size_t)largest, most_bytes);
}

/* No window since the from-th sample has seen twice its share, or more. */
static void expect_even(unsigned from, double bytes_per_s)
{
	unsigned windows = 0;

	for (unsigned i = from, j = from; j < count; j++) {
		while (samples[j].after_ns - samples[i].before_ns > 2 * WINDOW_NS)
			i++;
		double ns = (double)(samples[j].after_ns - samples[i].before_ns);
		if (ns < WINDOW_NS)
			continue;
		windows++;
		cr_assert_lt((double)(samples[j].bytes - samples[i].bytes),
			     2 * bytes_per_s * ns / 1e9, "in %.0f ms", ns / 1e6);
	}
	cr_assert_gt(windows, 0);
}

Test(pacing, every_window_has_its_share_and_a_changed_limit_holds_at_once)
{
	data = pattern(KIB(256), 1);
	setenv("JAUNT_TEST_ADDRESS", "tcp:127.0.0.1:0", 1);
	pair_bind(&pair, KIB(256));
	expect_limit(UINT64_MAX, 0);
	cr_assert_eq(channel_pace(pair.left.channel, 50000000), 0);
	expect_limit(50000000, 1000000); /* 20 ms */
	move(MIB(16));
	expect_even(0, 50e6);
	unsigned from = count;
	cr_assert_eq(channel_pace(pair.left.channel, 10000000), 0);
	expect_limit(10000000, 200000);
	move(MIB(2));
	expect_even(from, 10e6);
	expect_little_unsent(200000 + AHEAD_MORE);
	cr_assert_eq(channel_pace(pair.left.channel, 0), 0);
	expect_limit(UINT64_MAX, 0);
	move(MIB(16));
	pair_close(&pair);
	free(data);
}
