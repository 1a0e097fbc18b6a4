/* SPDX-License-Identifier: Apache-2.0 */
#include "server/command_eval.h"

#include "ebm/calibrate.h"
#include "ebm/score.h"
#include "server/eval_report.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

enum { SETS_MAX = 32, EXIT_USAGE = 2 };
static const size_t data_max_bytes = (size_t)8 << 30;

struct options {
    const char *model, *data, *fit, *json, *resize_word;
    const char *splits[SETS_MAX]; /* --split, then every --report */
    const char *ood[SETS_MAX];    /* DIR:SPLIT */
    int n_splits, n_ood;
    enum image_resize resize;
    long long limit, threads;
    bool help;
};

/* What the run holds besides its report. */
struct evaluation {
    const struct options *o;
    struct model *model;
    struct pool *pool;
    float *temperatures; /* [K] in force: the model's, or the fitted ones */
    float *fitted;       /* [n_fitted] ascending energies of the fitted split, or NULL */
    size_t n_fitted;
    struct eval_report report;
};

static const char usage_text[] =
    "usage: jemd eval MODEL --data DIR --split SPLIT [option ...]\n"
    "\n"
    "Measures a model on labelled images: accuracy, NLL, Brier score and calibration error of "
    "every\n"
    "attribute, the distribution of the energy, and how well foreign images are told apart.\n"
    "\n"
    "  --data DIR         IDX files: SPLIT-images.idx4-ubyte.gz (N x H x W x 3, or idx3: grey) "
    "and\n"
    "                     SPLIT-attr-cat.idx2-ubyte.gz (N x K value numbers in the order of the\n"
    "                     model's attributes, 255 = unknown), SPLIT-attr-bin.idx2-ubyte.gz or\n"
    "                     SPLIT-labels.idx1-ubyte.gz (K = 1)\n"
    "  --split SPLIT      which images, e.g. calib or test\n"
    "  --report SPLIT     another split of DIR to measure; may be repeated\n"
    "  --ood DIR:SPLIT    foreign images, compared with the first --report split (else --split);\n"
    "                     may be repeated\n"
    "  --fit OUT          calibrate on --split: fit a temperature an attribute, keep the energies\n"
    "                     for p-values, and write the model with both to OUT.safetensors. Use\n"
    "                     images that the model was not trained on, and read the numbers of a\n"
    "                     --report split: those of --split itself are flattered by the fit\n"
    "  --json FILE        the report as JSON, '-' for standard output instead of the table\n"
    "  --resize HOW       images of another size: fit, fill, center_crop or reject (default)\n"
    "  --limit N          only the first N images of every set\n"
    "  --threads N        default: all cores\n"
    "  --help             this text\n"
    "\n"
    "exit codes: 0 done, 1 failed, 2 wrong usage\n";

static const struct option long_options[] = {{"data", required_argument, NULL, 'd'},
                                             {"split", required_argument, NULL, 's'},
                                             {"report", required_argument, NULL, 'r'},
                                             {"ood", required_argument, NULL, 'o'},
                                             {"fit", required_argument, NULL, 'f'},
                                             {"json", required_argument, NULL, 'j'},
                                             {"resize", required_argument, NULL, 'z'},
                                             {"limit", required_argument, NULL, 'l'},
                                             {"threads", required_argument, NULL, 't'},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int parse_count(const char *text, long long max, long long *out, struct err *e)
{
    char *end;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || v < 1 || v > max)
        return fail(e, FAIL_OUT_OF_RANGE, "\"%.32s\" is not a number from 1 to %lld", text, max);
    *out = v;
    return 0;
}

static int append(const char **list, int *n, const char *item, struct err *e)
{
    if (*n == SETS_MAX)
        return fail(e, FAIL_OUT_OF_RANGE, "at most %d sets of images can be given", SETS_MAX - 1);
    list[(*n)++] = item;
    return 0;
}

static int take_ood(struct options *o, const char *item, struct err *e)
{
    const char *colon = strrchr(item, ':');
    if (!colon || colon == item || !colon[1])
        return fail(e, FAIL_OUT_OF_RANGE, "--ood takes DIR:SPLIT, not \"%.120s\"", item);
    return append(o->ood, &o->n_ood, item, e);
}

static int take_option(struct options *o, int letter, struct err *e)
{
    switch (letter) {
    case 'd':
        o->data = optarg;
        return 0;
    case 's':
        o->splits[0] = optarg;
        return 0;
    case 'r':
        return append(o->splits, &o->n_splits, optarg, e);
    case 'o':
        return take_ood(o, optarg, e);
    case 'f':
        o->fit = optarg;
        return 0;
    case 'j':
        o->json = optarg;
        return 0;
    case 'z':
        o->resize_word = optarg;
        if (image_resize_parse(optarg, &o->resize) != 0)
            return fail(e, FAIL_OUT_OF_RANGE,
                        "--resize takes fit, fill, center_crop or reject, not \"%.32s\"", optarg);
        return 0;
    case 'l':
        return parse_count(optarg, 1000000000, &o->limit, e);
    case 't':
        return parse_count(optarg, 1024, &o->threads, e);
    case 'h':
        o->help = true;
        return 0;
    default: /* getopt_long has told what is wrong */
        return fail(e, FAIL_BAD_REQUEST, "see jemd eval --help");
    }
}

static int parse_options(struct options *o, int argc, char **argv, struct err *e)
{
    int letter, rc = 0;
    *o = (struct options){.resize = IMAGE_REJECT, .resize_word = "reject", .n_splits = 1};
    optind = 0; /* anew: other commands may have been parsed in this process */
    while (rc == 0 && (letter = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        rc = take_option(o, letter, e);
    if (rc != 0 || o->help)
        return rc;
    if (optind != argc - 1)
        return fail(e, FAIL_BAD_REQUEST, "exactly one model file is needed; see jemd eval --help");
    o->model = argv[optind];
    if (!o->data || !o->splits[0])
        return fail(e, FAIL_MISSING_FIELD, "--data and --split are needed; see jemd eval --help");
    return 0;
}

/* The directory's own name, whatever path it was given by. */
static void base_name(const char *dir, char out[EVAL_NAME_MAX])
{
    char *path = realpath(dir, NULL);
    const char *slash = path ? strrchr(path, '/') : NULL;
    snprintf(out, EVAL_NAME_MAX, "%s", slash ? slash + 1 : dir);
    free(path);
}

/* Puts "dir, split s: " before the error. */
static int blame(struct err *e, const char *dir, const char *split)
{
    char text[sizeof e->text];
    memcpy(text, e->text, sizeof text);
    snprintf(e->text, sizeof e->text, "%.120s, split %.63s: %.300s%s", dir, split, text,
             e->code == FAIL_IMAGE_SIZE_MISMATCH ? " (see --resize)" : "");
    return -(int)e->code;
}

static const char *preprocessing(const struct evaluation *ev, const struct dataset *d)
{
    const struct net_shape in = ev->model->d.input;
    return d->height == in.h && d->width == in.w ? "native" : ev->o->resize_word;
}

static int run_pass(const struct evaluation *ev, struct eval_pass *out, const struct dataset *d,
                    bool gradients, struct err *e)
{
    const struct eval_setup setup = {.model = ev->model,
                                     .pool = ev->pool,
                                     .resize = ev->o->resize,
                                     .gradients = gradients,
                                     .limit = (size_t)ev->o->limit};
    return eval_pass_run(out, &setup, d, e);
}

static int check_labels(const struct evaluation *ev, const struct dataset *d, struct err *e)
{
    const struct attributes *a = &ev->model->d.attributes;
    int *limits = calloc((size_t)a->n, sizeof *limits);
    if (!limits)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int k = 0; k < a->n; k++)
        limits[k] = a->list[k].n_values;
    const int rc = dataset_check_labels(d, limits, e);
    free(limits);
    return rc;
}

/* Reads split number i of --data and runs the model over it. */
static int load_split(struct evaluation *ev, int i, struct err *e)
{
    const struct options *o = ev->o;
    struct eval_split *s = &ev->report.splits[i];
    const struct dataset_request request = {.dir = o->data,
                                            .split = o->splits[i],
                                            .columns = ev->model->d.attributes.n,
                                            .max_bytes = data_max_bytes};
    int rc = dataset_open(&s->set, &request, e);
    if (rc != 0)
        return rc;
    base_name(o->data, s->data);
    snprintf(s->split, sizeof s->split, "%s", o->splits[i]);
    memcpy(s->sha256, s->set.sha256, sizeof s->sha256);
    s->preprocessing = preprocessing(ev, &s->set);
    rc = check_labels(ev, &s->set, e);
    if (rc == 0)
        rc = run_pass(ev, &s->pass, &s->set, o->n_ood > 0 && i == ev->report.familiar, e);
    return rc == 0 ? 0 : blame(e, o->data, o->splits[i]);
}

static struct evaluate_set view(const struct model *m, const struct eval_split *s, int k)
{
    const struct attributes *a = &m->d.attributes;
    return (struct evaluate_set){.logits = s->pass.logits + a->list[k].first,
                                 .stride = (size_t)model_logits(m),
                                 .n_values = a->list[k].n_values,
                                 .labels = s->set.labels + k,
                                 .label_stride = (size_t)a->n,
                                 .n = s->pass.n};
}

static void count_exact(const struct model *m, struct eval_split *s)
{
    const struct attributes *a = &m->d.attributes;
    size_t right = 0;
    for (size_t i = 0; i < s->pass.n; i++) {
        const unsigned char *y = s->set.labels + i * (size_t)a->n;
        int known = 0, wrong = 0;
        for (int k = 0; k < a->n; k++) {
            const float *f = s->pass.logits + i * (size_t)model_logits(m) + a->list[k].first;
            known += y[k] != DATASET_MISSING;
            wrong += y[k] != DATASET_MISSING && evaluate_top(f, a->list[k].n_values) != y[k];
        }
        s->n_labelled += known > 0;
        right += known > 0 && wrong == 0;
    }
    s->exact = s->n_labelled ? (double)right / (double)s->n_labelled : 0;
}

/* With the temperatures in force. */
static int measure(struct evaluation *ev, struct eval_split *s, struct err *e)
{
    const int n = ev->model->d.attributes.n;
    int rc = 0;
    s->temperatures = ev->temperatures;
    s->at_one = calloc((size_t)n, sizeof *s->at_one);
    s->calibrated = calloc((size_t)n, sizeof *s->calibrated);
    if (!s->at_one || !s->calibrated)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int k = 0; rc == 0 && k < n; k++) {
        const struct evaluate_set set = view(ev->model, s, k);
        rc = evaluate_attribute(&s->at_one[k], &set, 1.0, e);
        if (rc == 0)
            rc = evaluate_attribute(&s->calibrated[k], &set, (double)ev->temperatures[k], e);
    }
    count_exact(ev->model, s);
    return rc;
}

/* Shares of small p-values, where there are calibration energies of other images. */
static struct eval_flags flags(const struct evaluation *ev, const struct eval_pass *p,
                               const char *sha256)
{
    const float *energies = ev->fitted ? ev->fitted : ev->model->energies;
    const size_t n = ev->fitted ? ev->n_fitted : ev->model->n_energies;
    const json_t *card = json_object_get(ev->model->d.root, "calibration");
    const char *own = ev->fitted ? ev->report.splits[0].sha256
                                 : json_string_value(json_object_get(card, "data_sha256"));
    struct eval_flags f = {.known = energies && !(own && strcmp(own, sha256) == 0)};
    for (size_t i = 0; f.known && i < p->n; i++) {
        const double value = score_p_value(energies, n, -p->scores[EVAL_LOG_PX][i]);
        for (int a = 0; a < EVAL_ALPHAS; a++)
            f.share[a] += (value <= eval_alphas[a]) / (double)p->n;
    }
    return f;
}

/* Temperatures and energies from the first split. */
static int fit(struct evaluation *ev, struct err *e)
{
    const struct eval_split *s = &ev->report.splits[0];
    ev->fitted = calloc(s->pass.n, sizeof *ev->fitted);
    if (!ev->fitted)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    ev->n_fitted = s->pass.n;
    for (size_t i = 0; i < s->pass.n; i++)
        ev->fitted[i] = -s->pass.scores[EVAL_LOG_PX][i];
    for (int k = 0; k < ev->model->d.attributes.n; k++) {
        const struct evaluate_set set = view(ev->model, s, k);
        ev->temperatures[k] = calibrate_temperature(&set);
    }
    return calibrate_sort(ev->fitted, ev->n_fitted, e);
}

static int run_splits(struct evaluation *ev, struct err *e)
{
    struct eval_report *r = &ev->report;
    int rc = 0;
    for (int i = 0; rc == 0 && i < r->n_splits; i++) {
        rc = load_split(ev, i, e);
        if (rc == 0 && i == 0 && ev->o->fit)
            rc = fit(ev, e);
        if (rc == 0 && i > 0 && strcmp(r->splits[i].sha256, r->splits[0].sha256) == 0)
            rc = fail(e, FAIL_BAD_REQUEST,
                      "--report %s holds the same files as --split %s: report on other images",
                      r->splits[i].split, r->splits[0].split);
        if (rc == 0)
            rc = measure(ev, &r->splits[i], e);
        if (rc == 0)
            r->splits[i].flags = flags(ev, &r->splits[i].pass, r->splits[i].sha256);
    }
    return rc;
}

static int run_foreign(struct evaluation *ev, int i, struct err *e)
{
    struct eval_foreign *f = &ev->report.foreign[i];
    const struct eval_split *familiar = &ev->report.splits[ev->report.familiar];
    const char *item = ev->o->ood[i], *colon = strrchr(item, ':');
    char *dir = strndup(item, (size_t)(colon - item));
    const struct dataset_request request = {
        .dir = dir, .split = colon + 1, .max_bytes = data_max_bytes};
    struct dataset set = {0};
    struct eval_pass pass = {0};
    int rc = dir ? dataset_open(&set, &request, e) : fail(e, FAIL_NO_MEMORY, "out of memory");
    if (rc == 0) {
        rc = run_pass(ev, &pass, &set, true, e);
        if (rc != 0)
            blame(e, dir, colon + 1);
    }
    for (int k = 0; rc == 0 && k < EVAL_SCORES; k++) {
        const struct evaluate_scores known = {familiar->pass.scores[k], familiar->pass.n},
                                     other = {pass.scores[k], pass.n};
        rc = evaluate_detector(&f->detectors[k], &known, &other, e);
    }
    if (rc == 0) {
        base_name(dir, f->data);
        snprintf(f->split, sizeof f->split, "%s", colon + 1);
        memcpy(f->sha256, set.sha256, sizeof f->sha256);
        f->preprocessing = preprocessing(ev, &set);
        f->n = pass.n;
        f->flags = flags(ev, &pass, set.sha256);
    }
    eval_pass_free(&pass);
    dataset_close(&set);
    free(dir);
    return rc;
}

static int write_fitted(struct evaluation *ev, struct err *e)
{
    json_t *card = eval_report_card(&ev->report);
    const struct calibration c = {
        .temperatures = ev->temperatures, .energies = ev->fitted, .n = ev->n_fitted, .card = card};
    const int rc = card ? calibrate_write(ev->model, &c, ev->o->fit, e)
                        : fail(e, FAIL_NO_MEMORY, "out of memory");
    json_decref(card);
    return rc;
}

static int write_json(const struct eval_report *r, const char *path, struct err *e)
{
    const bool standard = strcmp(path, "-") == 0;
    json_t *json = eval_report_json(r);
    char *text = json ? json_text(json, NULL) : NULL;
    FILE *out = standard ? stdout : fopen(path, "we");
    int rc = 0;
    if (!out)
        rc = fail_errno(e, FAIL_IO, "%.200s: cannot be written", path);
    else if (!text)
        rc = fail(e, FAIL_NO_MEMORY, "out of memory");
    else if (fprintf(out, "%s\n", text) < 0 || fflush(out) != 0)
        rc = fail_errno(e, FAIL_IO, "%.200s: cannot be written", path);
    if (out && !standard && fclose(out) != 0 && rc == 0)
        rc = fail_errno(e, FAIL_IO, "%.200s: cannot be written", path);
    free(text);
    json_decref(json);
    return rc;
}

static int prepare(struct evaluation *ev, struct err *e)
{
    const struct options *o = ev->o;
    int rc = model_open(&ev->model, o->model, NULL, false, e);
    if (rc == 0)
        rc = pool_open(&ev->pool, (int)o->threads, e);
    if (rc != 0)
        return rc;
    const struct attributes *a = &ev->model->d.attributes;
    struct eval_report *r = &ev->report;
    r->model = ev->model;
    r->n_splits = o->n_splits;
    r->n_foreign = o->n_ood;
    r->familiar = o->n_splits > 1 ? 1 : 0;
    r->fitted_path = o->fit;
    r->splits = calloc((size_t)o->n_splits, sizeof *r->splits);
    r->foreign = calloc((size_t)o->n_ood + 1, sizeof *r->foreign);
    ev->temperatures = calloc((size_t)a->n, sizeof *ev->temperatures);
    if (!r->splits || !r->foreign || !ev->temperatures)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int k = 0; k < a->n; k++)
        ev->temperatures[k] = a->list[k].temperature;
    return 0;
}

static int evaluate(struct evaluation *ev, struct err *e)
{
    int rc = prepare(ev, e);
    if (rc == 0)
        rc = run_splits(ev, e);
    for (int i = 0; rc == 0 && i < ev->o->n_ood; i++)
        rc = run_foreign(ev, i, e);
    if (rc == 0 && ev->o->fit)
        rc = write_fitted(ev, e);
    if (rc == 0 && ev->o->json)
        rc = write_json(&ev->report, ev->o->json, e);
    if (rc == 0 && !(ev->o->json && strcmp(ev->o->json, "-") == 0))
        eval_report_print(&ev->report, stdout);
    return rc;
}

static void fini(struct evaluation *ev)
{
    struct eval_report *r = &ev->report;
    for (int i = 0; r->splits && i < r->n_splits; i++) {
        eval_pass_free(&r->splits[i].pass);
        dataset_close(&r->splits[i].set);
        free(r->splits[i].at_one);
        free(r->splits[i].calibrated);
    }
    free(r->splits);
    free(r->foreign);
    free(ev->temperatures);
    free(ev->fitted);
    pool_close(ev->pool);
    model_put(ev->model);
}

int command_eval(int argc, char **argv)
{
    struct err e = {0};
    struct options o;
    if (parse_options(&o, argc, argv, &e) != 0) {
        fprintf(stderr, "jemd eval: %s\n", e.text);
        return EXIT_USAGE;
    }
    if (o.help) {
        fputs(usage_text, stdout);
        return EXIT_SUCCESS;
    }
    struct evaluation ev = {.o = &o};
    const int rc = evaluate(&ev, &e);
    fini(&ev);
    if (rc != 0)
        fprintf(stderr, "jemd eval: %s\n", e.text);
    return rc != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
