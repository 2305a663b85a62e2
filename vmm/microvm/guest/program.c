/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A vCPU owns a run of pages that no other touches. It first writes each once (POPULATE), then
 * works on them for ever (RUN), and when the monitor asks for it looks at each in turn (CHECK).
 *
 * Every read of a page verifies all of it (page.h). What that cannot see is a page that is whole
 * but old, so its expected version must be known from somewhere that does not migrate with memory:
 * from registers. Where the order of writes is fixed (sweep, discard; idle never writes) it follows
 * from a counter. Where it is not (random, read, zipf, kv) the register guest_hash holds the sum of
 * page_element(page, version) over all pages; each write adds the difference it makes. A check that
 * goes through the pages adds up what it finds in guest_sum, a write behind its cursor adding its
 * difference there as well; when it has seen all pages, the two sums must be equal. Besides the
 * check on demand one runs all the time, at one page every `check_every` operations.
 *
 * Discard gives back a window of units that slides over the vCPU's pages: units are discarded at
 * its head and written again at its tail. In between nobody relies on them: they come back as zeros
 * or, when the migration had not yet brought them as they were discarded, as some valid older
 * version. Every other unit is discarded without being looked at first, so that some are absent
 * then.
 *
 * Steps are short and bounded; between two of them everything is in registers, so the same source
 * also runs on a thread of the host that stops between steps.
 */
#include "registers.h"
#include "abi.h"
#include "page.h"
#include "program.h"
#include "table.h"

enum guest_mode { MODE_POPULATE, MODE_RUN, MODE_CHECK };

/* Details are told of so many errors a vCPU; all are counted. */
#define ERRORS_TOLD 64
/* An operation later than that is not caught up with. */
#define CATCH_UP_TICKS 10
/* A wait of less than that many cycles is not worth leaving the guest. */
#define WORTH_LEAVING(parameters) ((parameters)->tick_cycles / 8)
#define IDLE_TICKS                100
#define DISCARD_EVERY             8

#ifdef GUEST_FREESTANDING

static inline volatile void *guest_address(uint64_t address, uint64_t bytes)
{
	(void)bytes;
	return (volatile void *)address;
}

static inline const struct guest_parameters *parameters(void)
{
	return (const struct guest_parameters *)guest_block();
}

static inline uint32_t guest_call(unsigned port, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
				  uint64_t e, uint64_t f)
{
	register uint64_t fourth __asm__("r8") = d;
	register uint64_t fifth __asm__("r9") = e;
	register uint64_t sixth __asm__("r10") = f;
	uint32_t answer;
	__asm__ volatile("inl %%dx, %%eax"
			 : "=a"(answer)
			 : "d"(port), "D"(a), "S"(b), "c"(c), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "memory");
	return answer;
}

#else

_Thread_local struct guest_thread *guest_thread;

/* Here no page table keeps the program within its memory. Registers and parameters came from
 * another host: what points outside ends up in the first page, which has no other use. */
static inline volatile void *guest_address(uint64_t address, uint64_t bytes)
{
	uint64_t limit = guest_thread->memory_bytes - bytes;
	return guest_thread->memory + (address <= limit ? address : 0);
}

static inline const struct guest_parameters *parameters(void)
{
	return &guest_thread->parameters;
}

static inline uint32_t guest_call(unsigned port, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
				  uint64_t e, uint64_t f)
{
	const uint64_t arguments[6] = {a, b, c, d, e, f};
	return guest_thread->call(guest_thread->context, port, arguments);
}

#endif

/* Ordered on both sides: what is timed lies between two of these. */
static inline uint64_t tsc(void)
{
	uint32_t low, high;
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return ((uint64_t)high << 32 | low) + guest_tsc_offset();
}

static inline uint64_t random_number(void)
{
	uint64_t x = guest_random;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	guest_random = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}

static inline uint64_t random_below(uint64_t bound)
{
	return (uint64_t)((unsigned __int128)random_number() * bound >> 64);
}

static void note_error(uint64_t index, enum guest_fault fault, uint64_t expected, uint64_t found)
{
	guest_set_errors(guest_errors() + 1);
	if (guest_errors() <= ERRORS_TOLD)
		guest_call(GUEST_PORT_ERROR, index, fault, expected, found, guest_errors(), 0);
}

/* The first access of an operation to its page, timed. */
static volatile uint64_t *touch(uint64_t index)
{
	volatile uint64_t *page = guest_address(index * GUEST_PAGE_BYTES, GUEST_PAGE_BYTES);
	uint64_t from = tsc();
	(void)page[0];
	uint64_t cycles = tsc() - from;
	if (cycles <= parameters()->slow_cycles)
		return page;
	if (guest_touches() == GUEST_TOUCHES) {
		guest_set_touches_dropped(guest_touches_dropped() + 1);
		return page;
	}
	uint64_t place = GUEST_BLOCK_TOUCHES + guest_touches() * sizeof(struct guest_touch);
	volatile struct guest_touch *record = guest_address(guest_block() + place, sizeof *record);
	record->page = index;
	record->tsc = from;
	record->cycles = cycles;
	guest_set_touches(guest_touches() + 1);
	return page;
}

/* --- Which version a page must have
 * --------------------------------------------------------------- */

static inline int follows_counters(uint64_t workload)
{
	return workload == GUEST_IDLE || workload == GUEST_SWEEP || workload == GUEST_DISCARD;
}

static inline int in_window(const struct guest_parameters *p, uint64_t offset)
{
	if (p->workload != GUEST_DISCARD)
		return 0;
	uint64_t units = p->pages / p->unit_pages;
	uint64_t behind_tail =
		(offset / p->unit_pages + units - guest_window_tail() % units) % units;
	return behind_tail < guest_cursor - guest_window_tail();
}

/* Where it follows from counters: 1 + how often the page was written since. */
static inline uint64_t counted_version(const struct guest_parameters *p, uint64_t offset)
{
	if (p->workload == GUEST_IDLE)
		return 1;
	uint64_t writes = guest_cursor, places = p->pages, place = offset;
	if (p->workload == GUEST_DISCARD) {
		writes = guest_window_tail();
		places = p->pages / p->unit_pages;
		place = offset / p->unit_pages;
	}
	return 1 + writes / places + (place < writes % places);
}

/* Verifies a page, its version too where that is known; 0 and no *version after an error. */
static int inspect(const struct guest_parameters *p, const volatile uint64_t *page, uint64_t offset,
		   uint64_t *version)
{
	uint64_t index = p->first_page + offset, expected = 0;
	enum guest_fault fault = p->workload == GUEST_KV ? table_verify(page, index, p->owner)
							 : page_verify(page, index, p->owner);
	*version = page[1];
	if (follows_counters(p->workload)) {
		expected = counted_version(p, offset);
		if (!fault && *version != expected)
			fault = GUEST_FAULT_VERSION;
	}
	if (fault)
		note_error(index, fault, expected, *version);
	return !fault;
}

/* Accounts for a page that had version `from` (0: not known) and has `to` now. */
static void rehash(const struct guest_parameters *p, uint64_t offset, uint64_t from, uint64_t to)
{
	uint64_t index = p->first_page + offset;
	uint64_t difference = page_element(index, to) - (from ? page_element(index, from) : 0);
	guest_hash += difference;
	if (offset < guest_check_cursor)
		guest_sum += difference;
}

/* --- Operations
 * ----------------------------------------------------------------------------------- */

/* Versions grow by one a write, so never past operations + 1: this is newer than any before it,
 * whatever the page had been. */
static inline uint64_t fresh_version(void)
{
	return guest_operations + 2;
}

static void rewrite(const struct guest_parameters *p, uint64_t offset)
{
	uint64_t version;
	volatile uint64_t *page = touch(p->first_page + offset);
	int fine = inspect(p, page, offset, &version);
	uint64_t next = fine ? version + 1 : fresh_version();
	page_write(page, p->first_page + offset, p->owner, next);
	rehash(p, offset, fine ? version : 0, next);
}

static void look(const struct guest_parameters *p, uint64_t offset)
{
	uint64_t version;
	inspect(p, touch(p->first_page + offset), offset, &version);
}

static void sweep(const struct guest_parameters *p)
{
	uint64_t offset = guest_cursor % p->pages, version;
	volatile uint64_t *page = touch(p->first_page + offset);
	inspect(p, page, offset, &version);
	guest_cursor++;
	page_write(page, p->first_page + offset, p->owner, counted_version(p, offset));
}

/* Each octave of ranks is as likely as any other: Zipf's law with exponent 1, in integers. Ranks
 * are scattered over the pages (the multiplier is a prime larger than their number). */
static uint64_t zipf_offset(uint64_t pages)
{
	unsigned octaves = 64 - (unsigned)__builtin_clzll(pages);
	uint64_t rank;
	do {
		unsigned octave = (unsigned)random_below(octaves);
		rank = (UINT64_C(1) << octave) - 1 + random_below(UINT64_C(1) << octave);
	} while (rank >= pages);
	return rank * UINT64_C(4294967291) % pages;
}

static void get_or_put(const struct guest_parameters *p)
{
	uint64_t key = random_below(p->pages * TABLE_KEYS), offset = key % p->pages, version;
	uint64_t index = p->first_page + offset;
	volatile uint64_t *page = touch(index);
	if (!inspect(p, page, offset, &version)) {
		version = fresh_version();
		table_write(page, index, p->owner, version, offset, p->pages);
		rehash(p, offset, 0, version);
		return;
	}
	unsigned slot = table_find(page, key);
	int put = random_number() >> 62 == 0;
	if (slot < TABLE_SLOTS && !table_slot_is_whole(table_slot(page, slot)))
		note_error(index, GUEST_FAULT_CONTENTS, 0, version);
	if (!put)
		return;
	uint64_t value = 1;
	if (slot < TABLE_SLOTS)
		value = table_slot(page, slot)[1] + 1;
	else
		slot = (unsigned)(key / p->pages % TABLE_SLOTS);
	table_write_slot(table_slot(page, slot), key, value);
	table_seal(page, index, p->owner, version + 1);
	rehash(p, offset, version, version + 1);
}

/* Writes the next page of the window's last unit, whatever came back of it. */
static void take_back(const struct guest_parameters *p)
{
	uint64_t units = p->pages / p->unit_pages;
	uint64_t offset = guest_window_tail() % units * p->unit_pages + guest_window_page();
	uint64_t index = p->first_page + offset, next = counted_version(p, offset) + 1;
	volatile uint64_t *page = touch(index);
	enum guest_fault fault = page_verify(page, index, p->owner);
	if (!fault && page[1] >= next)
		fault = GUEST_FAULT_VERSION;
	if (fault && !page_is_zero(page))
		note_error(index, fault, next - 1, page[1]);
	page_write(page, index, p->owner, next);
	guest_set_window_page(guest_window_page() + 1);
	if (guest_window_page() == p->unit_pages) {
		guest_set_window_page(0);
		guest_set_window_tail(guest_window_tail() + 1);
	}
}

static void give_back(const struct guest_parameters *p)
{
	uint64_t offset = guest_cursor % (p->pages / p->unit_pages) * p->unit_pages;
	if (guest_cursor & 1)
		look(p, offset);
	guest_cursor++;
	guest_call(GUEST_PORT_DISCARD, p->first_page + offset, p->unit_pages, 0, 0, 0, 0);
}

static void discard(const struct guest_parameters *p)
{
	uint64_t units = p->pages / p->unit_pages, window = guest_cursor - guest_window_tail();
	if (window > units / 4) {
		take_back(p);
	} else if (guest_operations % DISCARD_EVERY == 0) {
		give_back(p);
	} else {
		uint64_t unit = (guest_cursor + random_below(units - window)) % units;
		look(p, unit * p->unit_pages + random_below(p->unit_pages));
	}
}

static void operate(const struct guest_parameters *p)
{
	switch (p->workload) {
	case GUEST_SWEEP:
		sweep(p);
		break;
	case GUEST_RANDOM:
		rewrite(p, random_below(p->pages));
		break;
	case GUEST_READ:
		if (random_number() >> 60 == 0)
			rewrite(p, random_below(p->pages));
		else
			look(p, random_below(p->pages));
		break;
	case GUEST_ZIPF:
		rewrite(p, zipf_offset(p->pages));
		break;
	case GUEST_KV:
		get_or_put(p);
		break;
	case GUEST_DISCARD:
		discard(p);
		break;
	}
}

/* --- Steps
 * ---------------------------------------------------------------------------------------- */

static void report(enum guest_report what)
{
	guest_call(GUEST_PORT_REPORT, what, guest_operations, guest_errors(), tsc(), 0, 0);
}

static void begin_check(enum guest_mode mode)
{
	guest_set_mode(mode);
	guest_check_cursor = 0;
	guest_sum = 0;
}

static void populate_one(const struct guest_parameters *p)
{
	uint64_t offset = guest_cursor++, index = p->first_page + offset;
	volatile uint64_t *page = guest_address(index * GUEST_PAGE_BYTES, GUEST_PAGE_BYTES);
	if (p->workload == GUEST_KV)
		table_write(page, index, p->owner, 1, offset, p->pages);
	else
		page_write(page, index, p->owner, 1);
	guest_hash += page_element(index, 1);
	if (guest_cursor < p->pages)
		return;
	guest_cursor = 0;
	begin_check(MODE_RUN);
	report(GUEST_REPORT_READY);
}

static void check_one(const struct guest_parameters *p)
{
	uint64_t offset = guest_check_cursor, version;
	if (!in_window(p, offset) && inspect(p, touch(p->first_page + offset), offset, &version))
		guest_sum += page_element(p->first_page + offset, version);
	if (++guest_check_cursor < p->pages)
		return;
	if (!follows_counters(p->workload) && guest_sum != guest_hash) {
		note_error(0, GUEST_FAULT_SUM, guest_hash, guest_sum);
		guest_hash = guest_sum;
	}
	enum guest_report what =
		guest_mode() == MODE_CHECK ? GUEST_REPORT_CHECKED : GUEST_REPORT_SWEPT;
	begin_check(MODE_RUN);
	report(what);
}

/* Is it too early for the next operation? Then waits for a while. */
static int wait_for_turn(const struct guest_parameters *p)
{
	if (p->workload == GUEST_IDLE) {
		guest_call(GUEST_PORT_IDLE, p->tick_cycles * IDLE_TICKS, 0, 0, 0, 0, 0);
		guest_set_operation_end(tsc());
		return 1;
	}
	if (!p->interval_cycles)
		return 0;
	uint64_t now = tsc(), due = guest_operation_due();
	if ((int64_t)(now - due) < 0) {
		if (due - now > p->interval_cycles * 2 + p->tick_cycles)
			guest_set_operation_due(now); /* the TSC went back */
		else if (due - now > WORTH_LEAVING(p))
			guest_call(GUEST_PORT_IDLE, due - now, 0, 0, 0, 0, 0);
		else
			__builtin_ia32_pause();
		guest_set_operation_end(due);
		return 1;
	}
	if (now - due > p->tick_cycles * CATCH_UP_TICKS)
		due = now;
	guest_set_operation_due(due + p->interval_cycles);
	return 0;
}

static void count_operation(const struct guest_parameters *p, uint64_t now)
{
	guest_operations++;
	uint64_t tick = (uint64_t)((unsigned __int128)now * p->tick_reciprocal >> 64);
	uint64_t place = GUEST_BLOCK_BUCKETS + tick % GUEST_BUCKETS * sizeof(uint64_t);
	volatile uint64_t *bucket = guest_address(guest_block() + place, sizeof *bucket);
	uint64_t found = *bucket;
	*bucket = GUEST_BUCKET_TICK(found) == (uint32_t)tick ? found + 1 : tick << 32 | 1;
}

static void poll(const struct guest_parameters *p, uint64_t now)
{
	uint32_t command =
		guest_call(GUEST_PORT_POLL, guest_operations, guest_errors(), tsc(), guest_stall(),
			   guest_stall_end(), guest_touches() | guest_touches_dropped() << 32);
	guest_set_stall(0);
	guest_set_touches(0);
	guest_set_touches_dropped(0);
	guest_set_poll_due(now + p->tick_cycles);
	if (command == GUEST_SELF_CHECK && guest_mode() == MODE_RUN)
		begin_check(MODE_CHECK);
}

void guest_begin(uint64_t block)
{
	guest_set_block(block);
	guest_set_mode(MODE_POPULATE);
	guest_random = page_mix(parameters()->seed ^ parameters()->owner) | 1;
	uint64_t now = tsc();
	guest_set_poll_due(now);
	guest_set_operation_end(now);
	guest_set_operation_due(now);
}

void guest_step(void)
{
	const struct guest_parameters *p = parameters();
	int operated = 0, waited = 0;
	switch (guest_mode()) {
	case MODE_POPULATE:
		populate_one(p);
		break;
	case MODE_CHECK:
		check_one(p);
		break;
	default:
		waited = wait_for_turn(p);
		if (waited)
			break;
		operate(p);
		operated = 1;
		if (p->check_every && guest_operations % p->check_every == 0)
			check_one(p);
	}
	uint64_t now = tsc();
	if (operated)
		count_operation(p, now);
	if (!waited) {
		uint64_t gap = now - guest_operation_end();
		if ((int64_t)gap > (int64_t)guest_stall()) {
			guest_set_stall(gap);
			guest_set_stall_end(now);
		}
		guest_set_operation_end(now);
	}
	/* Also when the TSC went back: a due time far ahead is none. */
	if (guest_poll_due() - now > p->tick_cycles)
		poll(p, now);
}
