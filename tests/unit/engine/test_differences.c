/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/differences.h"

#include <criterion/criterion.h>
#include <string.h>

TestSuite(differences, .timeout = 30);

static const struct jaunt_difference told[] = {
	{"uuid", "a", "b", "give both the same", true},
	{"device net0", "", "e1000", "plug it in", false},
};

Test(differences, come_out_of_a_refusal_as_they_went_in)
{
	Jaunt__Refused refused = JAUNT__REFUSED__INIT;
	struct differences taken;

	differences_tell(&refused, told, 2);
	cr_assert_eq(refused.n_differences, 2);
	cr_assert_eq(differences_take(&taken, &refused), 0);
	differences_untell(&refused);
	cr_assert_eq(refused.n_differences, 0);
	cr_assert_eq(taken.count, 2);
	for (size_t i = 0; i < 2; i++) {
		cr_assert_str_eq(taken.all[i].item, told[i].item);
		cr_assert_str_eq(taken.all[i].source, told[i].source);
		cr_assert_str_eq(taken.all[i].target, told[i].target);
		cr_assert_str_eq(taken.all[i].advice, told[i].advice);
		cr_assert_eq(taken.all[i].allowable, told[i].allowable);
	}
	differences_close(&taken);
}

Test(differences, may_be_none)
{
	Jaunt__Refused refused = JAUNT__REFUSED__INIT;
	struct differences taken;

	differences_tell(&refused, NULL, 0);
	cr_assert_eq(differences_take(&taken, &refused), 0);
	cr_assert_eq(taken.count, 0);
	differences_untell(&refused);
	differences_close(&taken);
}
