/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is RDMA's own: how it fails. Needs a device that may be removed and made again, so it runs
 * in a nested machine, where JAUNT_TEST_ADDRESS is an rdma: address; elsewhere it is skipped.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "tests/unit/transport/harness.h"
#include "transport/rdma_channel.h"

#define PAGE         ((size_t)4096)
#define MEMORY_BYTES MIB(4)

TestSuite(rdma, .timeout = 60);

static struct pair pair;

static void need_address(void)
{
	const char *text = getenv("JAUNT_TEST_ADDRESS");

	if (!text || strncmp(text, "rdma:", 5) != 0)
		cr_skip_test("JAUNT_TEST_ADDRESS names no rdma: address");
}

static void need_device(void)
{
	struct jaunt_error error = {0};
	struct listener *listener;

	need_address();
	/* Another test may have removed it a moment ago. */
	struct address address = test_address();
	while (transport_listen(&listener, &address, &error))
		usleep(50000);
	listener_free(listener);
}

Test(rdma, only_a_peer_that_says_farewell_has_closed)
{
	struct rdma_channel *channel = calloc(1, sizeof(*channel));

	channel->peer_closed = true;
	cr_assert_eq(rdma_end_of(channel, 0), -ECONNRESET);
	cr_assert_eq(rdma_end_of(channel, -ECONNRESET), -ECONNRESET);
	cr_assert_eq(rdma_end_of(channel, -ETIMEDOUT), -ETIMEDOUT);
	channel->farewell = true;
	cr_assert_eq(rdma_end_of(channel, 0), 0);
	cr_assert_eq(rdma_end_of(channel, -ECONNRESET), 0);
	cr_assert_eq(rdma_end_of(channel, -ETIMEDOUT), -ETIMEDOUT);
	free(channel);
}

/* --- A peer that is killed ----------------------------------------------------------- */

struct reader {
	struct channel *channel;
	struct {
		uint64_t address;
		uint32_t key;
	} memory;
	struct landing landing;
	uint64_t posted, told;
	uint64_t good; /* READs that were told to be well, all of them before the first error */
	unsigned closed;
	int error;
};

static struct reader reader;

static size_t reader_received(void *user, const uint8_t *data, size_t bytes)
{
	if (bytes < sizeof(reader.memory))
		return 0;
	memcpy(&reader.memory, data, sizeof(reader.memory));
	return sizeof(reader.memory);
}

static void reader_read_done(void *user, uint64_t cookie, int error)
{
	cr_assert_eq(reader.closed, 0);
	cr_assert_eq(cookie, reader.told);
	reader.told++;
	if (!error) {
		cr_assert_eq(reader.good, cookie, "a READ that is well behind one that is not");
		reader.good++;
		size_t at = cookie * PAGE % MEMORY_BYTES;
		for (size_t i = 0; i < PAGE; i += 8)
			cr_assert_eq(*(uint64_t *)(void *)(reader.landing.bytes + at + i), at + i);
	}
}

static void reader_closed(void *user, int error)
{
	reader.closed++;
	reader.error = error;
}

static const struct channel_events reader_events = {
	.received = reader_received,
	.closed = reader_closed,
	.read_done = reader_read_done,
};

static void reader_accepted(void *user, struct channel *channel, int error)
{
	cr_assert_eq(error, 0);
	reader.channel = channel;
}

static void exposer_closed(void *user, int error)
{
	_exit(0);
}

static const struct channel_events exposer_events = {
	.received = reader_received,
	.closed = exposer_closed,
};

/* Exposes memory in which every word is its offset to whoever listens at the port that comes
 * through the pipe, says so, and serves nothing. */
static void expose_for_ever(int ports)
{
	struct address address = test_address();
	struct jaunt_error error = {0};
	struct channel *channel;
	struct exposure exposure;
	struct ring *ring;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(ports, &address.port, sizeof(address.port)) != sizeof(address.port))
		_exit(1);
	uint64_t *memory =
		mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < MEMORY_BYTES / 8; i++)
		memory[i] = i * 8;
	if (transport_connect(&channel, &address, 20000, &error) || ring_create(&ring, 16) ||
	    channel_bind(channel, ring, &exposer_events, NULL, PAGE) ||
	    transport_expose(&exposure, channel, memory, MEMORY_BYTES, false, &error))
		_exit(1);
	reader.memory.address = exposure.address;
	reader.memory.key = exposure.key;
	if (channel_send(channel, &reader.memory, sizeof(reader.memory), NULL, 0, 0))
		_exit(1);
	while (ring_wait(ring, -1) >= 0)
		;
	_exit(1);
}

static void read_more(void)
{
	while (!reader.closed && channel_read_room(reader.channel)) {
		size_t at = reader.posted * PAGE % MEMORY_BYTES;
		if (channel_read(reader.channel, &reader.landing, at, reader.memory.address + at,
				 reader.memory.key, PAGE, reader.posted))
			break;
		reader.posted++;
	}
}

Test(rdma, a_peer_killed_in_the_middle_of_reads_ends_them_all)
{
	struct jaunt_error error = {0};
	struct address address = test_address();
	struct listener *listener;
	struct ring *ring;
	int ports[2];

	need_address();
	/* First: a child cannot use what its parent has opened of RDMA. */
	cr_assert_eq(pipe(ports), 0);
	pid_t peer = fork();
	if (!peer)
		expose_for_ever(ports[0]);
	need_device();
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	address.port = (uint16_t)listener_port(listener);
	cr_assert_eq(write(ports[1], &address.port, sizeof(address.port)), sizeof(address.port));
	cr_assert_eq(ring_create(&ring, 64), 0);
	cr_assert_eq(listener_bind(listener, ring, reader_accepted, NULL), 0);
	wait_until(ring, reader.channel);
	cr_assert_eq(channel_bind(reader.channel, ring, &reader_events, NULL, PAGE), 0);
	cr_assert_eq(channel_landing(&reader.landing, reader.channel, MEMORY_BYTES, &error), 0,
		     "%s", error.text);
	wait_until(ring, reader.memory.key);
	while (!reader.closed) {
		read_more();
		cr_assert_geq(ring_wait(ring, -1), 0);
		if (reader.good > 1000 && peer) {
			kill(peer, SIGKILL);
			waitpid(peer, NULL, 0);
			peer = 0;
		}
	}
	cr_assert_eq(peer, 0, "the channel closed before anything was done to it: %d %s",
		     reader.error, channel_failure(reader.channel));
	cr_assert_eq(reader.told, reader.posted, "every READ is told of, before `closed`");
	cr_assert_neq(reader.error, 0, "nobody said farewell");
	cr_assert_gt(reader.good, 1000);
	cr_assert_eq(channel_read_room(reader.channel), 0);
	channel_free(reader.channel);
	landing_free(&reader.landing);
	listener_free(listener);
	ring_destroy(ring);
}

/* --- Limits -------------------------------------------------------------------------- */

/* From here on so many bytes may be locked, root or not. */
static void limit_locked_memory(size_t bytes)
{
	struct rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	cr_assert_eq(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
	cr_assert_eq(syscall(SYS_capget, &head, data), 0);
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	cr_assert_eq(syscall(SYS_capset, &head, data), 0);
}

Test(rdma, a_registration_beyond_the_limit_is_refused_and_says_what_to_raise)
{
	struct jaunt_error error = {0};
	struct exposure exposure;
	struct landing landing;
	void *memory;

	need_address();
	/* First: the kernel takes nothing more from a file whose opener has become somebody else.
	 */
	limit_locked_memory(MIB(8));
	need_device();
	pair_bind(&pair, PAGE);
	memory = mmap(NULL, MIB(16), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_eq(transport_expose(&exposure, pair.left.channel, memory, MIB(16), false, &error),
		     -ENOMEM);
	cr_assert_str_eq(error.reason, "memory-lock");
	cr_assert_not_null(strstr(error.text, "LimitMEMLOCK"), "%s", error.text);
	cr_assert_null(exposure.private);
	error = (struct jaunt_error){0};
	cr_assert_eq(channel_landing(&landing, pair.right.channel, MIB(16), &error), -ENOMEM);
	cr_assert_str_eq(error.reason, "memory-lock");
	/* The channel is none the worse for it. */
	cr_assert_eq(channel_send(pair.left.channel, "well", 4, NULL, 0, 1), 0);
	wait_until(pair.ring, pair.right.count == 4);
	pair_close(&pair);
	munmap(memory, MIB(16));
}

Test(rdma, a_channel_beyond_the_limit_is_refused_and_says_what_to_raise)
{
	struct jaunt_error error = {0};
	struct address address = test_address();
	struct listener *listener;
	struct channel *channel;

	need_address();
	limit_locked_memory(KIB(64));
	need_device();
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	address.port = (uint16_t)listener_port(listener);
	cr_assert_eq(transport_connect(&channel, &address, 5000, &error), -ENOMEM);
	cr_assert_str_eq(error.reason, "memory-lock");
	listener_free(listener);
}

/* --- Strangers and devices ----------------------------------------------------------- */

static unsigned accepted_count;

static void count_accepted(void *user, struct channel *channel, int error)
{
	accepted_count += error == 0;
	channel_free(channel);
}

static void *call_as_a_stranger(void *argument)
{
	char command[200];
	const struct address *address = argument;

	snprintf(command, sizeof(command), "rping -c -a %s -p %u -C 1 >/dev/null 2>&1",
		 address->host, address->port);
	int status = system(command);
	(void)status;
	return NULL;
}

Test(rdma, one_that_brings_no_greeting_is_refused)
{
	struct jaunt_error error = {0};
	struct address address = test_address();
	struct listener *listener;
	struct ring *ring;
	pthread_t stranger;
	struct dial dial;

	need_device();
	if (system("command -v rping >/dev/null"))
		cr_skip_test("rping is not installed");
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	address.port = (uint16_t)listener_port(listener);
	cr_assert_eq(ring_create(&ring, 16), 0);
	cr_assert_eq(listener_bind(listener, ring, count_accepted, NULL), 0);
	cr_assert_eq(pthread_create(&stranger, NULL, call_as_a_stranger, &address), 0);
	/* Its request is all that can come. */
	cr_assert_gt(ring_wait(ring, -1), 0);
	pthread_join(stranger, NULL);
	settle_ring(ring);
	cr_assert_eq(accepted_count, 0);
	/* Others still get in. */
	dial_start(&dial, &address, ring);
	channel_free(dial_finish(&dial, ring));
	wait_until(ring, accepted_count == 1);
	listener_free(listener);
	ring_destroy(ring);
}

static unsigned asked;

static bool admit_even(void *user, const uint8_t token[CONNECT_TOKEN_BYTES])
{
	asked++;
	for (unsigned i = 1; i < CONNECT_TOKEN_BYTES; i++)
		cr_assert_eq(token[i], i);
	return token[0] % 2 == 0;
}

Test(rdma, one_whose_token_is_not_wanted_is_refused_and_says_so)
{
	struct jaunt_error error = {0};
	struct address address = test_address();
	struct listener *listener;
	struct ring *ring;
	struct dial dial;

	need_device();
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	address.port = (uint16_t)listener_port(listener);
	for (unsigned i = 0; i < CONNECT_TOKEN_BYTES; i++)
		address.token[i] = (uint8_t)i;
	cr_assert_eq(ring_create(&ring, 16), 0);
	listener_admit(listener, admit_even, NULL);
	cr_assert_eq(listener_bind(listener, ring, count_accepted, NULL), 0);
	address.token[0] = 1;
	dial_start(&dial, &address, ring);
	cr_assert_null(dial_outcome(&dial, ring));
	cr_assert_eq(dial.result, -EBUSY);
	cr_assert_str_eq(dial.error.reason, "turned-away");
	cr_assert_eq(asked, 1);
	cr_assert_eq(accepted_count, 0);
	address.token[0] = 2;
	dial_start(&dial, &address, ring);
	channel_free(dial_finish(&dial, ring));
	wait_until(ring, accepted_count == 1);
	cr_assert_eq(asked, 2);
	listener_free(listener);
	ring_destroy(ring);
}

/* For those who come after it is made again. A driver that cannot take a device away from a process
 * (rxe) waits until that has ended, so nobody waits for the command. */
static void replace_device(void)
{
	cr_assert_eq(system("( netdev=$(rdma link show rxe0/1 | sed 's/.*netdev //;s/ .*//'); "
			    "rdma link delete rxe0; rdma link add rxe0 type rxe netdev $netdev ) "
			    ">/dev/null 2>&1 &"),
		     0);
}

Test(rdma, a_device_that_is_removed_ends_its_channels)
{
	struct jaunt_error error = {0};
	struct landing landing;

	need_device();
	if (system("rdma link show rxe0/1 >/dev/null 2>&1"))
		cr_skip_test("there is no rxe0 to remove");
	pair_bind(&pair, PAGE);
	listener_free(pair.listener);
	pair.listener = NULL;
	cr_assert_eq(channel_landing(&landing, pair.right.channel, PAGE, &error), 0);
	replace_device();
	wait_until(pair.ring, pair.left.closed && pair.right.closed);
	cr_assert_eq(pair.left.error, -ENODEV);
	cr_assert_not_null(strstr(channel_failure(pair.left.channel), "removed"));
	cr_assert_eq(channel_send(pair.left.channel, "x", 1, NULL, 0, 1), -EPIPE);
	landing_free(&landing);
	pair_close(&pair);
}
