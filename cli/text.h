/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text for people and for JSON. What comes from a peer or another process may hold anything:
 * nothing of it reaches a terminal or a JSON string before text_clean().
 */
#ifndef CLI_TEXT_H
#define CLI_TEXT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Copies `from`, bounded and terminated: control characters become spaces, what is not UTF-8 '?'.
 */
void text_clean(char *to, size_t room, const char *from);

/* A clean JSON string; NULL becomes "". */
json_t *text_json(const char *from);

/* A JSON number; what is not finite becomes 0. */
json_t *text_real(double value);

/* The last line of stdout. Takes the reference. */
void text_print_json(json_t *object);

/* These return `to`, so that they can stand in an argument list. */
char *text_bytes(char *to, size_t room, uint64_t bytes);    /* "1.50 GiB" */
char *text_rate(char *to, size_t room, double bytes_per_s); /* "1.21 GB/s" */
char *text_microseconds(char *to, size_t room, double us);  /* "412 us", "1.24 ms", "3.1 s" */
#define TEXT_ROOM 32

/* Edit distance, bounded: for "did you mean". */
size_t text_distance(const char *a, const char *b);

#endif
