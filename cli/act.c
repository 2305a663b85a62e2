/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/act.h"

#include <errno.h>
#include <string.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/outcome.h"

enum jaunt_outcome act_ask(const char *command, const char *name, const char *request, bool follow,
			   enum jaunt_outcome *outcome, struct jaunt_status *status)
{
	struct jaunt_error error = {.code = 0};
	struct client client;
	enum jaunt_outcome result;

	*outcome = JAUNT_UNKNOWN;
	memset(status, 0, sizeof(*status));
	int opened = client_open(&client, name, &error);
	if (opened) {
		command_complain(command, error.text);
		return outcome_of_error(&error);
	}
	result = client_request(&client, json_pack("{s:s}", "command", request), NULL, &error);
	if (result == JAUNT_DONE && follow) {
		error.code = 0;
		*outcome = client_follow(&client, status, NULL, &error);
	}
	if (result != JAUNT_DONE || error.code)
		command_complain(command, error.text);
	client_close(&client);
	return result;
}
