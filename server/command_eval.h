/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* `jemd eval`: measures a model on labelled images and, with --fit, calibrates it. argv[0] is the
 * command's name. Returns the process's exit code: 0, 1 (failed; one sentence on stderr) or
 * 2 (wrong usage). */
int command_eval(int argc, char **argv);
