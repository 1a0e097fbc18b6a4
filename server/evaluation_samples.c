/* SPDX-License-Identifier: Apache-2.0 */
/* What an independent classifier sees in samples, and how far their features lie from those of real
 * images. */
#include "ebm/features.h"
#include "ebm/frechet.h"
#include "server/evaluation_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256, FRECHET_RESAMPLES = 200, FRECHET_LEAST = 50 };
/* Multiply-adds that the intervals of one distance may take. */
static const double frechet_budget = 4e10;

/* Feature vectors of a set. */
struct cloud {
    float *x; /* [n][d] */
    size_t n;
};

struct judging {
    struct evaluation_state *r;
    struct features *features; /* NULL = the judge has none */
    bool keep;                 /* the samples' features */
    struct cloud starts[START_KINDS];
};

/* ---- features ---- */

static int cloud_init(struct cloud *c, const struct judging *j, size_t n, struct err *e)
{
    c->x = calloc(n * (size_t)features_dimensions(j->features) + 1, sizeof *c->x);
    c->n = n;
    return c->x ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the features of %zu images", n);
}

/* Of the images of a split. */
static int real_features(struct cloud *out, const struct judging *j,
                         const struct evaluation_split *s, struct err *e)
{
    const struct evaluation_state *r = j->r;
    const struct eval_input in = {.model = r->model, .data = &s->set, .resize = r->s->resize};
    const size_t elements = model_elements(r->model), d = (size_t)features_dimensions(j->features);
    unsigned char *scratch = malloc(eval_input_scratch(&in));
    float *x = calloc(ROWS * elements, sizeof *x);
    int rc = cloud_init(out, j, s->pass.n, e);
    if (rc == 0 && (!scratch || !x))
        rc = fail(e, FAIL_NO_MEMORY, "out of memory");
    for (size_t at = 0, n; rc == 0 && at < out->n; at += n) {
        n = out->n - at < ROWS ? out->n - at : ROWS;
        for (size_t i = 0; rc == 0 && i < n; i++)
            rc = eval_input_row(&in, at + i, scratch, x + i * elements, e);
        if (rc == 0)
            rc = features_run(j->features, r->pool, n, x, out->x + at * d, e);
    }
    free(scratch);
    free(x);
    return rc;
}

/* judge_setup.samples */
static int keep_samples(void *ctx, enum start_kind start, const float *x, size_t n, struct err *e)
{
    struct judging *j = ctx;
    struct cloud *c = &j->starts[start];
    if (!j->keep || !j->features)
        return 0;
    const int rc = cloud_init(c, j, n, e);
    return rc == 0 ? features_run(j->features, j->r->pool, n, x, c->x, e) : rc;
}

/* ---- distances ---- */

struct pairing {
    const struct cloud *a, *b;
    struct frechet **rooms; /* [threads] */
};

static void statistic(void *ctx, int worker, const uint32_t *times, double *out)
{
    const struct pairing *p = ctx;
    const struct frechet_set a = {.x = p->a->x, .n = p->a->n, .times = times},
                             b = {.x = p->b->x,
                                  .n = p->b->n,
                                  .times = times ? times + p->a->n : NULL};
    *out = frechet_distance(p->rooms[worker], &a, &b);
}

static int measure(struct interval *out, int *resamples, const struct judging *j,
                   const struct cloud *a, const struct cloud *b, struct err *e)
{
    const int threads = pool_threads(j->r->pool), d = features_dimensions(j->features);
    const double side = d, cost = side * side * ((double)(a->n + b->n) / 2 + 2 * side);
    const bool grows = true;
    struct pairing p = {.a = a, .b = b};
    int rc = 0,
        most = j->r->s->resamples < FRECHET_RESAMPLES ? j->r->s->resamples : FRECHET_RESAMPLES;
    most = cost * most > frechet_budget ? (int)(frechet_budget / cost) : most;
    *resamples = most < FRECHET_LEAST ? 0 : most;
    p.rooms = calloc((size_t)threads, sizeof(struct frechet *));
    if (!p.rooms)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int i = 0; rc == 0 && i < threads; i++)
        rc = frechet_open(&p.rooms[i], d, e);
    if (rc == 0)
        rc = bootstrap_run(out,
                           &(struct bootstrap){.seed = j->r->s->seed,
                                               .resamples = *resamples,
                                               .strata = {a->n, b->n},
                                               .figures = 1,
                                               .grows = &grows,
                                               .statistic = statistic,
                                               .ctx = &p,
                                               .pool = j->r->pool},
                           e);
    for (int i = 0; i < threads; i++)
        frechet_close(p.rooms[i]);
    free(p.rooms);
    return rc;
}

static int put_distance(json_t *list, const struct judging *j, const char *of,
                        const struct cloud *a, const struct cloud *b, struct err *e)
{
    struct interval v;
    int resamples;
    const int d = features_dimensions(j->features);
    const int rc = measure(&v, &resamples, j, a, b, e);
    if (rc != 0)
        return rc;
    json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:i, s:o, s:o, s:i, s:s, s:b}", "of", of,
                                          "n", (json_int_t)a->n, "n_real", (json_int_t)b->n,
                                          "dimensions", d, "distance", json_real_or_null(v.value),
                                          "interval", evaluation_interval_json(&v), "resamples",
                                          resamples, "regularisation", "none", "singular",
                                          a->n <= (size_t)d || b->n <= (size_t)d));
    return 0;
}

static int distances(struct judging *j, json_t *o, struct err *e)
{
    static const char *const names[START_KINDS] = {
        [START_NOISE] = "samples from noise", [START_BUFFER] = "samples from the buffer"};
    const struct evaluation_state *r = j->r;
    struct cloud real = {0}, other = {0};
    json_t *list = json_array();
    json_object_set_new(o, "frechet", list);
    int rc = real_features(&real, j, &r->splits[r->familiar], e);
    for (int i = 0; rc == 0 && i < START_KINDS; i++)
        if (j->starts[i].n)
            rc = put_distance(list, j, names[i], &j->starts[i], &real, e);
    if (rc == 0 && r->familiar > 0) {
        char name[DATASET_SPLIT_MAX + 32];
        snprintf(name, sizeof name, "images of %s", r->splits[0].name);
        rc = real_features(&other, j, &r->splits[0], e);
        if (rc == 0)
            rc = put_distance(list, j, name, &other, &real, e);
    }
    free(real.x);
    free(other.x);
    return rc;
}

/* ---- judging ---- */

static int judge_split(struct judging *j, struct judge_setup *setup, const char *name,
                       const char *kind, json_t *list, struct err *e)
{
    struct judge_result result;
    const int rc = judge_run(&result, setup, e);
    if (rc != 0)
        return evaluation_blame(e, j->r->s->data, name);
    json_t *o = judge_result_json(setup, name, &result);
    json_object_set_new(o, "kind", json_string(kind));
    json_object_set_new(o, "data_sha256", json_string(setup->data->sha256));
    json_array_append_new(list, o);
    judge_free(&result);
    return 0;
}

/* The split of combinations never seen, where there is one. */
static int judge_novel(struct judging *j, struct judge_setup *setup, json_t *list, struct err *e)
{
    const struct evaluation_state *r = j->r;
    const char *name = r->s->novel ? r->s->novel : "novel";
    struct dataset set;
    struct err why;
    if (strcmp(name, r->splits[r->familiar].name) == 0)
        return 0;
    int rc = evaluation_open(r, &set, r->s->data, name, true, &why);
    if (rc == -FAIL_NOT_FOUND && !r->s->novel)
        return 0;
    if (rc != 0) {
        *e = why;
        return rc;
    }
    setup->data = &set;
    j->keep = false;
    rc = judge_split(j, setup, name, "novel", list, e);
    dataset_close(&set);
    return rc;
}

static int parse_pairs(const struct evaluation_state *r, struct judge_pair *pairs, struct err *e)
{
    int rc = 0;
    for (int i = 0; rc == 0 && i < r->s->n_pairs; i++)
        rc = judge_pair_parse(&pairs[i], &r->model->d.attributes, r->s->pairs[i], e);
    return rc;
}

static int judge_all(struct judging *j, json_t *o, struct err *e)
{
    struct evaluation_state *r = j->r;
    const struct evaluation_setup *s = r->s;
    const struct evaluation_split *familiar = &r->splits[r->familiar];
    struct judge_pair pairs[JUDGE_PAIRS];
    struct judge_setup setup = {
        .model = r->model,
        .judge = s->judge,
        .data = &familiar->set,
        .pairs = pairs,
        .n_pairs = s->n_pairs,
        .limit = s->limit && s->limit < s->samples ? s->limit : s->samples,
        .threads = pool_threads(r->pool),
        .steps = {s->steps >= 0 ? s->steps : r->model->d.sampler.steps,
                  s->buffer_steps >= 0 ? s->buffer_steps : r->model->d.steps_buffer},
        .seed = s->seed,
        .resamples = s->resamples,
        .pool = r->pool,
        .watch = &s->watch,
        .samples = keep_samples,
        .ctx = j};
    json_t *list = json_array();
    json_object_set_new(o, "conditions", list);
    int rc = parse_pairs(r, pairs, e);
    if (rc == 0)
        rc = judge_split(j, &setup, familiar->name, "familiar", list, e);
    return rc == 0 ? judge_novel(j, &setup, list, e) : rc;
}

/* UNSUPPORTED also where there are too many for a distance. */
static int open_features(struct features **out, struct model *judge, struct err *e)
{
    const int rc = features_open(out, judge, e);
    if (rc != 0 || features_dimensions(*out) <= FRECHET_DIMENSIONS_MAX)
        return rc;
    const int d = features_dimensions(*out);
    features_close(*out);
    *out = NULL;
    return fail(e, FAIL_UNSUPPORTED, "the judge has %d features, a distance takes at most %d", d,
                FRECHET_DIMENSIONS_MAX);
}

int evaluation_judge_samples(struct evaluation_state *r, struct err *e)
{
    const struct model *judge = r->s->judge;
    struct judging j = {.r = r, .keep = true};
    struct err why;
    if (!judge || r->s->samples == 0)
        return 0;
    json_t *o = json_pack("{s:{s:s, s:s, s:s}}", "judge", "name", judge->d.name, "version",
                          judge->d.version, "digest", judge->digest);
    json_object_set_new(r->out->report, "samples", o);
    int rc = open_features(&j.features, r->s->judge, &why);
    if (rc == -FAIL_UNSUPPORTED) {
        json_object_set_new(o, "frechet_unavailable", json_string(why.text));
        rc = 0;
    } else if (rc != 0) {
        *e = why;
    }
    if (rc == 0)
        rc = judge_all(&j, o, e);
    if (rc == 0 && j.features)
        rc = distances(&j, o, e);
    for (int i = 0; i < START_KINDS; i++)
        free(j.starts[i].x);
    features_close(j.features);
    return rc;
}
