/* SPDX-License-Identifier: Apache-2.0 */
/* That a limited channel sends evenly, as the kernel counts what it sends. The bounds are of bytes
 * by time, from above: a host that is busy with other things makes both smaller. */
#include <criterion/criterion.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/clock.h"
#include "tests/unit/transport/harness.h"
#include "transport/tcp_channel.h"

TestSuite(pacing, .timeout = 60);

#define WINDOW_NS 50000000u
#define SAMPLES   4096u

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
	if (!count || sample->after_ns - samples[count - 1].after_ns > 1000000)
		cr_assert_lt(++count, SAMPLES);
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
	cr_assert_eq(channel_pace(pair.left.channel, 50000000), 0);
	move(MIB(16));
	expect_even(0, 50e6);
	unsigned from = count;
	cr_assert_eq(channel_pace(pair.left.channel, 10000000), 0);
	move(MIB(2));
	expect_even(from, 10e6);
	cr_assert_eq(channel_pace(pair.left.channel, 0), 0);
	move(MIB(16));
	pair_close(&pair);
	free(data);
}
