/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people type for sizes, rates, counts and times. Each parser takes the whole text or nothing,
 * and returns 0, or -EINVAL or -ERANGE with `error` saying what would have been understood.
 */
#ifndef CLI_QUANTITY_H
#define CLI_QUANTITY_H

#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

/* Bytes: "4096", "512M", "1.5G", "64MiB". K, M, G and T are powers of 1024, with or without "iB" or
 * "B". Zero is refused. */
int quantity_size(const char *text, uint64_t *bytes, struct jaunt_error *error);

/* Bytes per second: "125MB/s", "1Gbit", "100MiB/s", "250000". Prefixes are powers of 1000 as on
 * networks, "Ki", "Mi", "Gi", "Ti" of 1024. Zero is refused. */
int quantity_rate(const char *text, uint64_t *bytes_per_s, struct jaunt_error *error);

/* A whole number within limits; `what` names it in the error. */
int quantity_count(const char *what, const char *text, uint64_t least, uint64_t most,
		   uint64_t *count, struct jaunt_error *error);

/* Milliseconds from seconds: "10", "0.5", "250ms", "2s". 1 ms to an hour. */
int quantity_time_ms(const char *text, uint32_t *milliseconds, struct jaunt_error *error);

/* "on", "off". */
int quantity_switch(const char *what, const char *text, bool *on, struct jaunt_error *error);

#endif
