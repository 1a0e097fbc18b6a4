/* SPDX-License-Identifier: Apache-2.0 */
#include "server/command_eval.h"

#include "base/timing.h"
#include "server/data_open.h"
#include "server/eval_report.h"
#include "server/evaluation.h"
#include "server/option_number.h"

#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, PROGRESS_NS = 200000000, MOST = 1000000000, PICTURES = 6 };

struct options {
    struct evaluation_setup s;
    const char *model, *judge, *json, *html;
    struct evaluation_foreign foreign[EVALUATION_SETS];
    struct evaluation_attack attacks[EVALUATION_ATTACKS];
    char *copies[EVALUATION_SETS]; /* of --ood's texts */
    const char **command;          /* the words for the record: all but --threads */
    bool help;
};

static const char usage_text[] =
    "usage: jemd eval MODEL --data DIR --split SPLIT [option ...]\n"
    "\n"
    "Measures a model on labelled images: accuracy, F1, AP, AUROC, NLL, Brier score and\n"
    "calibration error of every attribute, how well foreign images are told apart and, if asked,\n"
    "how it stands attacks and what an independent classifier sees in its samples. Every figure\n"
    "comes with a 95 % bootstrap interval. docs/evaluation.md says what each of them is.\n"
    "\n"
    "  --data DIR         IDX files, CIFAR's, images by class, or images with a table\n"
    "                     (docs/datasets.md)\n"
    "  --split SPLIT      which images, e.g. calib or test\n"
    "  --split-calib S    calib is the share S (0 to 0.9) of the rows of train that `jemd train`\n"
    "                     kept out with the same S, and train the others (default 0)\n"
    "  --report SPLIT     another split of DIR to measure; may be repeated. All that follows is\n"
    "                     measured on the first --report split (else --split), and the score that\n"
    "                     tells transformed images apart best is then chosen on --split\n"
    "  --fit OUT          calibrate on --split: fit a temperature an attribute, keep the energies\n"
    "                     for p-values, and write the model with both to OUT.safetensors. Use\n"
    "                     images that the model was not trained on, and read the numbers of a\n"
    "                     --report split: those of --split itself are flattered by the fit\n"
    "  --ood [NAME=]DIR[:SPLIT]\n"
    "                     foreign images (split test); may be repeated\n"
    "  --transformed N    transform the first N images to foreign ones (upside down, shuffled,\n"
    "                     mixed, noise); default 1000, 0 = none\n"
    "  --pgd NORM:EPS[,EPS...][:STEPS]\n"
    "                     attack: linf or l2, radii in pixel values from 0 to 1 (8/255), steps\n"
    "                     (default 20); may be repeated\n"
    "  --attacked N       the first N images are attacked; default 500\n"
    "  --jem-k K          also classify after K steps of refinement; may be repeated\n"
    "  --judge FILE       have samples by the labels of the split, and of the split \"novel\" if\n"
    "                     there is one, judged by this classifier of the same attributes\n"
    "  --novel SPLIT      another name for it\n"
    "  --pair N=V,N=V     share of samples with all of these, over rows that have them; "
    "repeatable\n"
    "  --samples N        samples of a split, at most; default 500\n"
    "  --steps N          of samples from noise (default: the model's); 0 = do not\n"
    "  --buffer-steps N   from the replay buffer (default: the model's); 0 = do not\n"
    "  --json FILE        the report as JSON, '-' for standard output instead of the tables\n"
    "  --html FILE        the report as a page: curves, diagrams, samples\n"
    "  --pictures N       conditions whose samples it shows, of each split; default 6\n"
    "  --resize HOW       images of another size: fit, fill, center_crop or reject (default)\n"
    "  --limit N          only the first N images of every set\n"
    "  --resamples N      of the bootstrap; default 1000, 0 = no intervals\n"
    "  --seed N           of everything random; default 1\n"
    "  --threads N        default: all cores\n"
    "  --help             this text\n"
    "\n"
    "exit codes: 0 done, 1 failed, 2 wrong usage\n";

static const struct option long_options[] = {{"data", required_argument, NULL, 'd'},
                                             {"split", required_argument, NULL, 's'},
                                             {"split-calib", required_argument, NULL, 'C'},
                                             {"report", required_argument, NULL, 'r'},
                                             {"ood", required_argument, NULL, 'o'},
                                             {"transformed", required_argument, NULL, 'T'},
                                             {"fit", required_argument, NULL, 'f'},
                                             {"pgd", required_argument, NULL, 'p'},
                                             {"attacked", required_argument, NULL, 'a'},
                                             {"jem-k", required_argument, NULL, 'k'},
                                             {"judge", required_argument, NULL, 'J'},
                                             {"novel", required_argument, NULL, 'n'},
                                             {"pair", required_argument, NULL, 'P'},
                                             {"samples", required_argument, NULL, 'N'},
                                             {"steps", required_argument, NULL, 'S'},
                                             {"buffer-steps", required_argument, NULL, 'B'},
                                             {"json", required_argument, NULL, 'j'},
                                             {"html", required_argument, NULL, 'H'},
                                             {"pictures", required_argument, NULL, 'c'},
                                             {"resize", required_argument, NULL, 'z'},
                                             {"limit", required_argument, NULL, 'l'},
                                             {"resamples", required_argument, NULL, 'R'},
                                             {"seed", required_argument, NULL, 'e'},
                                             {"threads", required_argument, NULL, 't'},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int wrong(const char *said, const char *text)
{
    fprintf(stderr, "jemd eval: %s, not \"%.120s\"\n", said, text);
    return -1;
}

static int append(const char **list, int *n, int most, const char *item)
{
    if (*n == most) {
        fprintf(stderr, "jemd eval: an option may be given at most %d times\n", most);
        return -1;
    }
    list[(*n)++] = item;
    return 0;
}

static int take_size(size_t *out, const char *text, long least)
{
    long v;
    if (option_number("eval", text, least, MOST, &v) != 0)
        return -1;
    *out = (size_t)v;
    return 0;
}

static int take_int(int *out, const char *text, long least, long most)
{
    long v;
    if (option_number("eval", text, least, most, &v) != 0)
        return -1;
    *out = (int)v;
    return 0;
}

/* [NAME=]DIR[:SPLIT] */
static int take_ood(struct options *o, const char *text)
{
    static const char said[] = "--ood takes [NAME=]DIR[:SPLIT]";
    const int i = o->s.n_foreign;
    struct evaluation_foreign *f = &o->foreign[i < EVALUATION_SETS ? i : 0];
    if (i == EVALUATION_SETS)
        return wrong("there may be at most 32 --ood", text);
    char *copy = o->copies[i] = strdup(text);
    if (!copy)
        return wrong("out of memory", text);
    o->s.n_foreign++;
    *f = (struct evaluation_foreign){.dir = copy, .split = "test"};
    char *equals = strchr(copy, '='), *slash = strchr(copy, '/');
    if (equals && (!slash || equals < slash)) {
        *equals = '\0';
        if (!*copy || strlen(copy) >= sizeof f->name)
            return wrong(said, text);
        strcpy(f->name, copy);
        f->dir = equals + 1;
    }
    char *colon = strrchr(f->dir, ':');
    if (colon && !strchr(colon, '/')) {
        *colon = '\0';
        if (!colon[1] || strlen(colon + 1) >= sizeof f->split)
            return wrong(said, text);
        strcpy(f->split, colon + 1);
    }
    return *f->dir ? 0 : wrong(said, text);
}

/* A number, or one by another. */
static bool parse_radius(const char *text, double *out)
{
    char *end;
    double v = strtod(text, &end), by = 1;
    if (end == text)
        return false;
    if (*end == '/') {
        const char *second = end + 1;
        by = strtod(second, &end);
        if (end == second)
            return false;
    }
    v /= by;
    *out = v;
    return *end == '\0' && isfinite(v) && v > 0 && v <= 1000;
}

/* NORM:EPS[,EPS...][:STEPS] */
static int take_pgd(struct options *o, const char *text)
{
    static const char said[] = "--pgd takes linf or l2, radii and steps, as in linf:2/255,8/255:20";
    const int i = o->s.n_attacks;
    char copy[256], *rest = copy;
    struct evaluation_attack a = {.norm = ATTACK_NORMS, .steps = 20};
    if (i == EVALUATION_ATTACKS || strlen(text) >= sizeof copy)
        return wrong("there may be at most 8 --pgd of 255 characters", text);
    strcpy(copy, text);
    const char *norm = strsep(&rest, ":");
    for (int n = 0; n < ATTACK_NORMS; n++)
        if (strcmp(norm, attack_norm_names[n]) == 0)
            a.norm = (enum attack_norm)n;
    char *radii = rest ? strsep(&rest, ":") : NULL;
    if (a.norm == ATTACK_NORMS || !radii)
        return wrong(said, text);
    for (char *r; (r = strsep(&radii, ","));)
        if (a.n_radii == EVALUATION_RADII || !parse_radius(r, &a.radii[a.n_radii++]))
            return wrong(said, text);
    if (rest && take_int(&a.steps, rest, 1, 10000) != 0)
        return -1;
    o->attacks[i] = a;
    o->s.n_attacks++;
    return 0;
}

static int take_refine(struct options *o, const char *text)
{
    int *n = &o->s.n_refines;
    if (*n == EVALUATION_REFINES)
        return wrong("there may be at most 8 --jem-k", text);
    return take_int(&o->s.refine_steps[(*n)++], text, 0, 10000);
}

/* Options about samples and attacks. */
static int take_more(struct options *o, int letter)
{
    long seed;
    switch (letter) {
    case 'p':
        return take_pgd(o, optarg);
    case 'a':
        return take_size(&o->s.attacked, optarg, 1);
    case 'k':
        return take_refine(o, optarg);
    case 'J':
        o->judge = optarg;
        return 0;
    case 'n':
        o->s.novel = optarg;
        return 0;
    case 'P':
        return append(o->s.pairs, &o->s.n_pairs, JUDGE_PAIRS, optarg);
    case 'N':
        return take_size(&o->s.samples, optarg, 0);
    case 'S':
        return take_int(&o->s.steps, optarg, 0, 1000000);
    case 'B':
        return take_int(&o->s.buffer_steps, optarg, 0, 1000000);
    case 'c':
        return take_int(&o->s.drawn, optarg, 0, 64);
    case 'R':
        return take_int(&o->s.resamples, optarg, 0, 100000);
    case 'e':
        if (option_number("eval", optarg, 0, LONG_MAX, &seed) != 0)
            return -1;
        o->s.seed = (uint64_t)seed;
        return 0;
    default: /* getopt_long has told what is wrong */
        fputs("jemd eval: see jemd eval --help\n", stderr);
        return -1;
    }
}

static int take_option(struct options *o, int letter)
{
    switch (letter) {
    case 'd':
        o->s.data = optarg;
        return 0;
    case 's':
        o->s.splits[0] = optarg;
        return 0;
    case 'C':
        return data_option_share("eval", optarg, &o->s.calib_share);
    case 'r':
        return append(o->s.splits, &o->s.n_splits, EVALUATION_SETS, optarg);
    case 'o':
        return take_ood(o, optarg);
    case 'T':
        return take_size(&o->s.transformed, optarg, 0);
    case 'f':
        o->s.fit = optarg;
        return 0;
    case 'j':
        o->json = optarg;
        return 0;
    case 'H':
        o->html = optarg;
        return 0;
    case 'z':
        return image_resize_parse(optarg, &o->s.resize) == 0
                   ? 0
                   : wrong("--resize takes fit, fill, center_crop or reject", optarg);
    case 'l':
        return take_size(&o->s.limit, optarg, 1);
    case 't':
        return take_int(&o->s.threads, optarg, 1, 1024);
    case 'h':
        o->help = true;
        return 0;
    default:
        return take_more(o, letter);
    }
}

/* The words that a result depends on: how many threads there were is none of them. */
static int record(struct options *o, int argc, char **argv)
{
    o->command = calloc((size_t)argc, sizeof *o->command);
    if (!o->command)
        return wrong("out of memory", argv[0]);
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0)
            i++;
        else if (strncmp(argv[i], "--threads=", 10) != 0)
            o->command[o->s.n_command++] = argv[i];
    }
    o->s.command = o->command;
    return 0;
}

static int parse_options(struct options *o, int argc, char **argv)
{
    *o = (struct options){0};
    evaluation_defaults(&o->s);
    o->s.n_splits = 1;
    o->s.drawn = -1;
    o->s.foreign = o->foreign;
    o->s.attacks = o->attacks;
    if (record(o, argc, argv) != 0)
        return -1;
    optind = 0; /* anew: other commands may have been parsed in this process */
    for (int letter; (letter = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
        if (take_option(o, letter) != 0)
            return -1;
    if (o->help)
        return 0;
    if (optind != argc - 1) {
        fputs("jemd eval: exactly one model file is needed; see jemd eval --help\n", stderr);
        return -1;
    }
    o->model = argv[optind];
    if (o->s.drawn < 0)
        o->s.drawn = o->html ? PICTURES : 0;
    if (o->s.data && o->s.splits[0])
        return 0;
    fputs("jemd eval: --data and --split are needed; see jemd eval --help\n", stderr);
    return -1;
}

/* ---- progress on a terminal ---- */

struct shown {
    int64_t last_ns;
};

static void show(void *ctx, const char *what, size_t done, size_t of)
{
    struct shown *s = ctx;
    const int64_t now = timing_ns();
    if (now - s->last_ns < PROGRESS_NS)
        return;
    s->last_ns = now;
    fprintf(stderr, "\r\033[K%.60s: %zu of %zu", what, done, of);
}

static int evaluate(struct options *o, struct evaluation *v, struct err *e)
{
    struct shown shown = {.last_ns = timing_ns()};
    const bool terminal = isatty(STDERR_FILENO);
    if (terminal)
        o->s.watch = (struct eval_watch){.progress = show, .ctx = &shown};
    int rc = model_open(&o->s.model, o->model, NULL, false, e);
    if (rc == 0 && o->judge)
        rc = model_open(&o->s.judge, o->judge, NULL, false, e);
    if (rc == 0)
        rc = evaluation_run(v, &o->s, e);
    if (terminal)
        fputs("\r\033[K", stderr);
    if (rc == 0 && o->json)
        rc = evaluation_write_json(v, o->json, e);
    if (rc == 0 && o->html)
        rc = evaluation_write_html(v, o->html, e);
    if (rc == 0 && !(o->json && strcmp(o->json, "-") == 0))
        eval_report_print(v->report, stdout);
    return rc;
}

int command_eval(int argc, char **argv)
{
    struct err e = {0};
    struct options o;
    struct evaluation v = {0};
    int code = parse_options(&o, argc, argv) != 0 ? EXIT_USAGE : EXIT_SUCCESS;
    if (code == EXIT_SUCCESS && o.help) {
        fputs(usage_text, stdout);
    } else if (code == EXIT_SUCCESS && evaluate(&o, &v, &e) != 0) {
        fprintf(stderr, "jemd eval: %s\n", e.text);
        code = EXIT_FAILURE;
    }
    evaluation_free(&v);
    model_put(o.s.judge);
    model_put(o.s.model);
    for (int i = 0; i < o.s.n_foreign; i++)
        free(o.copies[i]);
    free(o.command);
    return code;
}
