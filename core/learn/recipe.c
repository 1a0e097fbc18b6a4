/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/recipe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const label_words[LABELS_KINDS] = {"free", "data", "gibbs", "classes"};
static const char *const write_words[WRITE_KINDS] = {"in_place", "ring", "reservoir"};
static const char *const start_words[] = {"noise", "gaussian"};
static const char *const optimiser_words[] = {"adam", "sgd"};

#define FALL 0.1 /* of the step norm within a visit, unless said otherwise */
#define GAP 10   /* health.gap, unless said otherwise or ... */
#define PULL 0.8 /* ... that much of what pulls data and chains apart is gone before (loss.gap) */
enum { STEPS_MAX = 100000000, COUNT_MAX = 65536 };

static const struct recipe defaults = {
    .steps = 20000,
    .batch = 32,
    .data_noise = 0.03,
    .data_clamp = true,
    .data = {.log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.005f},
    .optimiser = {.kind = OPTIMISER_ADAM, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8},
    .rate = 3e-4,
    .clip = 1,
    .average = 0.999,
    .warm_up = 100,
    .decay_last = 0.25,
    .chains = {.count = 32,
               .buffer = 2000,
               .labels = LABELS_DATA,
               .mask = 0.05,
               .free = 0.025,
               .sampler = {.kind = SAMPLER_SGLD,
                           .rule = SAMPLER_NORMALISED,
                           .steps = 10,
                           .langevin_steps = 1,
                           .step_size = 10,
                           .step_norm = 0.04f,
                           .noise = 0.01f,
                           .temperature = 1,
                           .clamp = true},
               .step_norm_last = 0.004,
               .births_every = 10,
               .births = 16,
               .birth_steps = 60,
               .blur = 0.05,
               .shift = 0.05,
               .augment_fresh = true,
               .grid = 8},
    .kl = {.neighbours = 100, .after = 20},
    .health = {.gap = -1,
               .gradient = 100,
               .lag = 60,
               .loss = 1e8,
               .dead = 1e-8,
               .cosine = -1,
               .fresh = {.every = 500, .count = 16, .right = 0.1, .lag = 60},
               .warm_up = 500,
               .retries = 8,
               .slower = 0.5},
    .checkpoint_every = 500,
    .export_buffer = 1000,
};

/* Reads numbers until one is wrong. */
struct reading {
    struct json_reader r;
    struct err *e;
    int rc;
};

static void whole(struct reading *g, const char *name, int lo, int hi, int *out)
{
    long long v = *out;
    if (g->rc < 0)
        return;
    g->rc = json_get_int(&g->r, name, lo, hi, &v, g->e);
    *out = (int)v;
}

static void real(struct reading *g, const char *name, double lo, double hi, double *out)
{
    if (g->rc >= 0)
        g->rc = json_get_number(&g->r, name, lo, hi, out, g->e);
}

static void single(struct reading *g, const char *name, double lo, double hi, float *out)
{
    double v = (double)*out;
    real(g, name, lo, hi, &v);
    *out = (float)v;
}

static void word(struct reading *g, const char *name, const char *const *words, int n, int *out)
{
    if (g->rc >= 0)
        g->rc = json_get_word(&g->r, name, words, n, out, g->e);
}

/* Opens member `name` of `from` as an object; false when it is absent or something was wrong. */
static bool enter(struct reading *g, struct reading *from, const char *name)
{
    const json_t *object;
    char pointer[128];
    *g = (struct reading){.e = from->e};
    if (from->rc < 0)
        return false;
    from->rc = json_get_object(&from->r, name, &object, from->e);
    if (from->rc <= 0)
        return false;
    json_reader_pointer(&from->r, name, pointer, sizeof pointer);
    g->rc = json_reader_init(&g->r, object, pointer, g->e);
    if (g->rc < 0)
        from->rc = g->rc;
    return g->rc >= 0;
}

static void leave(struct reading *g, struct reading *from)
{
    if (g->rc >= 0)
        g->rc = json_reader_finish(&g->r, g->e);
    if (g->rc < 0)
        from->rc = g->rc;
}

static void flag(struct reading *g, const char *name, bool *out)
{
    if (g->rc >= 0)
        g->rc = json_get_bool(&g->r, name, out, g->e);
}

static void read_kl(struct recipe_kl *k, struct reading *from)
{
    struct reading g;
    if (!enter(&g, from, "kl"))
        return;
    real(&g, "marginal", 0, 1e3, &k->marginal);
    real(&g, "neighbour", 0, 1e3, &k->neighbour);
    whole(&g, "neighbours", 0, 4096, &k->neighbours);
    whole(&g, "after", 0, STEPS_MAX, &k->after);
    leave(&g, from);
}

static void read_loss(struct recipe *r, struct reading *from)
{
    struct reading g;
    float px = -r->data.log_px, pxy = -r->data.log_pxy, square = r->data.square_pxy;
    if (!enter(&g, from, "loss"))
        return;
    single(&g, "log_px", 0, 1e3, &px);
    single(&g, "log_pxy", 0, 1e3, &pxy);
    single(&g, "cross_entropy", 0, 1e3, &r->data.cross_entropy);
    single(&g, "smoothing", 0, 0.99, &r->data.smoothing);
    single(&g, "square", 0, 1e3, &square);
    real(&g, "gap", 0, 1e3, &r->gap);
    read_kl(&r->kl, &g);
    leave(&g, from);
    r->data.log_px = -px;
    r->data.log_pxy = -pxy;
    r->data.square_px = pxy > 0 ? 0 : square;
    r->data.square_pxy = pxy > 0 ? square : 0;
}

static void read_data(struct recipe *r, struct reading *from)
{
    struct reading g;
    if (!enter(&g, from, "data"))
        return;
    real(&g, "noise", 0, 10, &r->data_noise);
    flag(&g, "clamp", &r->data_clamp);
    whole(&g, "crop", 0, 64, &r->crop);
    flag(&g, "flip", &r->flip);
    flag(&g, "dequantise", &r->dequantise);
    whole(&g, "labels_per_class", 0, STEPS_MAX, &r->labels_per_class);
    whole(&g, "labelled_batch", 0, 4096, &r->labelled_batch);
    leave(&g, from);
}

static int read_decay(struct recipe *r, const json_t *value, size_t i, struct err *e)
{
    struct recipe_decay *d = &r->decay[i];
    struct json_reader one;
    char pointer[64];
    d->step = -1;
    d->factor = -1;
    snprintf(pointer, sizeof pointer, "/training/optimiser/decay/%zu", i);
    int rc = json_reader_init(&one, value, pointer, e);
    if (rc >= 0)
        rc = json_get_int(&one, "step", i > 0 ? r->decay[i - 1].step + 1 : 1, STEPS_MAX, &d->step,
                          e);
    if (rc >= 0)
        rc = json_get_number(&one, "factor", 0, 1e3, &d->factor, e);
    if (rc >= 0)
        rc = json_reader_finish(&one, e);
    if (rc >= 0 && d->step < 0)
        rc = json_missing(&one, "step", e);
    if (rc >= 0 && d->factor < 0)
        rc = json_missing(&one, "factor", e);
    return rc;
}

/* Whether there is any: then the rate does not fall at the end as well, unless that is said too. */
static bool read_decays(struct recipe *r, struct reading *g)
{
    const json_t *list = NULL;
    if (g->rc >= 0)
        g->rc = json_get_array(&g->r, "decay", RECIPE_DECAYS_MAX, &list, g->e);
    for (size_t i = 0; g->rc >= 0 && list && i < json_array_size(list); i++)
        g->rc = read_decay(r, json_array_get(list, i), i, g->e);
    r->n_decays = list ? (int)json_array_size(list) : 0;
    return r->n_decays > 0;
}

static void read_optimiser(struct recipe *r, struct reading *from)
{
    struct reading g;
    int kind = (int)r->optimiser.kind;
    if (!enter(&g, from, "optimiser"))
        return;
    word(&g, "kind", optimiser_words, 2, &kind);
    r->optimiser.kind = (enum optimiser_kind)kind;
    real(&g, "rate", 0, 10, &r->rate);
    real(&g, "beta1", 0, 0.999999, &r->optimiser.beta1);
    real(&g, "beta2", 0, 0.999999, &r->optimiser.beta2);
    real(&g, "epsilon", 1e-30, 1, &r->optimiser.epsilon);
    real(&g, "momentum", 0, 0.999999, &r->optimiser.momentum);
    real(&g, "weight_decay", 0, 1, &r->optimiser.weight_decay);
    real(&g, "clip", 0, 1e9, &r->clip);
    real(&g, "average", 0, 0.9999999, &r->average);
    whole(&g, "warm_up", 0, STEPS_MAX, &r->warm_up);
    if (read_decays(r, &g))
        r->decay_last = 0;
    real(&g, "decay_last", 0, 1, &r->decay_last);
    leave(&g, from);
}

static void read_births(struct recipe_chains *c, struct reading *from)
{
    struct reading g;
    if (!enter(&g, from, "births"))
        return;
    whole(&g, "every", 1, STEPS_MAX, &c->births_every);
    whole(&g, "count", 0, COUNT_MAX, &c->births);
    whole(&g, "steps", 1, 100000, &c->birth_steps);
    whole(&g, "cool_last", 0, 100000, &c->birth_cool_last);
    leave(&g, from);
}

static void read_chains(struct recipe *r, struct reading *from)
{
    struct recipe_chains *c = &r->chains;
    struct reading g;
    int labels = (int)c->labels, rule = (int)c->sampler.rule, write = (int)c->write;
    int start = c->gaussian;
    double last = -1;
    if (!enter(&g, from, "chains"))
        return;
    whole(&g, "count", 0, 4096, &c->count);
    whole(&g, "buffer", 1, 1000000, &c->buffer);
    whole(&g, "paired", 0, 4096, &c->paired);
    word(&g, "labels", label_words, LABELS_KINDS, &labels);
    word(&g, "write", write_words, WRITE_KINDS, &write);
    word(&g, "start", start_words, 2, &start);
    whole(&g, "grid", 1, RECIPE_GRID_MAX, &c->grid);
    real(&g, "mask", 0, 1, &c->mask);
    real(&g, "free", 0, 1, &c->free);
    whole(&g, "steps", 1, 10000, &c->sampler.steps);
    whole(&g, "langevin_steps", 1, 1000, &c->sampler.langevin_steps);
    whole(&g, "cool_last", 0, 10000, &c->sampler.cool_last);
    word(&g, "step_rule", sampler_rule_names, SAMPLER_RULES, &rule);
    single(&g, "step_size", 0, 1e6, &c->sampler.step_size);
    single(&g, "step_norm", 0, 1e3, &c->sampler.step_norm);
    real(&g, "step_norm_last", 0, 1e3, &last);
    single(&g, "noise", 0, 1e3, &c->sampler.noise);
    flag(&g, "clamp", &c->sampler.clamp);
    single(&g, "pixel_clamp", 0, 1e6, &c->sampler.pixel_clamp);
    real(&g, "reinit", 0, 1, &c->reinit);
    real(&g, "blur", 0, 1, &c->blur);
    real(&g, "shift", 0, 1, &c->shift);
    real(&g, "flip", 0, 1, &c->flip);
    flag(&g, "augment_fresh", &c->augment_fresh);
    read_births(c, &g);
    leave(&g, from);
    c->labels = (enum chain_labels)labels;
    c->write = (enum chain_write)write;
    c->gaussian = start == 1;
    c->sampler.rule = (enum sampler_rule)rule;
    c->step_norm_last = last >= 0 ? last : FALL * (double)c->sampler.step_norm;
}

static void read_fresh(struct recipe_fresh *f, struct reading *from)
{
    struct reading g;
    if (!enter(&g, from, "fresh"))
        return;
    whole(&g, "every", 0, STEPS_MAX, &f->every);
    whole(&g, "count", 1, 4096, &f->count);
    whole(&g, "steps", 0, 100000, &f->steps);
    real(&g, "right", 0, 1, &f->right);
    real(&g, "lag", 0, 1e9, &f->lag);
    leave(&g, from);
}

static void read_health(struct recipe *r, struct reading *from)
{
    struct recipe_health *h = &r->health;
    struct reading g;
    if (!enter(&g, from, "health"))
        return;
    real(&g, "gap", 0, 1e9, &h->gap);
    real(&g, "gradient", 1, 1e9, &h->gradient);
    real(&g, "lag", 0, 1e9, &h->lag);
    real(&g, "loss", 0, 1e300, &h->loss);
    real(&g, "dead", 0, 1e9, &h->dead);
    real(&g, "drift", 0, 1e9, &h->drift);
    real(&g, "cosine", -1, 1, &h->cosine);
    read_fresh(&h->fresh, &g);
    whole(&g, "warm_up", 0, STEPS_MAX, &h->warm_up);
    whole(&g, "retries", 0, 1000, &h->retries);
    real(&g, "slower", 0.01, 1, &h->slower);
    leave(&g, from);
}

static void read_training(struct recipe *r, struct reading *g)
{
    long long v = r->steps;
    if (g->rc >= 0)
        g->rc = json_get_int(&g->r, "steps", 1, STEPS_MAX, &v, g->e);
    r->steps = v;
    if (g->rc >= 0)
        g->rc = json_get_int(&g->r, "seed", 0, INT64_MAX, &r->seed, g->e);
    whole(g, "batch", 1, 4096, &r->batch);
    read_data(r, g);
    read_loss(r, g);
    read_optimiser(r, g);
    read_chains(r, g);
    read_health(r, g);
    whole(g, "checkpoint_every", 1, STEPS_MAX, &r->checkpoint_every);
    whole(g, "export_buffer", 0, COUNT_MAX, &r->export_buffer);
}

static int read_model(struct recipe *r, const json_t *model, const char *path, struct err *e)
{
    if (!model)
        return fail(e, FAIL_MISSING_FIELD, "%.200s: \"model\" is missing", path);
    char *text = json_text(model, NULL);
    const int rc = text ? description_parse(&r->model, text, path, e)
                        : fail(e, FAIL_NO_MEMORY, "no memory for the recipe");
    free(text);
    return rc;
}

static int digest_of(const json_t *root, char hex[DIGEST_HEX], struct err *e)
{
    size_t size;
    char *text = json_text(root, &size);
    if (!text)
        return fail(e, FAIL_NO_MEMORY, "no memory for the recipe");
    digest_bytes(text, size, hex);
    free(text);
    return 0;
}

/* No more rows and chains than what the weights of the loss ask for. */
static void drop_idle(struct recipe *r)
{
    struct recipe_chains *c = &r->chains;
    if (r->data.log_pxy == 0)
        c->paired = 0;
    if (r->data.log_px == 0 && (r->data.log_pxy == 0 || c->paired > 0))
        c->count = 0;
    if (c->count == 0) {
        r->data.log_px = 0;
        if (c->paired == 0)
            r->data.log_pxy = 0;
    }
    if (r->labelled_batch > 0 && r->data.log_px == 0)
        r->batch = 0;
}

/* Whose log p(x), log p(x, y) and labels the loss takes: r->data holds all its weights. */
static void split_weights(struct recipe *r)
{
    const struct loss_weights all = r->data;
    const float square = all.square_px + all.square_pxy;
    const struct loss_weights marginal = {.log_px = all.log_px,
                                          .square_px = all.log_px != 0 ? square : 0};
    const struct loss_weights joint = {.log_pxy = all.log_pxy,
                                       .square_pxy = all.log_pxy != 0 ? square : 0};
    if (r->labelled_batch > 0) {
        r->labelled = joint;
        r->labelled.cross_entropy = all.cross_entropy;
        r->labelled.smoothing = all.smoothing;
        if (r->batch > 0)
            r->data = marginal;
        else
            r->labelled.square_px = all.log_pxy != 0 ? 0 : square;
    }
    r->negatives = r->chains.paired > 0 ? marginal : all;
    r->paired = r->chains.paired > 0 ? joint : (struct loss_weights){0};
    r->negatives.cross_entropy = r->negatives.smoothing = 0;
    r->negatives.log_px *= -1;
    r->negatives.log_pxy *= -1;
    r->paired.log_pxy *= -1;
}

static int check_slots(const struct recipe *r, struct err *e)
{
    const struct recipe_chains *c = &r->chains;
    const struct attributes *a = &r->model.attributes;
    if (!c->slots)
        return 0;
    if (a->n != 1 || a->list[0].n_values > LOSS_MISSING || a->list[0].n_values > c->buffer)
        return fail(e, FAIL_OUT_OF_RANGE,
                    "slots by class (chains.labels \"classes\", chains.paired) need a model of one "
                    "attribute of at most 255 values, and a buffer entry for each of them");
    if (c->write != WRITE_IN_PLACE || c->labels == LABELS_GIBBS)
        return fail(
            e, FAIL_UNSUPPORTED,
            "slots by class (chains.labels \"classes\", chains.paired) go with chains.write "
            "\"in_place\" and not with chains.labels \"gibbs\"");
    return 0;
}

/* The chains' range and start are the model's. */
static int finish(struct recipe *r, struct err *e)
{
    struct recipe_chains *c = &r->chains;
    struct sampler *s = &c->sampler;
    drop_idle(r);
    split_weights(r);
    if (r->health.gap < 0)
        r->health.gap = r->gap > 0 ? fmin(GAP, PULL / (2 * r->gap)) : GAP;
    c->gaussian |= r->model.sampler.start == START_GAUSSIAN;
    c->slots = c->paired > 0 || (c->count > 0 && c->labels == LABELS_CLASSES);
    if (c->slots && c->labels == LABELS_DATA)
        c->labels = LABELS_CLASSES;
    s->clamp_lo = r->model.range_lo;
    s->clamp_hi = r->model.range_hi;
    s->start_grid = r->model.sampler.start_grid;
    s->start_noise = r->model.sampler.start_noise;
    if (c->count + c->paired > c->buffer)
        return fail(e, FAIL_OUT_OF_RANGE, "a buffer of %d has no room for %d chains", c->buffer,
                    c->count + c->paired);
    if (c->birth_cool_last > c->birth_steps)
        return fail(e, FAIL_OUT_OF_RANGE, "births.cool_last must be at most their steps, %d",
                    c->birth_steps);
    if (c->gaussian && (c->grid > r->model.input.h || c->grid > r->model.input.w))
        return fail(e, FAIL_OUT_OF_RANGE, "chains.grid is finer than the image");
    const int rc = check_slots(r, e);
    return rc == 0 ? sampler_check(s, e) : rc;
}

static int read_root(struct recipe *r, const json_t *root, const char *path, struct err *e)
{
    const json_t *model = NULL;
    struct reading top = {.e = e}, g;
    top.rc = json_reader_init(&top.r, root, "", e);
    if (top.rc >= 0)
        top.rc = json_get_object(&top.r, "model", &model, e);
    if (top.rc >= 0)
        top.rc = read_model(r, model, path, e);
    if (top.rc < 0)
        return top.rc;
    if (enter(&g, &top, "training")) {
        read_training(r, &g);
        leave(&g, &top);
    }
    return top.rc < 0 ? top.rc : json_reader_finish(&top.r, e);
}

int recipe_parse(struct recipe *r, const char *text, size_t size, const char *path, struct err *e)
{
    json_t *root;
    int rc = json_parse(text, size, &root, e);
    if (rc != 0)
        return rc;
    *r = defaults;
    rc = digest_of(root, r->sha256, e);
    if (rc == 0)
        rc = read_root(r, root, path, e);
    if (rc == 0)
        rc = finish(r, e);
    json_decref(root);
    if (rc != 0)
        recipe_fini(r);
    return rc;
}

void recipe_fini(struct recipe *r)
{
    description_fini(&r->model);
}

double recipe_rate(const struct recipe *r, long long step, double scale)
{
    const double first = r->warm_up > 0 ? (double)(step + 1) / r->warm_up : 1;
    const double last = r->decay_last * (double)r->steps;
    const double left = last > 0 ? (double)(r->steps - step) / last : 1;
    double rate = scale * r->rate * (first < 1 ? first : 1) * (left < 1 ? left : 1);
    for (int i = 0; i < r->n_decays && r->decay[i].step <= step; i++)
        rate *= r->decay[i].factor;
    return rate;
}
