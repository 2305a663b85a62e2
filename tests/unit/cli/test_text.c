/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "cli/text.h"

static const char *clean(const char *from)
{
	static char to[64];
	text_clean(to, sizeof(to), from);
	return to;
}

Test(text, what_could_drive_a_terminal_does_not_get_through)
{
	cr_assert_str_eq(clean("a\033[2Jb\r\nc\177"), "a [2Jb  c ");
	cr_assert_str_eq(clean("\xc2\x9b"
			       "31m"),
			 "??31m"); /* CSI as one C1 character */
}

Test(text, what_is_not_utf8_is_replaced_and_what_is_stays)
{
	cr_assert_str_eq(clean("\xff\xfe"), "??");
	cr_assert_str_eq(clean("gr\xc3\xbc\xc3\x9f"), "gr\xc3\xbc\xc3\x9f");
	cr_assert_str_eq(clean("\xe2\x86"), "??");      /* cut short */
	cr_assert_str_eq(clean("\xc0\xaf"), "??");      /* overlong */
	cr_assert_str_eq(clean("\xed\xa0\x80"), "???"); /* a surrogate */
	cr_assert_str_eq(clean("\xf0\x9f\x90\x8e"), "\xf0\x9f\x90\x8e");
}

Test(text, a_long_text_ends_before_a_character_that_does_not_fit)
{
	char to[4];
	text_clean(to, sizeof(to), "ab\xe2\x86\x92");
	cr_assert_str_eq(to, "ab");
	text_clean(to, sizeof(to), "abcdef");
	cr_assert_str_eq(to, "abc");
	text_clean(to, 1, "abc");
	cr_assert_str_eq(to, "");
	text_clean(to, sizeof(to), NULL);
	cr_assert_str_eq(to, "");
}

Test(text, json_takes_any_bytes_and_any_number)
{
	json_t *string = text_json("\xff"
				   "a\n");
	cr_assert_str_eq(json_string_value(string), "?a ");
	json_decref(string);
	const double odd[] = {NAN, INFINITY, -INFINITY};
	for (size_t i = 0; i < 3; i++) {
		json_t *number = text_real(odd[i]);
		cr_assert(json_is_real(number));
		cr_assert_eq(json_real_value(number), 0.0);
		json_decref(number);
	}
}

Test(text, quantities_read_as_people_write_them)
{
	char to[TEXT_ROOM];
	cr_assert_str_eq(text_bytes(to, sizeof(to), 0), "0 bytes");
	cr_assert_str_eq(text_bytes(to, sizeof(to), 1536), "1.50 KiB");
	cr_assert_str_eq(text_bytes(to, sizeof(to), UINT64_C(1) << 40), "1.00 TiB");
	cr_assert_str_eq(text_bytes(to, sizeof(to), UINT64_C(300) << 20), "300 MiB");
	cr_assert_str_eq(text_bytes(to, sizeof(to), UINT64_MAX), "16.00 EiB");
	cr_assert_str_eq(text_rate(to, sizeof(to), 1.21e9), "1.21 GB/s");
	cr_assert_str_eq(text_rate(to, sizeof(to), NAN), "0 B/s");
	cr_assert_str_eq(text_microseconds(to, sizeof(to), 412), "412 us");
	cr_assert_str_eq(text_microseconds(to, sizeof(to), 1240), "1.24 ms");
	cr_assert_str_eq(text_microseconds(to, sizeof(to), 3.1e6), "3.10 s");
}

Test(text, distance_counts_letters_to_change)
{
	cr_assert_eq(text_distance("migrate", "migrate"), 0);
	cr_assert_eq(text_distance("migrat", "migrate"), 1);
	cr_assert_eq(text_distance("staus", "status"), 1);
	cr_assert_eq(text_distance("", "abc"), 3);
	cr_assert_eq(text_distance("kitten", "sitting"), 3);
	char longer[200];
	memset(longer, 'a', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	cr_assert_eq(text_distance(longer, "a"), 64);
}
