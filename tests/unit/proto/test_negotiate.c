/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "proto/control.h"

/* Strings that a message is lent; protobuf-c wants them writable and does not write. */
#define TEXT(literal) ((char *)(uintptr_t)(literal))

static Jaunt__Hello hello_of(uint32_t min, uint32_t max)
{
	Jaunt__Hello hello = JAUNT__HELLO__INIT;
	hello.protocol_min = min;
	hello.protocol_max = max;
	hello.software = TEXT("jaunt 9.9");
	return hello;
}

Test(negotiate, takes_the_newest_version_that_both_speak)
{
	Jaunt__Hello mine = hello_of(1, 3), theirs = hello_of(2, 7);

	cr_expect(eq(int, control_negotiate(&mine, &theirs, NULL), 3));
	cr_expect(eq(int, control_negotiate(&theirs, &mine, NULL), 3));
	theirs = hello_of(1, 1);
	cr_expect(eq(int, control_negotiate(&mine, &theirs, NULL), 1));
}

Test(negotiate, refuses_with_both_ranges_when_they_do_not_meet)
{
	Jaunt__Hello mine = hello_of(1, 2), theirs = hello_of(5, 6);
	struct jaunt_error error = {0};

	cr_expect(eq(int, control_negotiate(&mine, &theirs, &error), -EPROTONOSUPPORT));
	cr_expect_str_eq(error.reason, "version-mismatch");
	cr_expect(strstr(error.text, "1 to 2") && strstr(error.text, "5 to 6") &&
			  strstr(error.text, "jaunt 9.9"),
		  "%s", error.text);
	cr_expect(eq(int, control_negotiate(&theirs, &mine, &error), -EPROTONOSUPPORT));
}

Test(negotiate, refuses_a_side_that_lacks_what_the_other_needs)
{
	Jaunt__Hello mine = hello_of(1, 1), theirs = hello_of(1, 1);
	char *has[] = {TEXT("verify"), TEXT("told")}, *needs[] = {TEXT("told"), TEXT("warp")};
	struct jaunt_error error = {0};

	mine.features = has;
	mine.n_features = 2;
	theirs.required = needs;
	theirs.n_required = 1;
	cr_expect(eq(int, control_negotiate(&mine, &theirs, &error), 1));
	theirs.n_required = 2;
	cr_expect(eq(int, control_negotiate(&mine, &theirs, &error), -EPROTONOSUPPORT));
	cr_expect_str_eq(error.reason, "feature-missing");
	cr_expect(strstr(error.text, "warp") != NULL, "%s", error.text);
	error = (struct jaunt_error){0};
	cr_expect(eq(int, control_negotiate(&theirs, &mine, &error), -EPROTONOSUPPORT));
	cr_expect(strstr(error.text, "warp") != NULL, "%s", error.text);
}
