/* SPDX-License-Identifier: Apache-2.0 */
/* make_corpus RECORDING CHANNEL FOLDER: writes the seeds as files, the way libFuzzer wants them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

int main(int argc, char **argv)
{
	static struct corpus corpus;

	if (argc != 4) {
		fprintf(stderr, "usage: make_corpus RECORDING CHANNEL FOLDER\n");
		return 2;
	}
	int rc = corpus_read(&corpus, argv[1], argv[2]);
	if (rc) {
		fprintf(stderr, "make_corpus: %s: %s\n", argv[1], strerror(-rc));
		return 1;
	}
	if (mkdir(argv[3], 0777) && errno != EEXIST) {
		perror(argv[3]);
		return 1;
	}
	for (size_t i = 0; i < corpus.count; i++) {
		char path[4096];
		snprintf(path, sizeof(path), "%s/seed-%03zu", argv[3], i);
		FILE *file = fopen(path, "w");
		if (!file ||
		    fwrite(corpus.seeds[i].data, 1, corpus.seeds[i].bytes, file) !=
			    corpus.seeds[i].bytes ||
		    fclose(file)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}
