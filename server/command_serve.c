/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd serve [--config FILE] [--section.key=value]...` */
#include "server/commands.h"
#include "server/daemon.h"
#include "server/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void usage(FILE *out)
{
    fprintf(out,
            "usage: jemd serve [--config FILE] [--SECTION.KEY=VALUE]...\n\n"
            "Runs the daemon in the foreground; it logs to stderr. SIGTERM or SIGINT drains and\n"
            "ends it, SIGHUP reloads log level, keys and models.\n\n"
            "  --config FILE          settings file (INI)\n"
            "  --SECTION.KEY=VALUE    one setting, over environment and file\n"
            "  --settings             print every setting with its effective value and source\n"
            "  --defaults             print a commented settings file with the defaults\n"
            "  --reference            print the reference of all settings as Markdown\n");
}

struct arguments {
    const char *config;
    const char **overrides; /* NULL-terminated */
    int n_overrides;
    const char *print; /* --settings, --defaults, --reference or NULL */
};

/* 0, or 2 after a word on stderr. */
static int parse(int argc, char **argv, struct arguments *a)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--config") == 0 && i + 1 < argc) {
            a->config = argv[++i];
        } else if (strncmp(word, "--config=", 9) == 0) {
            a->config = word + 9;
        } else if (strcmp(word, "--settings") == 0 || strcmp(word, "--defaults") == 0 ||
                   strcmp(word, "--reference") == 0) {
            a->print = word;
        } else if (strncmp(word, "--", 2) == 0 && strchr(word, '.') && strchr(word, '=')) {
            a->overrides[a->n_overrides++] = word + 2;
        } else {
            fprintf(stderr, "jemd serve: cannot read \"%s\" (a setting is --section.key=value)\n",
                    word);
            return 2;
        }
    }
    return 0;
}

int command_serve(int argc, char **argv)
{
    struct arguments a = {0};
    struct err e;
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        usage(stdout);
        return 0;
    }
    a.overrides = calloc((size_t)argc + 1, sizeof *a.overrides);
    int rc = a.overrides ? parse(argc, argv, &a) : 1;
    if (rc == 0 && !a.print)
        rc = daemon_serve(a.config, a.overrides);
    else if (rc == 0 && strcmp(a.print, "--defaults") == 0)
        settings_print_defaults(stdout);
    else if (rc == 0 && strcmp(a.print, "--reference") == 0)
        settings_print_reference(stdout);
    else if (rc == 0 && settings_print_effective(stdout, a.config, a.overrides, &e) != 0) {
        fprintf(stderr, "jemd serve: %s\n", e.text);
        rc = 2;
    }
    free(a.overrides);
    return rc;
}
