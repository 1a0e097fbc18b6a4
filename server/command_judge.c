/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd judge`: samples by the labels of real images, judged by an independent classifier. */
#include "base/pool.h"
#include "server/commands.h"
#include "server/data_open.h"
#include "server/judge_json.h"
#include "server/option_number.h"

#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_USAGE = 2, SPLITS_MAX = 16 };

static const char usage_text[] =
    "usage: jemd judge MODEL JUDGE --data DIR --split SPLIT [option ...]\n"
    "\n"
    "Draws a sample for every row of a split, conditioned on all of its known labels, and asks\n"
    "JUDGE, a classifier of the same attributes trained apart, which of them it sees. Shares come\n"
    "with 95 % bootstrap intervals; the judge's own accuracy on the rows' images stands beside.\n"
    "\n"
    "  --data DIR          as for `jemd train` (docs/datasets.md)\n"
    "  --split SPLIT       may be repeated\n"
    "  --split-calib S     as for `jemd train`\n"
    "  --resize HOW        images of another size: fit (default), fill, center_crop or reject\n"
    "  --pair N=V,N=V      share of samples with all of these, over rows that have them; "
    "repeatable\n"
    "  --steps N           from noise (default: the model's); 0 = do not\n"
    "  --buffer-steps N    from the replay buffer (default: the model's); 0 = do not\n"
    "  --limit N           only the first N rows\n"
    "  --seed N            default 1\n"
    "  --threads N         default: all cores\n"
    "  --json FILE         the numbers as JSON, '-' = standard output instead of the table\n"
    "  --help              this text\n"
    "\n"
    "exit codes: 0 done, 1 failed, 2 wrong usage\n";

struct options {
    const char *model, *judge, *data, *splits[SPLITS_MAX], *pairs[JUDGE_PAIRS], *json;
    int n_splits, n_pairs;
    long steps, buffer_steps, limit, seed, threads;
    enum image_resize resize;
    double calib_share;
    bool help;
};

static int append(const char **list, int *n, int max, const char *item)
{
    if (*n == max) {
        fprintf(stderr, "jemd judge: at most %d of an option\n", max);
        return -1;
    }
    list[(*n)++] = item;
    return 0;
}

static int take(struct options *o, int letter)
{
    switch (letter) {
    case 'd':
        o->data = optarg;
        return 0;
    case 's':
        return append(o->splits, &o->n_splits, SPLITS_MAX, optarg);
    case 'c':
        return data_option_share("judge", optarg, &o->calib_share);
    case 'r':
        return data_option_resize("judge", optarg, &o->resize);
    case 'p':
        return append(o->pairs, &o->n_pairs, JUDGE_PAIRS, optarg);
    case 'n':
        return option_number("judge", optarg, 0, 1000000, &o->steps);
    case 'b':
        return option_number("judge", optarg, 0, 1000000, &o->buffer_steps);
    case 'l':
        return option_number("judge", optarg, 1, 1000000, &o->limit);
    case 'e':
        return option_number("judge", optarg, 0, LONG_MAX, &o->seed);
    case 't':
        return option_number("judge", optarg, 1, 1024, &o->threads);
    case 'j':
        o->json = optarg;
        return 0;
    case 'h':
        o->help = true;
        return 0;
    default:
        return -1;
    }
}

static int parse(int argc, char **argv, struct options *o)
{
    static const struct option known[] = {{"data", required_argument, NULL, 'd'},
                                          {"split", required_argument, NULL, 's'},
                                          {"split-calib", required_argument, NULL, 'c'},
                                          {"resize", required_argument, NULL, 'r'},
                                          {"pair", required_argument, NULL, 'p'},
                                          {"steps", required_argument, NULL, 'n'},
                                          {"buffer-steps", required_argument, NULL, 'b'},
                                          {"limit", required_argument, NULL, 'l'},
                                          {"seed", required_argument, NULL, 'e'},
                                          {"threads", required_argument, NULL, 't'},
                                          {"json", required_argument, NULL, 'j'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    optind = 0; /* anew: other commands may have been parsed in this process */
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;)
        if (take(o, c) != 0)
            return -1;
    if (o->help)
        return 0;
    if (optind + 2 != argc || !o->data || o->n_splits == 0) {
        fprintf(stderr, "jemd judge: give MODEL, JUDGE, --data and --split\n");
        return -1;
    }
    o->model = argv[optind];
    o->judge = argv[optind + 1];
    return 0;
}

static void print_share(const char *name, const struct judge_share *s)
{
    if (s->n)
        printf("  %-34.34s %6zu  %.4f  [%.4f, %.4f]\n", name, s->n, s->share.value, s->share.lo,
               s->share.hi);
}

static void print_shares(const struct judge_setup *s, const struct judge_shares *t)
{
    const struct attributes *a = &s->model->d.attributes;
    print_share("labels right", &t->right);
    print_share("all of an image right", &t->all);
    for (int k = 0; k < a->n; k++)
        print_share(a->list[k].name, &t->by_attribute[k]);
    for (int i = 0; i < s->n_pairs; i++) {
        print_share(s->pairs[i].text, &t->pairs[i]);
        print_share("  ... and all of these images", &t->pairs_all[i]);
    }
}

static void print_result(const struct judge_setup *s, const char *split,
                         const struct judge_result *r)
{
    printf("\nsplit %s: the judge on real images\n", split);
    print_shares(s, &r->real);
    for (int i = 0; i < JUDGE_STARTS; i++) {
        const struct judge_start *t = &r->starts[i];
        if (t->steps == 0)
            continue;
        printf("%d steps from %s%s\n", t->steps,
               t->start == START_NOISE ? "noise" : "the replay buffer",
               t->diverged ? " (some diverged)" : "");
        print_shares(s, &t->samples);
    }
}

static int run_split(struct judge_setup *s, const struct options *o, const char *split, json_t *all,
                     struct err *e)
{
    struct pool *pool;
    int rc = pool_open(&pool, s->threads, e);
    if (rc != 0)
        return rc;
    const struct data_request want = {.dir = o->data,
                                      .split = split,
                                      .attributes = &s->model->d.attributes,
                                      .input = s->model->d.input,
                                      .resize = o->resize,
                                      .calib_share = o->calib_share,
                                      .pool = pool};
    struct judge_result r;
    struct dataset d;
    rc = data_read(&d, &want, (size_t)o->limit, e);
    pool_close(pool); /* sampling has threads of its own */
    if (rc != 0)
        return rc;
    if (d.source->note[0])
        fprintf(stderr, "%s\n", d.source->note);
    s->data = &d;
    rc = judge_run(&r, s, e);
    if (rc == 0) {
        json_array_append_new(all, judge_result_json(s, split, &r));
        if (!o->json || strcmp(o->json, "-") != 0)
            print_result(s, split, &r);
        judge_free(&r);
    }
    dataset_close(&d);
    return rc;
}

static int write_json(const json_t *all, const char *path, struct err *e)
{
    const bool standard = strcmp(path, "-") == 0;
    FILE *out = standard ? stdout : fopen(path, "we");
    char *text = json_text(all, NULL);
    int rc = 0;
    if (!out || !text || fprintf(out, "%s\n", text) < 0 || fflush(out) != 0)
        rc = fail_errno(e, FAIL_IO, "%.200s: cannot be written", path);
    if (out && !standard)
        fclose(out);
    free(text);
    return rc;
}

static int run(const struct options *o, struct err *e)
{
    struct judge_pair pairs[JUDGE_PAIRS];
    struct judge_setup s = {.pairs = pairs,
                            .n_pairs = o->n_pairs,
                            .limit = (size_t)o->limit,
                            .threads = o->threads ? (int)o->threads : pool_cores(),
                            .seed = (uint64_t)o->seed,
                            .resamples = BOOTSTRAP_RESAMPLES};
    json_t *all = json_array();
    int rc = model_open(&s.model, o->model, NULL, false, e);
    if (rc == 0)
        rc = model_open(&s.judge, o->judge, NULL, false, e);
    if (rc == 0) {
        s.steps[0] = o->steps >= 0 ? (int)o->steps : s.model->d.sampler.steps;
        s.steps[1] = o->buffer_steps >= 0 ? (int)o->buffer_steps : s.model->d.steps_buffer;
    }
    for (int i = 0; rc == 0 && i < o->n_pairs; i++)
        rc = judge_pair_parse(&pairs[i], &s.model->d.attributes, o->pairs[i], e);
    for (int i = 0; rc == 0 && i < o->n_splits; i++)
        rc = run_split(&s, o, o->splits[i], all, e);
    if (rc == 0 && o->json)
        rc = write_json(all, o->json, e);
    json_decref(all);
    model_put(s.judge);
    model_put(s.model);
    return rc;
}

int command_judge(int argc, char **argv)
{
    struct options o = {.steps = -1, .buffer_steps = -1, .seed = 1};
    struct err e;
    if (parse(argc, argv, &o) != 0) {
        fputs(usage_text, stderr);
        return EXIT_USAGE;
    }
    if (o.help) {
        fputs(usage_text, stdout);
        return 0;
    }
    if (run(&o, &e) == 0)
        return 0;
    fprintf(stderr, "jemd judge: %s\n", e.text);
    return 1;
}
