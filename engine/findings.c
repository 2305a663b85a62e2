/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/findings.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/bits.h"
#include "base/room.h"

struct jaunt_check *findings_add(struct findings *findings, const char *name, enum need need,
				 bool ok)
{
	struct jaunt_check *check = findings->count < findings->room
					    ? &findings->checks[findings->count++]
					    : &findings->beyond;
	*check = (struct jaunt_check){.name = name, .ok = ok, .required = need == REQUIRED};
	return check;
}

void finding_found(struct jaunt_check *check, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(check->found, sizeof(check->found), format, arguments);
	va_end(arguments);
}

void finding_advise(struct jaunt_check *check, const char *format, ...)
{
	va_list arguments;
	if (check->ok)
		return;
	va_start(arguments, format);
	vsnprintf(check->advice, sizeof(check->advice), format, arguments);
	va_end(arguments);
}

struct amount finding_amount(uint64_t bytes)
{
	struct amount amount;
	if (bytes == ROOM_UNLIMITED)
		snprintf(amount.text, sizeof(amount.text), "unlimited");
	else if (bytes >= GIB(1))
		snprintf(amount.text, sizeof(amount.text), "%.1f GiB",
			 (double)bytes / (double)GIB(1));
	else if (bytes >= MIB(1))
		snprintf(amount.text, sizeof(amount.text), "%.1f MiB",
			 (double)bytes / (double)MIB(1));
	else
		snprintf(amount.text, sizeof(amount.text), "%llu KiB",
			 (unsigned long long)(bytes >> 10));
	return amount;
}
