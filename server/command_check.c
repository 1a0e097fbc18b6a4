/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd check`: settings and model files, without serving. */
#include "base/timing.h"
#include "server/commands.h"
#include "server/models.h"
#include "server/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: jemd check [--verify] [--cache DIR] [MODEL.safetensors]...\n"
        "       jemd check --config FILE [--SECTION.KEY=VALUE]...\n\n"
        "With model files: opens each as the daemon would, runs its self-test, prints digest and\n"
        "loading time. With --config: prints every setting with its effective value and where it\n"
        "comes from.\n\n"
        "  --verify      read the whole file and recompute the digest, whatever is cached\n"
        "  --cache DIR   directory of cached digests (models.cache of the settings)\n");
}

static int check_settings(int argc, char **argv)
{
    const char *config = NULL;
    struct err e;
    int n = 0;
    const char **overrides = calloc((size_t)argc + 1, sizeof *overrides);
    if (!overrides)
        return 1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            config = argv[++i];
        else if (strncmp(argv[i], "--", 2) == 0)
            overrides[n++] = argv[i] + 2;
    }
    const int rc = settings_print_effective(stdout, config, overrides, &e);
    if (rc != 0)
        fprintf(stderr, "jemd check: %s\n", e.text);
    free(overrides);
    return rc != 0;
}

static int check_model(const char *path, const char *cache, bool verify)
{
    struct model *m = NULL;
    struct err e;
    const int64_t begin = timing_ns();
    int rc = model_open(&m, path, cache, verify, &e);
    const double ms = (double)(timing_ns() - begin) * 1e-6;
    if (rc == 0)
        rc = models_self_test(m, &e);
    if (rc == 0)
        printf("%s: ok, model %s version %s, %zu bytes, sha256 %s, opened in %.1f ms\n", path,
               m->d.name, m->d.version, m->file_bytes, m->digest, ms);
    else
        fprintf(stderr, "jemd check: %s\n", e.text);
    model_put(m);
    return rc != 0;
}

int command_check(int argc, char **argv)
{
    const char *cache = NULL;
    bool verify = false;
    int failed = 0, models = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            usage(stdout);
            return 0;
        }
        if (strcmp(argv[i], "--config") == 0)
            return check_settings(argc, argv);
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--verify") == 0) {
            verify = true;
        } else if (strcmp(argv[i], "--cache") == 0 && i + 1 < argc) {
            cache = argv[++i];
        } else if (argv[i][0] == '-') {
            usage(stderr);
            return 2;
        } else {
            models++;
            failed |= check_model(argv[i], cache, verify);
        }
    }
    if (models == 0) {
        usage(stderr);
        return 2;
    }
    return failed;
}
