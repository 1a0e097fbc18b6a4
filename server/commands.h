/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The commands of `jemd` beside serve and eval. argv[0] is the command's name; each returns the
 * process's exit code: 0, 1 (failed; one sentence on stderr) or 2 (wrong usage). */

int command_serve(int argc, char **argv);   /* command_serve.c */
int command_check(int argc, char **argv);   /* command_check.c */
int command_info(int argc, char **argv);    /* command_info.c */
int command_predict(int argc, char **argv); /* command_predict.c */
int command_train(int argc, char **argv);
int command_judge(int argc, char **argv);
int command_key(int argc, char **argv); /* command_key.c */
