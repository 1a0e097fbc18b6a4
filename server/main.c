/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd COMMAND …`: a table of commands. */
#include "base/fail.h"
#include "server/command_bench.h"
#include "server/command_eval.h"
#include "server/commands.h"

#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
};

static int command_help(int argc, char **argv);
static int command_version(int argc, char **argv);

static const struct command commands[] = {
    {"serve", command_serve, "run the daemon"},
    {"check", command_check, "check settings or model files without serving"},
    {"info", command_info, "print what is inside a model file"},
    {"predict", command_predict, "evaluate a model on a tensor file, offline"},
    {"train", command_train, "train a model by a recipe"},
    {"eval", command_eval, "measure and calibrate a model on labelled images"},
    {"judge", command_judge, "have a model's samples judged by a classifier"},
    {"bench", command_bench, "measure the engine on this machine"},
    {"key", command_key, "make an API key"},
    {"version", command_version, "print the version"},
    {"help", command_help, "print this"},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fprintf(out, "jemd serves joint energy-based models.\n\nusage: jemd COMMAND [OPTION]...\n\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\n`jemd COMMAND --help` tells more.\n");
}

static int command_help(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    print_help(stdout);
    return 0;
}

static int command_version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    puts("jemd " JEMD_VERSION);
    return 0;
}

int main(int argc, char **argv)
{
    const char *names[COMMANDS];
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
        word = "help";
    if (strcmp(word, "--version") == 0)
        word = "version";
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
        if (strcmp(word, names[i]) == 0)
            return commands[i].run(argc - 1, argv + 1);
    }
    const char *near = fail_nearest(word, names, COMMANDS);
    fprintf(stderr, "jemd: there is no command \"%s\"%s%s%s; see jemd help\n", word,
            near ? ", did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    return 2;
}
