/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/zero.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

TestSuite(zero, .timeout = 60);

Test(zero, memory_of_zeros_is_zero_at_every_length)
{
	static uint8_t bytes[8192];

	for (size_t length = 64; length <= sizeof(bytes); length += 64)
		cr_assert(zero_check(bytes, length));
}

Test(zero, one_bit_anywhere_is_seen)
{
	static uint8_t bytes[4096];

	for (size_t i = 0; i < sizeof(bytes); i++) {
		bytes[i] = (uint8_t)(1u << (i % 8));
		cr_assert_not(zero_check(bytes, sizeof(bytes)), "byte %zu", i);
		bytes[i] = 0;
	}
}

Test(zero, what_lies_around_does_not_count)
{
	/* On the heap, so that the address sanitizer sees a read beyond either end. */
	for (size_t length = 64; length <= 1024; length += 64) {
		uint8_t *bytes = malloc(length + 16);
		memset(bytes, 0xff, length + 16);
		memset(bytes + 8, 0, length);
		cr_assert(zero_check(bytes + 8, length));
		free(bytes);
		bytes = calloc(1, length);
		cr_assert(zero_check(bytes, length));
		free(bytes);
	}
}

Test(zero, a_huge_page_is_looked_at_to_its_end)
{
	size_t length = 2u << 20;
	uint8_t *bytes = calloc(1, length);

	cr_assert(zero_check(bytes, length));
	bytes[length - 1] = 1;
	cr_assert_not(zero_check(bytes, length));
	free(bytes);
}
