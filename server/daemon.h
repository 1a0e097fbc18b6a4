/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The daemon as a whole: puts the parts together, waits for signals, takes them apart. Used by the
 * serve command. */

/* Runs until SIGTERM or SIGINT (drains; a second one ends at once); SIGHUP reloads log level, keys
 * and models. config may be NULL; overrides is NULL-terminated. Returns the exit code: 0, 1 (could
 * not start) or 2 (wrong settings). */
int daemon_serve(const char *config, const char *const *overrides);
