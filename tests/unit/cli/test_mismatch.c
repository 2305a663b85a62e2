/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/mismatch.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

TestSuite(mismatch, .timeout = 30);

/* Inlined, it makes gcc 12 at -O3 take what open_memstream() allocates for a local of it. */
__attribute__((noinline)) static char *print(const char *text)
{
	json_t *list = json_loads(text, JSON_DECODE_ANY, NULL);
	char *printed = NULL;
	size_t bytes;
	FILE *out = open_memstream(&printed, &bytes);

	mismatch_print(out, list);
	fclose(out);
	json_decref(list);
	return printed;
}

Test(mismatch, is_shown_side_by_side_with_what_to_do)
{
	char *text =
		print("[{\"item\":\"vcpus\",\"source\":\"2\",\"target\":\"\",\"advice\":\"give "
		      "both the same -smp\",\"allowable\":false}]");
	char *row = strstr(text, "vcpus");

	cr_assert(row && strstr(row, "2") < strstr(row, "-"), "%s", text);
	cr_assert(strchr(row, '\n') < strstr(row, "-> give both the same -smp"), "%s", text);
	free(text);
}

Test(mismatch, has_long_values_on_lines_of_their_own_and_nothing_of_them_cut)
{
	char *text = print("[{\"item\":\"disk vda: image\",\"source\":\"/a/rather/long/path/of/a/"
			   "disk/at/the/source\",\"target\":\"/b\",\"advice\":\"x\"}]");

	cr_assert(strstr(text, "source: /a/rather/long/path/of/a/disk/at/the/source\n"), "%s",
		  text);
	cr_assert(strstr(text, "target: /b\n"), "%s", text);
	free(text);
}

Test(mismatch, of_a_peer_that_says_less_or_nonsense_is_shown_as_far_as_it_goes)
{
	char *text = print("[{\"item\":\"uuid\"},7,{\"source\":\"\\u001b[2J\"}]");

	cr_assert(strstr(text, "uuid"), "%s", text);
	cr_assert_null(strchr(text, '\x1b'));
	free(text);
	free(print("{}"));
	text = print("[]");
	cr_assert_neq(text[0], '\0');
	free(text);
}

Test(mismatch, of_no_migration_is_an_empty_list)
{
	json_t *list = mismatch_json(NULL);

	cr_assert_eq(json_array_size(list), 0);
	json_decref(list);
}
