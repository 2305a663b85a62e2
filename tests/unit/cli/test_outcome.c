/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/error.h"
#include "cli/outcome.h"

Test(outcome, a_wrong_option_is_a_matter_of_usage_and_a_lost_link_is_not)
{
	struct jaunt_error error = {0};

	error_set(&error, EINVAL, "bad-size", "0 bytes");
	cr_expect_eq(outcome_of_error(&error), JAUNT_USAGE);
	error_set(&error, ECONNRESET, "link-lost", "lost");
	cr_expect_eq(outcome_of_error(&error), JAUNT_FAILED);
}

Test(outcome, no_word_of_a_peer_makes_a_failed_migration_a_matter_of_usage)
{
	static const char *const words[] = {"bad-size", "bad-address", "insecure", "unknown-vm"};
	struct jaunt_error error = {0};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		error_set(&error, EPERM, words[i], "the target refuses: the peer is odd");
		cr_expect_eq(outcome_of_run(&error), JAUNT_FAILED, "refused: %s", words[i]);
		error_set(&error, EREMOTEIO, words[i], "the target gave up: the peer is odd");
		cr_expect_eq(outcome_of_run(&error), JAUNT_FAILED, "gave up: %s", words[i]);
	}
}

Test(outcome, an_address_that_the_engine_rejects_is_a_matter_of_usage)
{
	struct jaunt_error error = {0};

	error_set(&error, EINVAL, "bad-address", "'x' is no address");
	cr_expect_eq(outcome_of_run(&error), JAUNT_USAGE);
	error_set(&error, EPERM, "insecure", "the peer is beyond this host");
	cr_expect_eq(outcome_of_run(&error), JAUNT_USAGE);
}
