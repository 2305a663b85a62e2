/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/tracefile.h"

Test(tracefile, a_full_disk_is_found_out_before_anything_moves)
{
	struct jaunt_error error = {.code = 0};

	cr_assert_eq(tracefile_check("/dev/full", &error), -ENOSPC);
	cr_assert_str_eq(error.reason, "no-space");
}

Test(tracefile, a_directory_that_is_not_there_is_named)
{
	struct jaunt_error error = {.code = 0};

	cr_assert_eq(tracefile_check("/no/such/run.jsonl", &error), -ENOENT);
	cr_assert(strstr(error.text, "/no/such/run.jsonl"));
}

Test(tracefile, a_file_that_can_be_written_is_left_as_it_was)
{
	char path[] = "/tmp/jaunt-trace-XXXXXX";
	struct stat status;
	int fd = mkstemp(path);

	cr_assert_eq(write(fd, "hello", 5), 5);
	cr_assert_eq(tracefile_check(path, NULL), 0);
	cr_assert_eq(fstat(fd, &status), 0);
	cr_assert_eq(status.st_size, 5);
	cr_assert_lt(status.st_blocks, 64);
	close(fd);
	unlink(path);
}

Test(tracefile, a_relative_name_becomes_absolute_for_the_other_process)
{
	struct jaunt_error error;
	char *path;

	cr_assert_eq(chdir("/tmp"), 0);
	cr_assert_eq(tracefile_absolute(&path, "a.jsonl", &error), 0);
	cr_assert_str_eq(path, "/tmp/a.jsonl");
	free(path);
	cr_assert_eq(tracefile_absolute(&path, "/x/b", &error), 0);
	cr_assert_str_eq(path, "/x/b");
	free(path);
	cr_assert_lt(tracefile_absolute(&path, "", &error), 0);
}
