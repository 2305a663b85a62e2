/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A second process is the source: for each size it makes a file in memory, fills it through one
 * mapping as a guest does, and registers another one piece by piece. When the first piece is done
 * it tells its address and key through a pipe and waits until this process has READ a page of it;
 * then it goes on with the others. What it tells has the moment at which it began.
 */
#include "bench/floors/registration.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "bench/floors/program.h"
#include "bench/floors/report.h"
#include "bench/floors/verbs.h"

#define PAGE 4096u

static const uint64_t sizes[] = {MIB(1), MIB(4), MIB(16), MIB(64)};

struct pipes {
	int told[2], heard[2]; /* by the source; to the source */
};

struct first {
	uint64_t began_ns, address;
	uint32_t key;
};

/* --- The source ------------------------------------------------------------------------------- */

static uint8_t *map(int file, uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (memory == MAP_FAILED)
		program_fail("map %lu bytes", bytes);
	return memory;
}

/* A view of a new file that nothing has touched; `filled`: the file has data. */
static uint8_t *make_memory(uint64_t bytes, bool filled)
{
	int file = memfd_create("registered", MFD_CLOEXEC);
	if (file < 0 || ftruncate(file, (off_t)bytes))
		program_fail("make a file of %lu bytes", bytes);
	if (filled) {
		uint8_t *guest = map(file, bytes);
		memset(guest, 0x5a, bytes);
		munmap(guest, bytes);
	}
	uint8_t *view = map(file, bytes);
	close(file);
	return view;
}

static void register_all(struct ibv_pd *domain, const struct pipes *pipes, uint64_t bytes,
			 uint64_t piece, bool filled)
{
	uint64_t count = bytes / piece;
	uint8_t *view = make_memory(bytes, filled);
	struct ibv_mr **pieces = calloc(count, sizeof(struct ibv_mr *));
	double *took_ms = calloc(count, sizeof(*took_ms));
	char go;
	if (!pieces || !took_ms)
		program_fail("note %lu pieces", count);
	struct first first = {.began_ns = clock_ns()};
	for (uint64_t i = 0; i < count; i++) {
		uint64_t before = clock_ns();
		pieces[i] = ibv_reg_mr(domain, view + i * piece, piece, IBV_ACCESS_REMOTE_READ);
		if (!pieces[i])
			program_fail("register %lu bytes", piece);
		took_ms[i] = (double)(clock_ns() - before) / 1e6;
		if (i)
			continue;
		first.address = (uintptr_t)view;
		first.key = pieces[0]->rkey;
		program_tell(pipes->told[1], &first, sizeof(first));
		program_hear(pipes->heard[0], &go, sizeof(go));
	}
	program_tell(pipes->told[1], took_ms, count * sizeof(*took_ms));
	for (uint64_t i = 0; i < count; i++)
		ibv_dereg_mr(pieces[i]);
	free(took_ms);
	free((void *)pieces);
	munmap(view, bytes);
}

static void source(const char *host, const struct pipes *pipes, uint64_t bytes)
{
	static uint8_t unused[PAGE] __attribute__((aligned(PAGE)));
	struct verbs_listener listener;
	uint16_t port;
	verbs_listen(&listener, host, &port);
	program_tell(pipes->told[1], &port, sizeof(port));
	struct ibv_pd *domain = verbs_accept(&listener, unused, sizeof(unused));
	for (size_t i = 0; i < 2 * sizeof(sizes) / sizeof(sizes[0]); i++)
		register_all(domain, pipes, bytes, sizes[i / 2], i % 2 == 0);
	verbs_await_end(&listener);
	_exit(0);
}

/* --- The process that READs ------------------------------------------------------------------- */

static json_t *measure_one(struct verbs *verbs, const struct ibv_mr *landing,
			   const struct pipes *pipes, uint64_t bytes, uint64_t piece, bool filled)
{
	const uint8_t *page = landing->addr;
	uint64_t count = bytes / piece;
	double *took_ms = calloc(count, sizeof(*took_ms)), total_ms = 0;
	struct first first;
	if (!took_ms)
		program_fail("note %lu pieces", count);
	program_hear(pipes->told[0], &first, sizeof(first));
	verbs->address = first.address;
	verbs->key = first.key;
	verbs_read(verbs, landing, landing->addr, 0, PAGE);
	verbs_wait(verbs);
	double first_ms = (double)(clock_ns() - first.began_ns) / 1e6;
	if (page[0] != (filled ? 0x5a : 0))
		program_usage("a READ brought a wrong page");
	program_tell(pipes->heard[1], "", 1);
	program_hear(pipes->told[0], took_ms, count * sizeof(*took_ms));
	for (uint64_t i = 0; i < count; i++)
		total_ms += took_ms[i];
	json_t *found = json_pack("{s:I, s:b, s:I, s:f, s:f, s:f}", "bytes", (json_int_t)piece,
				  "filled", (int)filled, "count", (json_int_t)count, "mb_per_s",
				  (double)bytes / total_ms / 1e3, "first_read_ms", first_ms,
				  "median_ms", report_median(took_ms, count));
	free(took_ms);
	return found;
}

json_t *registration_measure(const char *host, uint64_t bytes)
{
	struct pipes pipes;
	struct verbs verbs;
	uint16_t port;
	int status;
	static uint8_t page[PAGE] __attribute__((aligned(PAGE)));
	if (pipe(pipes.told) || pipe(pipes.heard))
		program_fail("make a pipe");
	pid_t child = program_fork();
	if (child == 0)
		source(host, &pipes, bytes);
	close(pipes.told[1]);
	program_hear(pipes.told[0], &port, sizeof(port));
	verbs_connect(&verbs, host, port, 1);
	struct ibv_mr *landing = verbs_register(&verbs, page, PAGE);
	json_t *found = json_array();
	for (size_t i = 0; i < 2 * sizeof(sizes) / sizeof(sizes[0]); i++)
		json_array_append_new(found, measure_one(&verbs, landing, &pipes, bytes,
							 sizes[i / 2], i % 2 == 0));
	ibv_dereg_mr(landing);
	verbs_disconnect(&verbs);
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status))
		program_usage("the source failed");
	return found;
}
