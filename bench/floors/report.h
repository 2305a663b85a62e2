/* SPDX-License-Identifier: Apache-2.0 */
/* What a floor program says: one JSON object on stdout, with percentiles of what it measured. */
#ifndef BENCH_FLOORS_REPORT_H
#define BENCH_FLOORS_REPORT_H

#include <jansson.h>
#include <stddef.h>

/* A new object with the floor's name, and the kernel, the CPUs and the machine it ran on. */
json_t *report_begin(const char *floor);
/* Prints the object as one line and frees it. */
void report_print(json_t *report);

/* Sorts the values and gives {"count", "p50", "p90", "p99", "p999", "max"}. */
json_t *report_percentiles(double *values, size_t count);
/* The values in their order, rounded to three decimals. */
json_t *report_values(const double *values, size_t count);
/* The median; leaves the values as they are. 0 of none. */
double report_median(const double *values, size_t count);

#endif
