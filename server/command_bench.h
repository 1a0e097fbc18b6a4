/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* `jemd bench MODEL`: the engine's speed on this machine, without the daemon. argv[0] is the
 * command's name; returns the process's exit code. */
int command_bench(int argc, char **argv);
