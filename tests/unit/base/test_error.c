/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"

Test(error, set_fills_everything_and_returns_the_negative_code)
{
	struct jaunt_error error = {0};
	cr_assert_eq(
		error_set(&error, ECONNREFUSED, "connect-refused", "connect to %s: %d", "x", 7),
		-ECONNREFUSED);
	cr_assert_eq(error.code, ECONNREFUSED);
	cr_assert_str_eq(error.reason, "connect-refused");
	cr_assert_str_eq(error.text, "connect to x: 7");
}

Test(error, nobody_interested_is_no_reason_to_crash)
{
	cr_assert_eq(error_set(NULL, EIO, "io", "text"), -EIO);
	cr_assert_lt(error_context(NULL, "context"), 0);
	error_clear(NULL);
}

Test(error, context_goes_in_front_and_keeps_code_and_reason)
{
	struct jaunt_error error = {0};
	error_set(&error, EPIPE, "link-lost", "no answer");
	cr_assert_eq(error_context(&error, "read %d", 3), -EPIPE);
	cr_assert_eq(error_context(&error, "migrate web"), -EPIPE);
	cr_assert_str_eq(error.text, "migrate web: read 3: no answer");
	cr_assert_str_eq(error.reason, "link-lost");
	cr_assert_eq(error.code, EPIPE);
}

Test(error, what_is_too_long_is_cut_and_still_ends)
{
	struct jaunt_error error;
	char text[2 * sizeof(error.text)];

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	memset(&error, 0x55, sizeof(error));
	error_set(&error, EIO, text, "%s", text);
	cr_assert_eq(strlen(error.text), sizeof(error.text) - 1);
	cr_assert_eq(strlen(error.reason), sizeof(error.reason) - 1);
	error_context(&error, "here");
	cr_assert_eq(strlen(error.text), sizeof(error.text) - 1);
	cr_assert_eq(strncmp(error.text, "here: xxx", 9), 0);
	error_context(&error, "%s", text);
	cr_assert_eq(strlen(error.text), sizeof(error.text) - 1);
	cr_assert_eq(error.text[0], 'x');
}

Test(error, clear_leaves_no_error)
{
	struct jaunt_error error = {0};
	error_set(&error, EIO, "io", "text");
	error_clear(&error);
	cr_assert_eq(error.code, 0);
	cr_assert_str_eq(error.reason, "");
	cr_assert_str_eq(error.text, "");
}
