/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/client.h"
#include "cli/runtime.h"
#include "cli/server.h"

static char directory[64];
static struct runtime_claim claim;
static struct server *server;
static unsigned served;

/* "follow" follows; everything else is answered with its own name. */
static void request(void *user, struct server_client *client, json_t *what)
{
	const char *command = json_string_value(json_object_get(what, "command"));
	served++;
	if (command && strcmp(command, "follow") == 0)
		server_follow(client);
	server_reply(client, json_pack("{s:b, s:s}", "ok", 1, "you-said", command ? command : ""));
}

static void set_up(void)
{
	const struct server_handler handler = {.request = request};

	snprintf(directory, sizeof(directory), "/tmp/jaunt-test-XXXXXX");
	cr_assert(mkdtemp(directory));
	setenv("JAUNT_RUNTIME_DIR", directory, 1);
	cr_assert_eq(runtime_claim(&claim, "web", NULL), 0);
	cr_assert_eq(server_open(&server, &handler, NULL), 0);
	server_listen(server, claim.listen_fd);
}

static void tear_down(void)
{
	server_close(server);
	runtime_release(&claim);
	rmdir(directory);
}

TestSuite(server, .init = set_up, .fini = tear_down, .timeout = 30);

static void turn(unsigned times)
{
	while (times--)
		cr_assert_eq(server_poll(server, NULL, 0, 0), 0);
}

static struct client join(void)
{
	struct client client;
	cr_assert_eq(client_open(&client, "web", NULL), 0);
	return client;
}

static void say(struct client *client, const char *text)
{
	cr_assert_eq(write(client->lines.fd, text, strlen(text)), (ssize_t)strlen(text));
}

/* Waits in turns for an answer, so that neither side blocks the other. */
static json_t *hear(struct client *client)
{
	json_t *object = NULL;
	for (unsigned i = 0; i < 1000; i++) {
		turn(1);
		if (client_event(client, 0, -1, &object) != 0)
			return object;
	}
	return NULL;
}

static bool says(struct client *client, const char *expected)
{
	json_t *object = hear(client);
	const char *said = json_string_value(json_object_get(object, "you-said"));
	bool same = said && strcmp(said, expected) == 0;
	json_decref(object);
	return same;
}

Test(server, a_request_is_answered)
{
	struct client client = join();
	say(&client, "{\"command\":\"hello\"}\n");
	cr_assert(says(&client, "hello"));
	client_close(&client);
}

Test(server, a_half_written_request_keeps_nobody_waiting)
{
	struct client half = join(), whole = join();

	say(&half, "{\"command\":");
	say(&whole, "{\"command\":\"hello\"}\n");
	cr_assert(says(&whole, "hello"));
	say(&half, "\"late\"}\n");
	cr_assert(says(&half, "late"));
	client_close(&half);
	client_close(&whole);
}

Test(server, garbage_is_refused_and_the_rest_served)
{
	struct client bad = join(), good = join();

	say(&bad, "GET / HTTP/1.1\r\n");
	json_t *refusal = hear(&bad);
	cr_assert(json_is_false(json_object_get(refusal, "ok")));
	json_decref(refusal);
	cr_assert_null(hear(&bad)); /* and closed */
	say(&good, "{\"command\":\"hello\"}\n");
	cr_assert(says(&good, "hello"));
	client_close(&bad);
	client_close(&good);
}

Test(server, forgotten_connections_cannot_lock_an_operator_out)
{
	struct client forgotten[SERVER_CLIENTS_MAX + 20];

	for (size_t i = 0; i < sizeof(forgotten) / sizeof(forgotten[0]); i++) {
		forgotten[i] = join();
		turn(1);
	}
	struct client operator= join();
	say(&operator, "{\"command\":\"hello\"}\n");
	cr_assert(says(&operator, "hello"));
	client_close(&operator);
	for (size_t i = 0; i < sizeof(forgotten) / sizeof(forgotten[0]); i++)
		client_close(&forgotten[i]);
}

Test(server, a_follower_that_does_not_read_is_skipped_and_then_told_the_end)
{
	struct client follower = join();
	json_t *object;
	unsigned heard = 0;

	say(&follower, "{\"command\":\"follow\"}\n");
	cr_assert(says(&follower, "follow"));
	cr_assert(server_has_followers(server));
	for (unsigned i = 0; i < 20000; i++)
		server_broadcast(server, json_pack("{s:s, s:i}", "event", "status", "i", i), true,
				 false);
	server_broadcast(server, json_pack("{s:s}", "event", "end"), false, true);
	cr_assert_not(server_has_followers(server));
	while ((object = hear(&follower))) {
		const char *event = json_string_value(json_object_get(object, "event"));
		bool end = event && strcmp(event, "end") == 0;
		heard++;
		json_decref(object);
		if (end)
			break;
	}
	cr_assert(object, "the end was not heard");
	cr_assert_lt(heard, 20000);
	client_close(&follower);
}

Test(server, a_follower_that_goes_away_is_forgotten)
{
	struct client follower = join();

	say(&follower, "{\"command\":\"follow\"}\n");
	cr_assert(says(&follower, "follow"));
	client_close(&follower);
	for (unsigned i = 0; i < 1000 && server_has_followers(server); i++)
		turn(1);
	cr_assert_not(server_has_followers(server));
}

Test(server, a_poll_that_fails_is_told_of_and_loses_nobody)
{
	struct client client = join();
	struct pollfd own = {.fd = claim.listen_fd, .events = POLLIN, .revents = POLLIN};
	struct rlimit before, few;

	turn(2);
	say(&client, "{\"command\":\"hello\"}\n");
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = (struct rlimit){.rlim_cur = 2, .rlim_max = before.rlim_max};
	/* poll() takes no more descriptors than a process may have. */
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	cr_assert_eq(server_poll(server, &own, 1, -1), -EINVAL);
	cr_assert_eq(own.revents, 0, "the caller's own were not looked at");
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	cr_assert(says(&client, "hello"));
	client_close(&client);
}

Test(server, a_client_learns_that_the_owner_is_gone)
{
	struct client client = join();
	json_t *object = NULL;

	turn(2);
	server_close(server);
	server = NULL;
	cr_assert_eq(client_event(&client, 1000, -1, &object), -EPIPE);
	client_close(&client);
}

Test(server, many_requests_on_one_connection_are_all_answered)
{
	struct client client = join();

	for (unsigned i = 0; i < 100; i++)
		say(&client, "{\"command\":\"again\"}\n");
	for (unsigned i = 0; i < 100; i++)
		cr_assert(says(&client, "again"));
	cr_assert_eq(served, 100);
	client_close(&client);
}
