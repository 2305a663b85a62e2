/* SPDX-License-Identifier: Apache-2.0 */
/* The findings of jaunt_doctor(), as its files write them. */
#ifndef ENGINE_FINDINGS_H
#define ENGINE_FINDINGS_H

#include <stddef.h>

#include "jaunt.h"

struct findings {
	struct jaunt_check *checks;
	size_t room, count;
	struct jaunt_check beyond; /* where those go that there is no room for */
};

enum need { OPTIONAL, REQUIRED };

struct jaunt_check *findings_add(struct findings *findings, const char *name, enum need need,
				 bool ok);
void finding_found(struct jaunt_check *check, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Kept only if the finding is not as it should be. */
void finding_advise(struct jaunt_check *check, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

struct amount {
	char text[32];
};

/* "2.5 GiB", "unlimited" */
struct amount finding_amount(uint64_t bytes);

/* RDMA: library, devices and ports, memory that may be registered (doctor_rdma.c). `exempt`: from
 * the limit of locked memory. */
void doctor_rdma(struct findings *findings, bool exempt);

#endif
