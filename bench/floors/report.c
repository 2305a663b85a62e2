/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors/report.h"
#include "bench/floors/program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

json_t *report_begin(const char *floor)
{
	struct utsname name;
	uname(&name);
	return json_pack("{s:i, s:s, s:s, s:s, s:i}", "schema", 1, "floor", floor, "kernel",
			 name.release, "machine", name.machine, "cpus",
			 (int)sysconf(_SC_NPROCESSORS_ONLN));
}

void report_print(json_t *report)
{
	if (!report || json_dumpf(report, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7)))
		program_fail("write the report");
	putchar('\n');
	json_decref(report);
	if (fflush(stdout))
		program_fail("write the report");
}

static int ascending(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;
	return (a > b) - (a < b);
}

/* Nearest rank: the smallest value that a share of at least `quantile` does not exceed. */
static double at_rank(const double *sorted, size_t count, double quantile)
{
	size_t rank = (size_t)ceil(quantile * (double)count);
	return sorted[rank ? rank - 1 : 0];
}

static double rounded(double value)
{
	return round(value * 1000) / 1000;
}

json_t *report_percentiles(double *values, size_t count)
{
	if (!count)
		return json_pack("{s:i}", "count", 0);
	qsort(values, count, sizeof(*values), ascending);
	return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "count", (json_int_t)count, "p50",
			 rounded(at_rank(values, count, 0.5)), "p90",
			 rounded(at_rank(values, count, 0.9)), "p99",
			 rounded(at_rank(values, count, 0.99)), "p999",
			 rounded(at_rank(values, count, 0.999)), "max", rounded(values[count - 1]));
}

json_t *report_values(const double *values, size_t count)
{
	json_t *array = json_array();
	for (size_t i = 0; i < count; i++)
		json_array_append_new(array, json_real(rounded(values[i])));
	return array;
}

double report_median(const double *values, size_t count)
{
	if (!count)
		return 0;
	double *sorted = malloc(count * sizeof(*sorted));
	if (!sorted)
		program_fail("median of %zu values", count);
	memcpy(sorted, values, count * sizeof(*sorted));
	qsort(sorted, count, sizeof(*sorted), ascending);
	double median =
		count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
	free(sorted);
	return median;
}
