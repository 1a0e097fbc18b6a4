/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* `jemd bench MODEL`: the engine's speed on this machine, without the daemon. argv[0] is the
 * command's name; returns the process's exit code. */
struct bench;
struct model;

int command_bench(int argc, char **argv);
/* `jemd bench --serve`: reads commands from standard input until its end. Used by command_bench. */
int bench_serve(struct bench *b, const struct model *m);
