/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Numbers are converted in place. Names go through getaddrinfo(), which has no timeout and may sit
 * on a dead name server for half a minute: it runs in a thread of its own, and a caller whose time
 * is up leaves the lookup to that thread, which frees it when it ends.
 */
#include "transport/resolve.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"

struct lookup {
	char host[256];
	char port[8];
	/* The rest is guarded by the lock. */
	pthread_mutex_t lock;
	pthread_cond_t finished;
	bool done, abandoned;
	int result, error; /* of getaddrinfo(); errno if that is EAI_SYSTEM */
	struct addrinfo *list;
};

static int look_up(const char *host, const char *port, int flags, struct addrinfo **list)
{
	const struct addrinfo hints = {
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | flags,
	};
	*list = NULL;
	return getaddrinfo(host, port, &hints, list);
}

static void lookup_free(struct lookup *lookup)
{
	pthread_mutex_destroy(&lookup->lock);
	pthread_cond_destroy(&lookup->finished);
	free(lookup);
}

static void *lookup_thread(void *argument)
{
	struct lookup *lookup = argument;
	struct addrinfo *list;

	int result = look_up(lookup->host, lookup->port, 0, &list);
	int error = result == EAI_SYSTEM ? errno : 0;
	pthread_mutex_lock(&lookup->lock);
	lookup->done = true;
	lookup->result = result;
	lookup->error = error;
	lookup->list = list;
	bool abandoned = lookup->abandoned;
	pthread_cond_signal(&lookup->finished);
	pthread_mutex_unlock(&lookup->lock);
	if (abandoned) {
		if (list)
			freeaddrinfo(list);
		lookup_free(lookup);
	}
	return NULL;
}

static struct lookup *lookup_start(const char *host, const char *port)
{
	struct lookup *lookup = calloc(1, sizeof(*lookup));
	pthread_condattr_t monotonic;
	pthread_attr_t detached;
	pthread_t thread;
	sigset_t all, before;

	if (!lookup)
		return NULL;
	snprintf(lookup->host, sizeof(lookup->host), "%s", host);
	snprintf(lookup->port, sizeof(lookup->port), "%s", port);
	pthread_mutex_init(&lookup->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&lookup->finished, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	/* The signals of the process belong to the program's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&thread, &detached, lookup_thread, lookup);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&detached);
	if (error) {
		lookup_free(lookup);
		return NULL;
	}
	return lookup;
}

/* Returns what getaddrinfo() did, or EAI_SYSTEM and *error ETIMEDOUT. */
static int lookup_name(const char *host, const char *port, uint32_t timeout_ms,
		       struct addrinfo **list, int *error)
{
	uint64_t deadline_ns = clock_ns() + (uint64_t)timeout_ms * 1000000;
	struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000),
				    .tv_nsec = (long)(deadline_ns % 1000000000)};
	struct lookup *lookup = lookup_start(host, port);
	if (!lookup)
		return EAI_MEMORY;
	pthread_mutex_lock(&lookup->lock);
	int waited = 0;
	while (!lookup->done && !waited)
		waited = pthread_cond_timedwait(&lookup->finished, &lookup->lock, &deadline);
	if (!lookup->done) {
		lookup->abandoned = true;
		pthread_mutex_unlock(&lookup->lock);
		*error = ETIMEDOUT;
		return EAI_SYSTEM;
	}
	int result = lookup->result;
	*error = lookup->error;
	*list = lookup->list;
	pthread_mutex_unlock(&lookup->lock);
	lookup_free(lookup);
	return result;
}

static void add_entry(struct resolved *out, const struct addrinfo *info)
{
	if (info->ai_family != AF_INET && info->ai_family != AF_INET6)
		return;
	if (out->count == RESOLVE_MAX || info->ai_addrlen > sizeof(out->entries[0].address))
		return;
	for (unsigned i = 0; i < out->count; i++)
		if (out->entries[i].bytes == info->ai_addrlen &&
		    !memcmp(&out->entries[i].address, info->ai_addr, info->ai_addrlen))
			return;
	memcpy(&out->entries[out->count].address, info->ai_addr, info->ai_addrlen);
	out->entries[out->count++].bytes = info->ai_addrlen;
}

static int report(const struct address *address, int result, int system_error, uint32_t timeout_ms,
		  struct jaunt_error *error)
{
	switch (result) {
	case EAI_AGAIN:
		return error_set(
			error, EAGAIN, "resolve",
			"cannot resolve '%s': the name service does not answer; try again, "
			"or give the address in numbers",
			address->host);
	case EAI_MEMORY:
		return error_set(error, ENOMEM, "resolve", "cannot resolve '%s': out of memory",
				 address->host);
	case EAI_SYSTEM:
		if (system_error == ETIMEDOUT)
			return error_set(
				error, ETIMEDOUT, "resolve",
				"cannot resolve '%s' within %u ms; check the name service, "
				"or give the address in numbers",
				address->host, timeout_ms);
		return error_set(error, system_error ? system_error : EIO, "resolve",
				 "cannot resolve '%s': %s", address->host, strerror(system_error));
	default:
		return error_set(error, ENOENT, "resolve",
				 "cannot resolve '%s': %s; check the spelling, or give the address "
				 "in numbers",
				 address->host, gai_strerror(result));
	}
}

int resolve_address(struct resolved *out, const struct address *address, uint32_t timeout_ms,
		    struct jaunt_error *error)
{
	struct addrinfo *list = NULL;
	char port[8];
	int system_error = 0;

	if (address->resolved.count) {
		*out = address->resolved;
		return 0;
	}
	snprintf(port, sizeof(port), "%u", address->port);
	int result = look_up(address->host, port, AI_NUMERICHOST, &list);
	if (result == EAI_NONAME)
		result = lookup_name(address->host, port, timeout_ms, &list, &system_error);
	if (result)
		return report(address, result, system_error, timeout_ms, error);
	memset(out, 0, sizeof(*out));
	for (const struct addrinfo *info = list; info; info = info->ai_next)
		add_entry(out, info);
	freeaddrinfo(list);
	return out->count ? 0 : report(address, EAI_NONAME, 0, timeout_ms, error);
}

void resolve_format(const struct sockaddr_storage *address, char text[RESOLVE_TEXT])
{
	char host[64], port[8];
	socklen_t bytes = address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
							 : sizeof(struct sockaddr_in);

	if (getnameinfo((const struct sockaddr *)address, bytes, host, sizeof(host), port,
			sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(text, RESOLVE_TEXT, "?");
	else
		snprintf(text, RESOLVE_TEXT, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

uint16_t *resolve_port(struct sockaddr_storage *address)
{
	return address->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)(void *)address)->sin6_port
					      : &((struct sockaddr_in *)(void *)address)->sin_port;
}

int resolve_rank(int error)
{
	switch (-error) {
	case EBUSY:
		return 4;
	case ECONNREFUSED:
		return 3;
	case ETIMEDOUT:
		return 2;
	case ENODEV:
	case ENETUNREACH:
	case EHOSTUNREACH:
	case EADDRNOTAVAIL:
	case EAFNOSUPPORT:
		return 0;
	default:
		return 1;
	}
}
