/* SPDX-License-Identifier: Apache-2.0 */
/* Pictures of samples: rows of one condition each, and one chain over its steps. */
#include "base/rng.h"
#include "ebm/start.h"
#include "learn/walkers.h"
#include "server/evaluation_internal.h"

#include <stdlib.h>
#include <string.h>

enum { CHAINS = 8, FRAMES = 8, CONDITIONS_MAX = 64, PNG_LEVEL = 6, GAP = 1 };

/* The chains of one start, of one split. */
struct drawing {
    struct evaluation_state *r;
    struct walkers *walkers;
    const char *split;
    const struct dataset *data;
    size_t rows[CONDITIONS_MAX]; /* whose labels are the conditions */
    int n_rows;
    float *x;                     /* [n_rows * CHAINS][C][H][W] */
    float *frames;                /* [n_rows][FRAMES + 1][C][H][W]: the first chain of each */
    int at[FRAMES + 1], n_frames; /* steps before each frame */
};

static json_t *condition_json(const struct drawing *d, size_t row)
{
    const struct attributes *a = &d->r->model->d.attributes;
    json_t *o = json_object();
    for (int k = 0; k < a->n; k++) {
        const uint8_t y = d->data->labels[row * (size_t)a->n + (size_t)k];
        if (y != DATASET_MISSING)
            json_object_set_new(o, a->list[k].name, json_string(a->list[k].values[y]));
    }
    return o;
}

/* n tiles side by side, as the next picture of the evaluation; takes `about`. */
static int add_picture(const struct drawing *d, const float *x, int n, json_t *about, struct err *e)
{
    struct evaluation *out = d->r->out;
    const struct model *m = d->r->model;
    const struct image shape = {.width = (uint32_t)m->d.input.w,
                                .height = (uint32_t)m->d.input.h,
                                .channels = m->d.input.c};
    const size_t elements = model_elements(m);
    struct image grid = {0};
    struct blob *png = NULL;
    unsigned char *tiles = malloc((size_t)n * elements);
    int rc = tiles ? 0 : fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int i = 0; rc == 0 && i < n; i++)
        model_to_pixels(m, x + (size_t)i * elements, tiles + (size_t)i * elements);
    if (rc == 0)
        rc = image_grid(&grid, tiles, n, &shape, n, GAP, 1, e);
    if (rc == 0)
        rc = image_encode_png(&png, &grid, PNG_LEVEL, e);
    struct report_picture *grown =
        rc == 0 ? realloc(out->pictures, ((size_t)out->n_pictures + 1) * sizeof *grown) : NULL;
    if (rc == 0 && !grown)
        rc = fail(e, FAIL_NO_MEMORY, "out of memory");
    if (rc == 0) {
        grown[out->n_pictures] = (struct report_picture){
            .png = png, .width = (int)grid.width, .height = (int)grid.height};
        out->pictures = grown;
        out->n_pictures++;
        png = NULL;
        json_array_append(json_object_get(out->report, "pictures"), about);
    }
    json_decref(about);
    blob_put(png);
    image_fini(&grid);
    free(tiles);
    return rc;
}

static json_t *about_json(const struct drawing *d, const char *kind, enum start_kind start, int row)
{
    return json_pack("{s:s, s:s, s:s, s:o}", "kind", kind, "start", start_kind_names[start],
                     "split", d->split, "condition", condition_json(d, d->rows[row]));
}

static int add_all(const struct drawing *d, enum start_kind start, struct err *e)
{
    const size_t elements = model_elements(d->r->model);
    int rc = 0;
    for (int i = 0; rc == 0 && i < d->n_rows; i++) {
        json_t *about = about_json(d, "samples", start, i);
        json_object_set_new(about, "steps", json_integer(d->at[d->n_frames - 1]));
        rc = add_picture(d, d->x + (size_t)i * CHAINS * elements, CHAINS, about, e);
    }
    for (int i = 0; rc == 0 && start == START_NOISE && i < d->n_rows; i++) {
        json_t *about = about_json(d, "steps", start, i), *steps = json_array();
        for (int f = 0; f < d->n_frames; f++)
            json_array_append_new(steps, json_integer(d->at[f]));
        json_object_set_new(about, "steps", steps);
        rc = add_picture(d, d->frames + (size_t)i * (FRAMES + 1) * elements, d->n_frames, about, e);
    }
    return rc;
}

/* Frame by frame; what is cooled is the last part. */
static void plan_frames(struct drawing *d, const struct sampler *s)
{
    const int cool = s->cool_last < s->steps ? s->cool_last : 0;
    const int warm = s->steps - cool, parts = cool ? FRAMES - 1 : FRAMES;
    d->n_frames = 0;
    for (int f = 0; f <= parts; f++) {
        const int step = (int)((long long)warm * f / parts);
        if (d->n_frames == 0 || step > d->at[d->n_frames - 1])
            d->at[d->n_frames++] = step;
    }
    if (cool)
        d->at[d->n_frames++] = s->steps;
}

static void keep_frame(const struct drawing *d, int frame)
{
    const size_t elements = model_elements(d->r->model);
    for (size_t i = 0; i < (size_t)d->n_rows; i++)
        memcpy(d->frames + (i * (FRAMES + 1) + (size_t)frame) * elements,
               d->x + i * CHAINS * elements, elements * sizeof *d->x);
}

static int start_all(const struct drawing *d, const struct sampler *s, uint8_t *y, struct err *e)
{
    const struct model *m = d->r->model;
    const struct attributes *a = &m->d.attributes;
    const size_t elements = model_elements(m), k = (size_t)a->n;
    float *scratch = calloc(elements, sizeof *scratch);
    int rc = scratch ? 0 : fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int i = 0; rc == 0 && i < d->n_rows; i++) {
        const uint8_t *labels = d->data->labels + d->rows[i] * k;
        struct condition c;
        rc = condition_init(&c, a, 1, e);
        for (int j = 0; rc == 0 && j < a->n; j++)
            if (labels[j] != DATASET_MISSING)
                condition_fix(&c, 0, j, labels[j]);
        for (int j = 0; rc == 0 && j < CHAINS; j++) {
            const size_t chain = (size_t)i * CHAINS + (size_t)j;
            memcpy(y + chain * k, labels, k);
            start_chain(m, s, &c, NULL, d->r->s->seed, (uint32_t)chain, d->x + chain * elements,
                        scratch);
        }
        if (rc == 0)
            condition_fini(&c);
    }
    free(scratch);
    return rc;
}

/* Labels of walkers: y[], what they report: the rest. */
struct walk_memory {
    uint8_t *y, *diverged;
    float *log_p, *gradient;
};

static int walk(struct drawing *d, const struct sampler *s, struct walk_memory *w, struct err *e)
{
    int rc = start_all(d, s, w->y, e);
    keep_frame(d, 0);
    for (int f = 1; rc == 0 && f < d->n_frames; f++) {
        struct sampler part = *s;
        part.steps = d->at[f] - d->at[f - 1];
        part.cool_last = f == d->n_frames - 1 && s->cool_last < s->steps ? s->cool_last : 0;
        walkers_run(d->walkers, &(struct walk_task){.sampler = &part,
                                                    .step_norm_last = part.step_norm,
                                                    .seed = rng_mix(d->r->s->seed + (uint64_t)f),
                                                    .n = d->n_rows * CHAINS,
                                                    .x = d->x,
                                                    .y = w->y,
                                                    .log_p = w->log_p,
                                                    .gradient = w->gradient,
                                                    .diverged = w->diverged});
        keep_frame(d, f);
        eval_watch_tell(&d->r->s->watch, "steps of pictures", (size_t)d->at[f], (size_t)s->steps);
        rc = eval_watch_check(&d->r->s->watch, e);
    }
    return rc;
}

static int draw(struct drawing *d, enum start_kind start, int steps, struct err *e)
{
    const size_t chains = (size_t)d->n_rows * CHAINS, elements = model_elements(d->r->model);
    struct sampler s = d->r->model->d.sampler;
    struct walk_memory w = {0};
    s.kind = s.kind == SAMPLER_GIBBS ? SAMPLER_SGLD : s.kind; /* free labels are marginalised */
    s.start = start;
    s.steps = steps;
    plan_frames(d, &s);
    d->x = calloc(chains * elements, sizeof *d->x);
    d->frames = calloc((size_t)d->n_rows * (FRAMES + 1) * elements, sizeof *d->frames);
    w.y = calloc(chains, (size_t)d->r->model->d.attributes.n);
    w.diverged = calloc(chains, 1);
    w.log_p = calloc(chains, sizeof *w.log_p);
    w.gradient = calloc(chains, sizeof *w.gradient);
    int rc = d->x && d->frames && w.y && w.diverged && w.log_p && w.gradient
                 ? walk(d, &s, &w, e)
                 : fail(e, FAIL_NO_MEMORY, "no memory for %zu chains", chains);
    if (rc == 0)
        rc = add_all(d, start, e);
    free(d->x);
    free(d->frames);
    free(w.y);
    free(w.diverged);
    free(w.log_p);
    free(w.gradient);
    return rc;
}

static bool has_row(const struct drawing *d, size_t row)
{
    for (int i = 0; i < d->n_rows; i++)
        if (d->rows[i] == row)
            return true;
    return false;
}

/* A row of every pair, then rows at equal distances. */
static int choose_rows(struct drawing *d, struct err *e)
{
    const struct evaluation_setup *s = d->r->s;
    const struct attributes *a = &d->r->model->d.attributes;
    const size_t n = d->data->n;
    const int most = s->drawn < CONDITIONS_MAX ? s->drawn : CONDITIONS_MAX;
    d->n_rows = 0;
    for (int i = 0; i < s->n_pairs && d->n_rows < most; i++) {
        struct judge_pair p;
        const int rc = judge_pair_parse(&p, a, s->pairs[i], e);
        if (rc != 0)
            return rc;
        for (size_t row = 0; row < n; row++) {
            int met = 0;
            for (int t = 0; t < p.n; t++)
                met += d->data->labels[row * (size_t)a->n + (size_t)p.attribute[t]] == p.value[t];
            if (met < p.n || has_row(d, row))
                continue;
            d->rows[d->n_rows++] = row;
            break;
        }
    }
    const size_t left = (size_t)(most - d->n_rows);
    for (size_t i = 0; i < left && i < n; i++) {
        const size_t row = i * n / (left < n ? left : n);
        if (!has_row(d, row))
            d->rows[d->n_rows++] = row;
    }
    return 0;
}

static int draw_split(struct drawing *d, struct err *e)
{
    const struct evaluation_setup *s = d->r->s;
    const struct model *m = d->r->model;
    const int steps = s->steps >= 0 ? s->steps : m->d.sampler.steps;
    const int again = s->buffer_steps >= 0 ? s->buffer_steps : m->d.steps_buffer;
    int rc = choose_rows(d, e);
    if (rc == 0 && steps > 0)
        rc = draw(d, START_NOISE, steps, e);
    if (rc == 0 && again > 0 && m->n_buffer > 0)
        rc = draw(d, START_BUFFER, again, e);
    return rc;
}

static int draw_novel(struct drawing *d, struct err *e)
{
    const struct evaluation_state *r = d->r;
    struct dataset set;
    struct err why;
    d->split = r->s->novel ? r->s->novel : "novel";
    if (strcmp(d->split, r->splits[r->familiar].name) == 0)
        return 0;
    int rc = evaluation_open(r, &set, r->s->data, d->split, true, &why);
    if (rc == -FAIL_NOT_FOUND && !r->s->novel)
        return 0;
    if (rc != 0) {
        *e = why;
        return rc;
    }
    d->data = &set;
    rc = draw_split(d, e);
    dataset_close(&set);
    return rc;
}

int evaluation_draw_pictures(struct evaluation_state *r, struct err *e)
{
    const struct evaluation_split *familiar = &r->splits[r->familiar];
    struct drawing d = {.r = r, .split = familiar->name, .data = &familiar->set};
    /* a score that conditions do not enter has no conditional samples */
    if (r->s->drawn <= 0 || r->model->d.attributes.head >= 0)
        return 0;
    json_object_set_new(r->out->report, "pictures", json_array());
    int rc = walkers_open(&d.walkers, r->model->net, &r->model->d.attributes, r->pool, e);
    if (rc != 0)
        return rc;
    walkers_watch(d.walkers, r->s->watch.cancel);
    rc = draw_split(&d, e);
    if (rc == 0)
        rc = draw_novel(&d, e);
    walkers_close(d.walkers);
    return rc;
}
