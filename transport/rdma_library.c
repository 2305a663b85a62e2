/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/rdma_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"

static struct rdma_library library;
static struct jaunt_error failure; /* code 0: the library is open */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *open_one(const char *name, const char *package)
{
	void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);

	if (!handle)
		error_set(&failure, ENOSYS, "no-rdma",
			  "this host has no RDMA libraries (%s); install the packages %s and "
			  "ibverbs-providers, or use tcp:",
			  dlerror(), package);
	return handle;
}

/* A function pointer by way of an object pointer, as POSIX wants it from dlsym(). */
static void find(void *handle, const char *name, void *slot)
{
	void *symbol = dlsym(handle, name);

	if (!symbol && !failure.code)
		error_set(&failure, ENOSYS, "no-rdma",
			  "the RDMA libraries of this host lack %s; install rdma-core 28 or newer, "
			  "or use tcp:",
			  name);
	*(void **)slot = symbol;
}

static void open_library(void)
{
	/* rdma-core sets aside memory from fork() only when told to; children that Jaunt starts
	 * execute something else at once, and what devices write is marked MADV_DONTFORK. */
	void *verbs = open_one("libibverbs.so.1", "libibverbs1");
	void *cm = verbs ? open_one("librdmacm.so.1", "librdmacm1") : NULL;

	if (!cm)
		return;
#define RDMA_FIND(name) find(verbs, "ibv_" #name, &library.verbs.name);
	RDMA_VERBS_FUNCTIONS(RDMA_FIND)
#undef RDMA_FIND
#define RDMA_FIND(name) find(cm, "rdma_" #name, &library.cm.name);
	RDMA_CM_FUNCTIONS(RDMA_FIND)
#undef RDMA_FIND
}

const struct rdma_library *rdma_library(struct jaunt_error *error)
{
	pthread_once(&once, open_library);
	if (!failure.code)
		return &library;
	if (error)
		*error = failure;
	return NULL;
}
