/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/engine/world.h"

#include <errno.h>
#include <linux/memfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "engine/target/checker.h"
#include "fault/uffd.h"
#include "transport/ring.h"

void world_fail(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s:%d: ", file, line);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	fflush(stderr);
	abort();
}

/* --- Memory -------------------------------------------------------------------------------------
 */

static void lack(struct world *world, const char *what)
{
	snprintf(world->lack, sizeof(world->lack), "%s", what);
}

static bool make_region(struct world *world, size_t index, const struct world_region *wanted)
{
	struct jaunt_region *region = &world->regions[index];
	uint64_t bytes = wanted->pages * wanted->page_bytes;
	bool huge = wanted->page_bytes > PAGE;
	int fd = wanted->fd ? wanted->fd
			    : memfd_create("world",
					   MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));

	if (fd < 0 ||
	    ftruncate(fd, (off_t)(wanted->fd_offset + bytes + (huge ? 0 : wanted->page_bytes)))) {
		if (fd >= 0)
			close(fd);
		lack(world, "no memory files of that page size");
		return false;
	}
	/* Reserves huge pages: where there are too few it says so, and nothing later will. */
	void *view =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		     huge ? MAP_SHARED : MAP_SHARED | MAP_NORESERVE, fd, (off_t)wanted->fd_offset);
	if (view == MAP_FAILED) {
		close(fd);
		lack(world, "too few huge pages (sysctl vm.nr_hugepages)");
		return false;
	}
	*region = (struct jaunt_region){.name = "ram",
					.guest_address = index << 40,
					.bytes = bytes,
					.page_bytes = wanted->page_bytes,
					.fd = fd,
					.fd_offset = wanted->fd_offset,
					.view = view};
	world->region_count = index + 1;
	return true;
}

static void free_regions(struct world *world)
{
	for (size_t i = 0; i < world->region_count; i++) {
		munmap(world->regions[i].view, world->regions[i].bytes);
		close(world->regions[i].fd);
	}
	world->region_count = 0;
}

static void register_region(struct world *world, size_t index, unsigned shards)
{
	struct install *install = &world->shared.install;
	const struct guest_region *region = &world->shared.memory.regions[index];
	uint64_t step = shards == 1 ? region->pages : GIB(1) / region->page_bytes;
	struct jaunt_error error = {0};

	for (uint64_t page = 0; page < region->pages; page += step) {
		uint64_t count = region->pages - page < step ? region->pages - page : step;
		must(uffd_register(&install->uffds[install_shard(install, region, page)],
				   guestmem_vm_address(region, page), count * region->page_bytes,
				   &error) == 0,
		     "%s", error.text);
	}
}

bool world_open(struct world *world, const struct world_region *regions, size_t count,
		unsigned shards)
{
	struct target_shared *shared = &world->shared;
	struct jaunt_error error = {0};

	memset(world, 0, sizeof(*world));
	for (size_t i = 0; i < count; i++)
		if (!make_region(world, i, &regions[i])) {
			free_regions(world);
			return false;
		}
	struct uffd probe;
	if (uffd_open(&probe, &error) < 0) {
		lack(world, error.text);
		free_regions(world);
		return false;
	}
	uffd_close(&probe);
	struct jaunt_description description = {
		.name = "world", .regions = world->regions, .region_count = count};
	must(guestmem_open(&shared->memory, &description, false, &error) == 0, "%s", error.text);
	must(pagemap_open(&shared->map, &shared->memory) == 0, "no page map");
	must(install_open(&shared->install, &shared->memory, &shared->map) == 0, "no install");
	for (unsigned i = 0; i < shards; i++)
		must(uffd_open(&shared->install.uffds[i], &error) == 0, "%s", error.text);
	shared->install.shards = shards;
	for (size_t i = 0; i < count; i++)
		register_region(world, i, shards);
	must(guestmem_empty(&shared->memory, &error) == 0, "%s", error.text);

	pthread_mutex_init(&shared->prefetch_mutex, NULL);
	pthread_mutex_init(&shared->suspects_mutex, NULL);
	pthread_mutex_init(&shared->session.mutex, NULL);
	prefetch_init(&shared->prefetch, &shared->map, &shared->memory);
	shared->hint_count = shards;
	must(session_create(&shared->session) == 0, "no random numbers");
	atomic_store(&shared->session.epoch, 1);
	must(ring_create(&world->ring, 16) == 0, "no ring");
	session_set_owner(&shared->session, world->ring);
	return true;
}

bool world_open_pages(struct world *world, uint64_t pages)
{
	struct world_region region = {pages, PAGE, 0};
	return world_open(world, &region, 1, 1);
}

void world_close(struct world *world)
{
	session_set_owner(&world->shared.session, NULL);
	ring_destroy(world->ring);
	install_close(&world->shared.install);
	checker_forget_suspects(&world->shared);
	pagemap_close(&world->shared.map);
	guestmem_close(&world->shared.memory);
	free_regions(world);
}

/* --- Bytes --------------------------------------------------------------------------------------
 */

static uint64_t word_of(uint64_t page, uint64_t version, uint64_t index)
{
	uint64_t x = (page + 1) * UINT64_C(0x9e3779b97f4a7c15) ^
		     (version + 1) * UINT64_C(0xc2b2ae3d27d4eb4f) ^ index << 17;
	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	return (x ^ x >> 32) | 1; /* never zero */
}

void world_make(void *bytes, uint64_t page_bytes, uint64_t page, uint64_t version)
{
	uint64_t *words = bytes;
	for (uint64_t i = 0; i < page_bytes / 8; i++)
		words[i] = word_of(page, version, i);
}

bool world_made(const void *bytes, uint64_t page_bytes, uint64_t page, uint64_t version)
{
	const uint64_t *words = bytes;
	for (uint64_t i = 0; i < page_bytes / 8; i++)
		if (words[i] != word_of(page, version, i))
			return false;
	return true;
}

bool world_zero(const void *bytes, uint64_t page_bytes)
{
	const uint64_t *words = bytes;
	for (uint64_t i = 0; i < page_bytes / 8; i++)
		if (words[i])
			return false;
	return true;
}

uint8_t *world_at(const struct world *world, size_t region, uint64_t page)
{
	const struct guest_region *at = &world->shared.memory.regions[region];
	return at->vm_view + page * at->page_bytes;
}

bool world_hole(const struct world *world, size_t region, uint64_t page)
{
	const struct guest_region *at = &world->shared.memory.regions[region];
	off_t offset = (off_t)(at->fd_offset + page * at->page_bytes);
	off_t data = lseek(at->fd, offset, SEEK_DATA);
	return data < 0 ? errno == ENXIO : data >= offset + (off_t)at->page_bytes;
}

enum page_state world_state(const struct world *world, size_t region, uint64_t page)
{
	return pagemap_state(&world->shared.map, region, page);
}

void world_put_stale(struct world *world, size_t region, uint64_t page, uint64_t version)
{
	const struct guest_region *at = &world->shared.memory.regions[region];

	install_mark_in_file(&world->shared.install, region, page, 1);
	world_make(at->view + page * at->page_bytes, at->page_bytes, page, version);
}

/* --- Faults -------------------------------------------------------------------------------------
 */

struct fault_event world_next_fault(struct world *world, unsigned shard)
{
	const struct uffd *uffd = &world->shared.install.uffds[shard];
	struct pollfd readable = {.fd = uffd->fd, .events = POLLIN};
	struct fault_event event = {0};
	unsigned other = 0;

	int ready;
	while ((ready = poll(&readable, 1, WORLD_WAIT_MS)) < 0 && errno == EINTR)
		;
	must(ready == 1, "no fault came");
	must(events_read(uffd, &event, 1, &other) == 1 && !other, "no fault could be read");
	return event;
}

bool world_quiet(struct world *world, unsigned shard)
{
	struct pollfd readable = {.fd = world->shared.install.uffds[shard].fd, .events = POLLIN};
	int ready;

	while ((ready = poll(&readable, 1, 0)) < 0 && errno == EINTR)
		;
	return ready == 0;
}

void world_serve_present(struct world *world, size_t region, uint64_t page)
{
	const struct guest_region *at = &world->shared.memory.regions[region];
	struct fault_event event =
		world_next_fault(world, install_shard(&world->shared.install, at, page));
	size_t fault_region;
	uint64_t fault_page;

	must(guestmem_locate(&world->shared.memory, event.address, &fault_region, &fault_page) &&
		     fault_region == region && fault_page == page,
	     "a fault elsewhere");
	must(world_state(world, region, page) == PAGE_PRESENT, "the page is not present");
	must(install_present(&world->shared.install, region, page, event.minor, &world->counters) ==
		     0,
	     "the fault could not be answered");
}

bool world_lost(const struct world *world)
{
	return atomic_load(&world->shared.session.lost);
}

const struct jaunt_error *world_await_loss(struct world *world)
{
	uint64_t end = clock_ns() + WORLD_WAIT_MS * UINT64_C(1000000);

	while (!world_lost(world)) {
		must(clock_ns() < end, "the session is not lost");
		ring_wait(world->ring, (int64_t)WORLD_WAIT_MS * 1000000);
	}
	return &world->shared.session.why;
}

/* --- Guests -------------------------------------------------------------------------------------
 */

static void *guest_main(void *argument)
{
	struct guest *guest = argument;
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	guest->switches_before = usage.ru_nvcsw;
	atomic_store(&guest->tid, (pid_t)syscall(SYS_gettid));
	if (guest->write)
		*guest->address = guest->value;
	else
		guest->value = *guest->address;
	atomic_store(&guest->done, true);
	/* Stays runnable, so that sleeping can only mean the fault. */
	while (!atomic_load(&guest->end))
		sched_yield();
	return NULL;
}

static void start(struct guest *guest, void *address, bool write, uint64_t value)
{
	memset(guest, 0, sizeof(*guest));
	guest->address = address;
	guest->write = write;
	guest->value = value;
	must(pthread_create(&guest->thread, NULL, guest_main, guest) == 0, "no thread");
}

void guest_touch(struct guest *guest, void *address)
{
	start(guest, address, false, 0);
}

void guest_write(struct guest *guest, void *address, uint64_t value)
{
	start(guest, address, true, value);
}

static bool sleeps(struct guest *guest)
{
	pid_t tid = atomic_load(&guest->tid);
	char path[64], line[256], state = '?';
	long switches = 0;

	if (!tid)
		return false;
	snprintf(path, sizeof(path), "/proc/self/task/%d/status", tid);
	FILE *file = fopen(path, "re");
	must(file, "no %s", path);
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "State: %c", &state);
		sscanf(line, "voluntary_ctxt_switches: %ld", &switches);
	}
	fclose(file);
	/* The state alone is set before the kernel's last look at the page table. */
	return (state == 'S' || state == 'D') && switches > guest->switches_before;
}

void guest_await_asleep(struct guest *guest)
{
	uint64_t end = clock_ns() + WORLD_WAIT_MS * UINT64_C(1000000);

	while (!sleeps(guest)) {
		must(clock_ns() < end, "the guest does not sleep");
		sched_yield();
	}
}

bool guest_asleep(struct guest *guest)
{
	return sleeps(guest) && !atomic_load(&guest->done);
}

uint64_t guest_join(struct guest *guest)
{
	uint64_t end = clock_ns() + WORLD_WAIT_MS * UINT64_C(1000000);

	while (!atomic_load(&guest->done)) {
		must(clock_ns() < end, "a guest hangs in a fault: its wake-up was lost");
		sched_yield();
	}
	atomic_store(&guest->end, true);
	pthread_join(guest->thread, NULL);
	return guest->value;
}

/* --- Peers --------------------------------------------------------------------------------------
 */

void peer_open(struct channel **channel, int *fd)
{
	struct sockaddr_in here = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(here);
	struct address address = {.scheme = "tcp", .host = "127.0.0.1"};
	struct timeval patience = {.tv_sec = WORLD_WAIT_MS / 1000};
	struct jaunt_error error = {0};
	int one = 1;
	int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must(listening >= 0 && bind(listening, (void *)&here, sizeof(here)) == 0 &&
		     listen(listening, 1) == 0 &&
		     getsockname(listening, (void *)&here, &length) == 0,
	     "no listening socket: %s", strerror(errno));
	address.port = ntohs(here.sin_port);
	must(transport_connect(channel, &address, WORLD_WAIT_MS, &error) == 0, "%s", error.text);
	*fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	must(*fd >= 0, "nobody connected: %s", strerror(errno));
	close(listening);
	setsockopt(*fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(*fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

void peer_send(int fd, const void *bytes, size_t count)
{
	const uint8_t *at = bytes;

	while (count) {
		ssize_t done = send(fd, at, count, MSG_NOSIGNAL);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && (errno == EPIPE || errno == ECONNRESET))
			return; /* it has hung up on us: that is for the test to expect or not */
		must(done > 0, "the peer cannot send: %s", strerror(errno));
		at += done;
		count -= (size_t)done;
	}
}

void peer_send_frame(int fd, const struct frame *frame, const void *payload)
{
	uint8_t head[FRAME_BYTES];

	frame_encode(frame, head);
	peer_send(fd, head, sizeof(head));
	if (payload)
		peer_send(fd, payload, frame->payload_bytes);
}

bool peer_read(int fd, void *bytes, size_t count)
{
	uint8_t *at = bytes;

	while (count) {
		ssize_t done = recv(fd, at, count, 0);
		if (done < 0 && errno == EINTR) /* the thread's own ring has work for it */
			continue;
		if (done == 0 || (done < 0 && errno == ECONNRESET))
			return false;
		must(done > 0, "the other side sends nothing: %s", strerror(errno));
		at += done;
		count -= (size_t)done;
	}
	return true;
}

void peer_expect_preamble(int fd, enum attach_role role, unsigned index)
{
	uint8_t bytes[PREAMBLE_BYTES];
	struct attach attach;
	const char *why = "";

	must(peer_read(fd, bytes, sizeof(bytes)), "it hung up at once");
	must(preamble_parse(bytes, &attach, &why), "%s", why);
	must(attach.role == role && attach.index == index, "another preamble");
}

bool peer_read_frame(int fd, struct frame *frame)
{
	uint8_t head[FRAME_BYTES];

	if (!peer_read(fd, head, sizeof(head)))
		return false;
	must(frame_decode(frame, head) == FRAME_OK && !frame->payload_bytes, "a bad frame");
	return true;
}

void peer_expect_close(int fd)
{
	uint8_t byte;
	while (peer_read(fd, &byte, 1))
		;
}
