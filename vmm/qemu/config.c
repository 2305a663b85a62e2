/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/config.h"

#include <errno.h>

#include "base/error.h"

int config_collect(struct facts *facts, struct qmp *qmp, unsigned timeout_ms,
		   struct jaunt_error *error)
{
	*facts = (struct facts){.all = NULL};
	facts_add(facts, "facts", "1");
	facts_add(facts, "qemu version", "%u.%u.%u", qmp_version(qmp) / 10000,
		  qmp_version(qmp) / 100 % 100, qmp_version(qmp) % 100);
	if (facts->lost)
		return error_set(error, E2BIG, "bad-description",
				 "QEMU has more than Jaunt can describe");
	facts_sort(facts);
	return 0;
}
