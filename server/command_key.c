/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd key new NAME --scopes a,b` */
#include "server/auth.h"
#include "server/commands.h"

#include <stdio.h>
#include <string.h>

static void usage(FILE *out)
{
    fprintf(out, "usage: jemd key new NAME --scopes SCOPE[,SCOPE...]\n\n"
                 "Makes an API key: prints the token (to stderr, once; jemd does not keep it) and\n"
                 "the line for the keys file (to stdout):\n\n"
                 "  jemd key new alice --scopes predict,sample,read >> /etc/jemd/keys\n\n"
                 "Scopes: predict, sample, train, read, metrics, admin.\n");
}

int command_key(int argc, char **argv)
{
    char token[AUTH_TOKEN], line[AUTH_LINE];
    unsigned scopes;
    struct err e;
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return 0;
    }
    if (argc != 5 || strcmp(argv[1], "new") != 0 || strcmp(argv[3], "--scopes") != 0) {
        usage(stderr);
        return 2;
    }
    if (auth_parse_scopes(argv[4], &scopes, &e) != 0 ||
        auth_new_key(argv[2], scopes, token, line, &e) != 0) {
        fprintf(stderr, "jemd key: %s\n", e.text);
        return 1;
    }
    fprintf(stderr, "token (send it as \"Authorization: Bearer TOKEN\"): %s\n", token);
    puts(line);
    return 0;
}
