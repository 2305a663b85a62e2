/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/trace.h"

static char path[64];

static void choose_path(void)
{
	strcpy(path, "/tmp/jaunt-trace-XXXXXX");
	int fd = mkstemp(path);
	cr_assert_geq(fd, 0);
	close(fd);
}

static void remove_path(void)
{
	unlink(path);
}

TestSuite(trace, .init = choose_path, .fini = remove_path, .timeout = 60);

static struct trace *opened(void)
{
	struct trace *trace;
	struct jaunt_error error = {0};
	cr_assert_eq(trace_open(&trace, path, &error), 0, "%s", error.text);
	cr_assert_not_null(trace);
	return trace;
}

static void closed(struct trace *trace)
{
	struct jaunt_error error = {0};
	cr_assert_eq(trace_close(trace, &error), 0, "%s", error.text);
}

/* Every line, parsed, as an array. */
static json_t *lines(void)
{
	json_t *all = json_array();
	char *line = NULL;
	size_t room = 0;
	json_error_t wrong;
	FILE *file = fopen(path, "re");
	cr_assert_not_null(file);
	while (getline(&line, &room, file) > 0) {
		cr_assert_eq(line[strlen(line) - 1], '\n');
		json_t *object = json_loads(line, 0, &wrong);
		cr_assert(json_is_object(object), "%s: %s", wrong.text, line);
		json_array_append_new(all, object);
	}
	free(line);
	fclose(file);
	return all;
}

static const char *text_of(json_t *all, size_t line, const char *key)
{
	return json_string_value(json_object_get(json_array_get(all, line), key));
}

static json_int_t number_of(json_t *all, size_t line, const char *key)
{
	json_t *value = json_object_get(json_array_get(all, line), key);
	cr_assert(json_is_integer(value), "line %zu has no number %s", line, key);
	return json_integer_value(value);
}

Test(trace, without_a_path_there_is_no_trace_and_everything_is_a_no_op)
{
	struct trace *trace = (struct trace *)1;
	int calls = 0;
	cr_assert_eq(trace_open(&trace, NULL, NULL), 0);
	cr_assert_null(trace);
	cr_assert_null(trace_lane(trace, "demand"));
	trace_fault(NULL, 0, 1, 2, 3, TRACE_FETCHED);
	trace_grant(NULL, 0, 1, 2, 3);
	trace_run(NULL, 0, 1, 2, TRACE_RUN_ZERO);
	trace_event(NULL, "name", "%d", calls++);
	cr_assert_eq(calls, 0);
	cr_assert_eq(trace_failed(NULL), 0);
	cr_assert_eq(trace_bytes(NULL), 0);
	cr_assert_eq(trace_close(NULL, NULL), 0);
}

Test(trace, an_empty_one_has_a_first_and_a_last_line)
{
	closed(opened());
	json_t *all = lines();
	cr_assert_eq(json_array_size(all), 2);
	cr_assert_str_eq(text_of(all, 0, "what"), "trace");
	cr_assert_str_eq(text_of(all, 0, "schema"), TRACE_SCHEMA);
	cr_assert_str_eq(text_of(all, 0, "version"), JAUNT_VERSION);
	cr_assert_eq(number_of(all, 0, "pid"), getpid());
	cr_assert_str_eq(text_of(all, 1, "what"), "end");
	cr_assert_eq(number_of(all, 1, "records"), 0);
	cr_assert_eq(number_of(all, 1, "dropped"), 0);
	json_decref(all);
}

Test(trace, an_object_is_a_line_of_its_own_kind)
{
	char long_members[TRACE_MEMBERS_MAX + 64];
	struct trace *trace = opened();
	struct trace_lane *lane = trace_lane(trace, "main");
	trace_put_object(lane, "decision", "\"round\":3,\"ways\":{\"finish\":1}");
	memset(long_members, ' ', sizeof(long_members) - 1);
	long_members[sizeof(long_members) - 1] = '\0';
	trace_put_object(lane, "decision", long_members);
	closed(trace);

	json_t *all = lines();
	cr_assert_eq(json_array_size(all), 3);
	cr_assert_str_eq(text_of(all, 1, "what"), "decision");
	cr_assert_str_eq(text_of(all, 1, "lane"), "main");
	cr_assert_eq(number_of(all, 1, "round"), 3);
	cr_assert_gt(number_of(all, 1, "ns"), 0);
	cr_assert_eq(number_of(all, 2, "dropped"), 1);
	json_decref(all);
}

Test(trace, every_kind_of_record_comes_out_in_order_with_all_it_was_told)
{
	struct trace *trace = opened();
	struct trace_lane *lane = trace_lane(trace, "demand-0");
	trace_fault(lane, 3, 123456789012, 1000, 8500, TRACE_FETCHED);
	trace_grant(lane, 1, 512, 1024, 7);
	trace_run(lane, 2, 64, 32, TRACE_RUN_DUPLICATE);
	trace_event(lane, "phase", "now %s", "post-copy");
	closed(trace);

	json_t *all = lines();
	cr_assert_eq(json_array_size(all), 6);
	for (size_t i = 1; i <= 4; i++)
		cr_assert_str_eq(text_of(all, i, "lane"), "demand-0");
	cr_assert_str_eq(text_of(all, 1, "what"), "fault");
	cr_assert_eq(number_of(all, 1, "region"), 3);
	cr_assert_eq(number_of(all, 1, "page"), 123456789012);
	cr_assert_eq(number_of(all, 1, "ns"), 1000);
	cr_assert_eq(number_of(all, 1, "latency_ns"), 7500);
	cr_assert_str_eq(text_of(all, 1, "answer"), "fetched");
	cr_assert_str_eq(text_of(all, 2, "what"), "grant");
	cr_assert_eq(number_of(all, 2, "region"), 1);
	cr_assert_eq(number_of(all, 2, "first"), 512);
	cr_assert_eq(number_of(all, 2, "count"), 1024);
	cr_assert_eq(number_of(all, 2, "stream"), 7);
	cr_assert_str_eq(text_of(all, 3, "what"), "run");
	cr_assert_eq(number_of(all, 3, "first"), 64);
	cr_assert_eq(number_of(all, 3, "count"), 32);
	cr_assert_str_eq(text_of(all, 3, "fate"), "duplicate");
	cr_assert_str_eq(text_of(all, 4, "what"), "event");
	cr_assert_str_eq(text_of(all, 4, "name"), "phase");
	cr_assert_str_eq(text_of(all, 4, "text"), "now post-copy");
	cr_assert_eq(number_of(all, 5, "records"), 4);
	json_decref(all);
}

Test(trace, whatever_a_text_holds_the_line_is_json)
{
	struct trace *trace = opened();
	struct trace_lane *lane = trace_lane(trace, "a\"b\\c\n");
	char longest[3 * TRACE_TEXT_MAX];
	memset(longest, 1, sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	trace_event(lane, "quote\"", "tab\t%s", "127.0.0.1 → ::1");
	trace_event(lane, "broken", "cut \xe2\x86");
	trace_event(lane, "overlong", "\xc0\xaf \xed\xa0\x80 \xff");
	trace_event(lane, "long", "%s", longest);
	trace_event(lane, longest, "long name");
	closed(trace);

	json_t *all = lines();
	cr_assert_str_eq(text_of(all, 1, "lane"), "a\"b\\c\n");
	cr_assert_str_eq(text_of(all, 1, "name"), "quote\"");
	cr_assert_str_eq(text_of(all, 1, "text"), "tab\t127.0.0.1 → ::1");
	cr_assert_eq(strncmp(text_of(all, 2, "text"), "cut \xef\xbf\xbd", 7), 0);
	cr_assert_eq(strncmp(text_of(all, 3, "text"), "\xef\xbf\xbd", 3), 0);
	cr_assert_eq(strlen(text_of(all, 4, "text")), TRACE_TEXT_MAX - 1);
	cr_assert_eq(number_of(all, 6, "records"), 5);
	json_decref(all);
}

Test(trace, what_was_told_is_in_the_file_or_counted_as_dropped)
{
	enum { TOLD = 400000 };
	struct trace *trace = opened();
	struct trace_lane *lane = trace_lane(trace, "flood");
	for (uint64_t i = 0; i < TOLD; i++)
		trace_run(lane, 0, i, 1, TRACE_RUN_PUSHED);
	closed(trace);

	json_t *all = lines();
	size_t end = json_array_size(all) - 1;
	json_int_t last = -1;
	cr_assert_eq((size_t)number_of(all, end, "records"), end - 1);
	cr_assert_eq(number_of(all, end, "records") + number_of(all, end, "dropped"), TOLD);
	for (size_t i = 1; i < end; i++) {
		cr_assert_gt(number_of(all, i, "first"), last);
		last = number_of(all, i, "first");
	}
	json_decref(all);
}

Test(trace, a_full_disk_ends_it_with_the_error_and_disturbs_nobody)
{
	struct trace *trace;
	struct jaunt_error error = {0};
	cr_assert_eq(trace_open(&trace, "/dev/full", &error), 0, "%s", error.text);
	struct trace_lane *lane = trace_lane(trace, "demand");
	while (!trace_failed(trace))
		trace_event(lane, "decision", "told until the writer noticed");
	cr_assert_eq(trace_failed(trace), ENOSPC);
	for (int i = 0; i < 100000; i++)
		trace_event(lane, "decision", "and told on");
	cr_assert_eq(trace_close(trace, &error), -ENOSPC);
	cr_assert_eq(error.code, ENOSPC);
	cr_assert(strstr(error.text, "/dev/full"));
}

Test(trace, a_full_disk_is_told_even_if_only_the_last_line_meets_it)
{
	struct trace *trace;
	struct jaunt_error error = {0};
	cr_assert_eq(trace_open(&trace, "/dev/full", &error), 0);
	cr_assert_eq(trace_close(trace, &error), -ENOSPC);
}

Test(trace, a_file_that_cannot_be_created_is_refused_at_once)
{
	struct trace *trace;
	struct jaunt_error error = {0};
	cr_assert_eq(trace_open(&trace, "/nonexistent/trace.jsonl", &error), -ENOENT);
	cr_assert_str_eq(error.reason, "trace-file");
	cr_assert(strstr(error.text, "/nonexistent/trace.jsonl"));
	cr_assert_null(trace);
	cr_assert_eq(trace_open(&trace, "/tmp", &error), -EISDIR);
}

Test(trace, a_pipe_is_refused_read_or_not)
{
	struct trace *trace;
	struct jaunt_error error = {0};
	unlink(path);
	cr_assert_eq(mkfifo(path, 0600), 0);
	cr_assert_eq(trace_open(&trace, path, &error), -EINVAL);
	cr_assert(strstr(error.text, "regular file"));
	int ends[2];
	char name[32];
	cr_assert_eq(pipe(ends), 0);
	snprintf(name, sizeof(name), "/dev/fd/%d", ends[1]);
	cr_assert_eq(trace_open(&trace, name, &error), -EINVAL);
}

Test(trace, lanes_and_their_memory_are_bounded)
{
	struct trace *trace = opened();
	uint64_t before = trace_bytes(trace);
	struct trace_lane *lane = trace_lane(trace, "first");
	cr_assert_leq(trace_bytes(trace), before + 512);
	trace_run(lane, 0, 0, 1, TRACE_RUN_ZERO);
	cr_assert_leq(trace_bytes(trace), before + 512 + TRACE_LANE_RECORDS * 48ul);
	for (unsigned i = 1; i < TRACE_LANES_MAX; i++) {
		char name[16];
		snprintf(name, sizeof(name), "more-%u", i);
		cr_assert_not_null(trace_lane(trace, name));
	}
	/* Who comes back after a lost connection takes the lane of its like. */
	cr_assert_eq(trace_lane(trace, "first"), lane);
	cr_assert_null(trace_lane(trace, "one too many"));
	closed(trace);
	json_t *all = lines();
	cr_assert_eq(number_of(all, json_array_size(all) - 1, "lanes_refused"), 1);
	json_decref(all);
}
