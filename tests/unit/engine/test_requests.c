/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/requests.h"

#include <criterion/criterion.h>
#include <stdlib.h>

TestSuite(requests, .timeout = 60);

static struct requests requests;

Test(requests, a_second_fault_on_a_page_joins_the_first)
{
	struct request *first, *second;

	cr_assert_eq(requests_enter(&requests, 3, 77, 1000, &first), REQUEST_NEW);
	cr_assert_eq(requests_enter(&requests, 3, 77, 2000, &second), REQUEST_JOINED);
	cr_assert_eq(first, second);
	cr_assert_eq(second->read_ns, 1000, "when the first of them was read");
	cr_assert_eq(requests.count, 1);
}

Test(requests, the_same_page_of_another_region_is_another_request)
{
	struct request *request;

	cr_assert_eq(requests_enter(&requests, 0, 5, 0, &request), REQUEST_NEW);
	cr_assert_eq(requests_enter(&requests, 1, 5, 0, &request), REQUEST_NEW);
	requests_remove(&requests, requests_find(&requests, 0, 5));
	cr_assert_null(requests_find(&requests, 0, 5));
	cr_assert_not_null(requests_find(&requests, 1, 5));
}

Test(requests, a_full_table_refuses_new_pages_and_still_joins_and_finds)
{
	struct request *request;

	for (uint64_t page = 0; page < REQUESTS_MAX; page++) {
		cr_assert_eq(requests_room(&requests), REQUESTS_MAX - page);
		cr_assert_eq(requests_enter(&requests, 0, page * 512, 0, &request), REQUEST_NEW);
	}
	cr_assert_eq(requests_room(&requests), 0);
	cr_assert_eq(requests_enter(&requests, 0, 1, 0, &request), REQUEST_FULL);
	cr_assert_eq(requests_enter(&requests, 0, 512, 0, &request), REQUEST_JOINED);
	cr_assert_null(requests_find(&requests, 0, 1));
	requests_remove(&requests, requests_find(&requests, 0, 512));
	cr_assert_eq(requests_enter(&requests, 0, 1, 0, &request), REQUEST_NEW);
}

Test(requests, removal_never_hides_another_request)
{
	enum { PAGES = 3000 };
	static bool entered[2][PAGES];
	unsigned count = 0;
	struct request *request;

	srand(7);
	for (unsigned round = 0; round < 60000; round++) {
		uint16_t region = (uint16_t)(rand() % 2);
		/* Two page sizes' worth of patterns: neighbours, and far apart. */
		uint64_t index = (uint64_t)(rand() % PAGES);
		uint64_t page = region ? index << 30 : index;
		request = requests_find(&requests, region, page);
		cr_assert_eq(!!request, entered[region][index]);
		if (request) {
			cr_assert_eq(request->page, page);
			cr_assert_eq(request->region, region);
			cr_assert_eq(request->read_ns, index);
			requests_remove(&requests, request);
			entered[region][index] = false;
			count--;
		} else if (requests_enter(&requests, region, page, index, &request) ==
			   REQUEST_NEW) {
			entered[region][index] = true;
			count++;
		} else {
			cr_assert_eq(count, REQUESTS_MAX);
		}
		cr_assert_eq(requests.count, count);
		if (round % 5000)
			continue;
		for (uint64_t i = 0; i < PAGES; i++) {
			cr_assert_eq(!!requests_find(&requests, 0, i), entered[0][i]);
			cr_assert_eq(!!requests_find(&requests, 1, i << 30), entered[1][i]);
		}
	}
	cr_assert_gt(count, REQUESTS_MAX / 2, "the table was not exercised");
}
