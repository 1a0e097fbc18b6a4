/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The number of an option of a command: 0 and *out, or -1 and a line on standard error when the text
 * is none from min to max. */
int option_number(const char *command, const char *text, long min, long max, long *out);
