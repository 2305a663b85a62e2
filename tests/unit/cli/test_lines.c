/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/lines.h"

static struct lines lines;
static int other;

static void set_up(void)
{
	int pair[2];
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	cr_assert_eq(lines_open(&lines, pair[0]), 0);
	other = pair[1];
}

static void tear_down(void)
{
	lines_close(&lines);
	close(other);
}

TestSuite(lines, .init = set_up, .fini = tear_down, .timeout = 20);

static void feed(const char *text)
{
	cr_assert_eq(write(other, text, strlen(text)), (ssize_t)strlen(text));
	cr_assert_eq(lines_fill(&lines), 1);
}

Test(lines, an_object_is_there_when_its_line_is)
{
	json_t *object = NULL;

	feed("{\"a\":");
	cr_assert_eq(lines_take(&lines, &object), 0);
	feed("1}\n{\"a\":2}\n{");
	cr_assert_eq(lines_take(&lines, &object), 1);
	cr_assert_eq(json_integer_value(json_object_get(object, "a")), 1);
	json_decref(object);
	cr_assert_eq(lines_take(&lines, &object), 1);
	cr_assert_eq(json_integer_value(json_object_get(object, "a")), 2);
	json_decref(object);
	cr_assert_eq(lines_take(&lines, &object), 0);
}

Test(lines, what_is_no_object_is_an_error)
{
	static const char *const wrong[] = {"GET / HTTP/1.1\n",    "[1]\n", "\n", "{\"a\":1}x\n",
					    "{\"a\":1,\"a\":2}\n", "17\n"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		json_t *object = NULL;
		feed(wrong[i]);
		cr_expect_eq(lines_take(&lines, &object), -EPROTO, "%s", wrong[i]);
		cr_expect_null(object);
	}
}

Test(lines, deep_nesting_is_an_error_and_no_overrun)
{
	json_t *object = NULL;
	char deep[10002];

	memset(deep, '[', sizeof(deep));
	deep[10000] = '\n';
	deep[10001] = '\0';
	feed(deep);
	cr_assert_eq(lines_take(&lines, &object), -EPROTO);
}

Test(lines, a_line_that_never_ends_is_an_error)
{
	static char much[LINES_IN_MAX];
	json_t *object;

	memset(much, ' ', sizeof(much));
	size_t fed = 0;
	while (fed < sizeof(much)) {
		ssize_t sent = write(other, much + fed, sizeof(much) - fed);
		cr_assert_gt(sent, 0);
		fed += (size_t)sent;
		while (lines.in_bytes < fed)
			cr_assert_eq(lines_fill(&lines), 1);
	}
	cr_assert_eq(lines_take(&lines, &object), -EMSGSIZE);
}

Test(lines, what_the_other_side_does_not_read_is_bounded)
{
	int result = 0;
	unsigned put = 0;

	while (!result && put < 100000) {
		char text[1001];
		memset(text, 'x', 1000);
		text[1000] = '\0';
		result = lines_put(&lines, json_pack("{s:s}", "text", text));
		put++;
	}
	cr_assert_eq(result, -ENOBUFS);
	cr_assert_leq(lines.out_bytes, LINES_OUT_MAX);
}

Test(lines, what_was_queued_arrives_whole_and_in_order)
{
	struct lines peer;
	int taken = 0;

	cr_assert_eq(lines_open(&peer, dup(other)), 0);
	for (int i = 0; i < 2000; i++)
		cr_assert_eq(
			lines_put(&lines,
				  json_pack("{s:i, s:s}", "i", i, "pad",
					    "................................................")),
			0);
	while (taken < 2000) {
		json_t *object;
		cr_assert_eq(lines_flush(&lines), 0);
		cr_assert_geq(lines_fill(&peer), 0);
		while (lines_take(&peer, &object) == 1) {
			cr_assert_eq(json_integer_value(json_object_get(object, "i")), taken);
			json_decref(object);
			taken++;
		}
	}
	lines_close(&peer);
}

Test(lines, a_closed_socket_is_told)
{
	close(other);
	other = -1;
	cr_assert_eq(lines_fill(&lines), -EPIPE);
}
