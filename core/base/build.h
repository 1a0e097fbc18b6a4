/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Which build of the program this is: the linker's build id (a hash of what was linked) as
 * hexadecimal digits, "unknown" without one. Used where bytes made by one build must not be read by
 * another. */
const char *build_id(void);
