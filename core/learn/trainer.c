/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/trainer.h"

#include "base/pool.h"
#include "base/rng.h"
#include "ebm/evaluate.h"
#include "ebm/score.h"
#include "learn/joint_loss.h"
#include "learn/trainer_internal.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

uint64_t trainer_seed(const struct trainer *t, long long step)
{
    const uint64_t attempt = rng_mix((uint64_t)t->recipe->seed) + (uint64_t)t->progress.attempt;
    return rng_mix(rng_mix(attempt) + (uint64_t)step);
}

/* ---- opening ---- */

/* PyTorch's default: weights and biases uniform within 1 / sqrt(fan in). */
static void init_parameters(struct trainer *t)
{
    struct parameters *p = &t->parameters;
    float bound = 1;
    for (int i = 0; i < p->n_tensors; i++) {
        const struct parameter *one = &p->list[i];
        const struct rng_stream s = {
            .seed = trainer_seed(t, TRAINER_INITIAL), .chain = (uint32_t)i, .purpose = RNG_INIT};
        float *v = p->values + one->offset;
        if (one->n_dims > 1) /* a bias follows its weight */
            bound = 1 / sqrtf((float)(one->elements / (size_t)one->shape[0]));
        rng_uniform(&s, v, one->elements);
        for (size_t j = 0; j < one->elements; j++)
            v[j] = bound * (2 * v[j] - 1);
    }
    memcpy(t->average, p->values, p->n * sizeof *t->average);
}

static int check_data(const struct trainer *t, struct err *e)
{
    const struct description *d = &t->recipe->model;
    const struct source *data = t->data;
    int limits[ATTRIBUTES_MAX];
    if (data->channels != d->input.c || data->height != d->input.h || data->width != d->input.w)
        return fail(e, FAIL_OUT_OF_RANGE,
                    "the data are %d x %d x %d (C,H,W), the model's %d x %d x %d", data->channels,
                    data->height, data->width, d->input.c, d->input.h, d->input.w);
    if (data->columns != d->attributes.n || d->attributes.head >= 0)
        return fail(e, FAIL_OUT_OF_RANGE,
                    "the data have %d labels a row, the model %d attributes%s", data->columns,
                    d->attributes.n,
                    d->attributes.head >= 0 ? " and a head, which is not trained here" : "");
    if (data->n < (size_t)t->recipe->batch || data->n > INT32_MAX)
        return fail(e, FAIL_OUT_OF_RANGE, "%zu rows of data are too few for a batch of %d", data->n,
                    t->recipe->batch);
    for (int k = 0; k < d->attributes.n; k++)
        limits[k] = d->attributes.list[k].n_values;
    return source_check_labels(data, limits, e);
}

/* Walks through all that is in the arena: sums, or hands out. */
static void *take(struct arena *a, bool made, size_t bytes)
{
    if (made)
        return arena_take(a, bytes);
    a->size_bytes += arena_round(bytes);
    return NULL;
}

static void lay_out_data(struct trainer *t, struct arena *a, bool made)
{
    const size_t e = trainer_elements(t);
    t->data_workers = take(a, made, (size_t)t->threads * sizeof *t->data_workers);
    for (int i = 0; i < t->threads; i++) {
        unsigned char *pixels = take(a, made, e);
        float *scratch = take(a, made, e * sizeof(float));
        if (made)
            t->data_workers[i] = (struct data_worker){.pixels = pixels, .scratch = scratch};
    }
}

static void lay_out(struct trainer *t, struct arena *a, bool made)
{
    const struct recipe *r = t->recipe;
    const size_t e = trainer_elements(t), k = (size_t)trainer_labels(t),
                 n = (size_t)trainer_rows(t);
    const size_t chains = (size_t)trainer_chains(t), births = chains ? (size_t)r->chains.births : 0;
    const size_t most = (chains > births ? chains : births) + 1;
    const size_t buffer = chains ? (size_t)r->chains.buffer : 0;
    t->average = take(a, made, t->parameters.n * sizeof(float));
    t->slope = take(a, made, t->parameters.n * sizeof(float));
    t->buffer_x = take(a, made, buffer * e * sizeof(float));
    t->buffer_y = take(a, made, buffer * k);
    t->buffer_age = take(a, made, buffer * sizeof(uint32_t));
    t->order.rows = take(a, made, t->data->n * sizeof(uint32_t));
    t->labelled_order.rows = take(a, made, t->labels.n * sizeof(uint32_t));
    t->rows = take(a, made, (size_t)trainer_data_rows(t) * sizeof(uint32_t));
    t->x = take(a, made, n * e * sizeof(float));
    t->y = take(a, made, n * k);
    t->dlogits = take(a, made, n * (size_t)net_logits(t->net) * sizeof(float));
    t->start_x = take(a, made, chains * e * sizeof(float));
    t->picks = take(a, made, (chains + 1) * sizeof(int));
    t->ages = take(a, made, (chains + 1) * sizeof(uint32_t));
    t->cosine = take(a, made, most * sizeof(float));
    t->log_p = take(a, made, most * sizeof(float));
    t->mean_gradient = take(a, made, most * sizeof(float));
    t->diverged = take(a, made, most);
    t->born_x = take(a, made, births * e * sizeof(float));
    t->born_y = take(a, made, births * k);
    t->scratch = take(a, made, e * sizeof(float));
    t->uniforms = take(a, made, k * sizeof(float));
    lay_out_data(t, a, made);
    t->reading = take(a, made, (size_t)score_logits(&t->attributes) * sizeof(float));
}

size_t trainer_arena(struct trainer *t)
{
    struct arena sizes = {0};
    lay_out(t, &sizes, false);
    return sizes.size_bytes;
}

/* What the network's outputs mean. */
static int open_energy(struct trainer *t, const struct net_weights *source, struct err *e)
{
    const struct recipe *r = t->recipe;
    const struct recipe_chains *c = &r->chains;
    t->attributes = r->model.attributes;
    if (r->model.energy.kind == JOINT_NONE)
        return net_logits(t->net) == t->attributes.n_logits
                   ? 0
                   : fail(e, FAIL_BAD_MODEL,
                          "the network makes %d numbers, the attributes have %d values",
                          net_logits(t->net), t->attributes.n_logits);
    int rc = joint_open(&t->head, &r->model.energy, net_logits(t->net), &t->attributes, source, e);
    t->attributes.joint = t->head;
    const bool smoothed = r->data.smoothing > 0 || r->labelled.smoothing > 0;
    if (rc == 0 && (smoothed || r->kl.marginal > 0 || r->kl.neighbour > 0))
        rc = fail(e, FAIL_UNSUPPORTED, "an energy of kind dot or mlp is trained without %s: set %s",
                  smoothed ? "label smoothing" : "the KL term",
                  smoothed ? "loss.smoothing to 0" : "loss.kl.marginal and .neighbour to 0");
    const bool masked =
        c->count > 0 &&
        (c->labels == LABELS_FREE || (c->labels == LABELS_DATA && (c->mask > 0 || c->free > 0)));
    const struct labelled *l = &t->labels;
    if (rc == 0)
        rc = joint_loss_check(&t->attributes, &r->data, masked, l->labels, l->rows, e);
    if (rc == 0)
        rc = joint_loss_check(&t->attributes, &r->labelled, masked, l->labels, l->rows, e);
    return rc;
}

static int open_parts(struct trainer *t, struct err *e)
{
    const struct description *d = &t->recipe->model;
    const struct gradient_options o = {.batch = trainer_pass(t), .pool = t->pool};
    int rc = parameters_init_model(&t->parameters, d, e);
    if (rc != 0)
        return rc;
    const struct net_weights source = parameters_source(&t->parameters);
    rc = net_open(&t->net, d->layers, d->n_layers, d->input, &source, e);
    if (rc == 0)
        rc = open_energy(t, &source, e);
    if (rc == 0)
        rc = gradient_open(&t->gradient, t->net, &t->parameters, &o, e);
    if (rc == 0)
        rc = optimiser_open(&t->optimiser, &t->recipe->optimiser, t->parameters.n, e);
    if (rc != 0)
        return rc;
    rc = arena_init(&t->arena, trainer_arena(t), e);
    if (rc != 0)
        return rc;
    lay_out(t, &t->arena, true);
    init_parameters(t);
    if (trainer_chains(t) == 0)
        return 0;
    rc = walkers_open(&t->walkers, t->net, &t->attributes, t->pool, e);
    if (rc == 0 && t->recipe->chains.gaussian)
        rc = chains_fit(t, e);
    if (rc == 0 && t->recipe->health.fresh.every > 0 && score_check(&t->attributes, NULL) == 0)
        rc = fresh_open(t, e);
    if (rc == 0 && trainer_has_kl(t))
        rc = kl_term_open(t, e);
    if (rc == 0)
        chains_begin(t);
    return rc;
}

static struct progress first_progress(long long attempt)
{
    return (struct progress){.attempt = attempt,
                             .scale = 1,
                             .newborn = (double)NAN,
                             .right = (double)NAN,
                             .fresh_log_p = (double)NAN,
                             .fresh_lag = (double)NAN,
                             .base = -1};
}

void trainer_begin(struct trainer *t, long long attempt)
{
    const size_t entries = t->walkers ? (size_t)t->recipe->chains.buffer : 0;
    t->progress = first_progress(attempt);
    init_parameters(t);
    optimiser_reset(t->optimiser);
    memset(t->buffer_x, 0, entries * trainer_elements(t) * sizeof *t->buffer_x);
    memset(t->buffer_y, 0, entries * (size_t)trainer_labels(t));
    memset(t->buffer_age, 0, entries * sizeof *t->buffer_age);
    if (t->walkers)
        chains_begin(t);
}

static int resume(struct trainer *t, struct err *e)
{
    if (!t->directory[0])
        return 0;
    if (!t->existing && mkdir(t->directory, 0777) != 0 && errno != EEXIST)
        return fail_errno(e, FAIL_IO, "cannot make %s", t->directory);
    const int rc = checkpoint_load(t, e);
    t->saved = t->progress.step;
    if (rc > 0 && t->walkers)
        walkers_refresh(t->walkers);
    if (rc == 0 && t->existing)
        return fail(e, FAIL_NOT_FOUND, "there is no checkpoint that can be read in %.300s",
                    t->directory);
    /* A first one, so that there is always something to go back to. */
    return rc < 0 ? rc : rc == 0 ? checkpoint_save(t, e) : 0;
}

int trainer_open(struct trainer **out, const struct trainer_options *o, struct err *e)
{
    struct trainer *t = calloc(1, sizeof *t);
    if (!t)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a trainer");
    *t = (struct trainer){.recipe = o->recipe,
                          .data = o->data,
                          .pool = o->pool,
                          .threads = o->pool ? pool_threads(o->pool) : 1,
                          .existing = o->existing,
                          .stop = o->stop,
                          .progress = first_progress(0)};
    snprintf(t->directory, sizeof t->directory, "%s", o->directory ? o->directory : "");
    snprintf(t->identity, sizeof t->identity, "%s %s", o->recipe->sha256, o->data->sha256);
    int rc = check_data(t, e);
    if (rc == 0)
        rc = rows_open(t, e);
    if (rc == 0)
        rc = open_parts(t, e);
    if (rc == 0)
        rc = resume(t, e);
    if (rc == 0)
        *out = t;
    else
        trainer_close(t);
    return rc;
}

void trainer_close(struct trainer *t)
{
    if (!t)
        return;
    kl_term_close(t->kl_term);
    fresh_close(t->fresh);
    gaussian_fit_close(t->fit);
    labelled_fini(&t->labels);
    walkers_close(t->walkers);
    gradient_close(t->gradient);
    optimiser_close(t->optimiser);
    joint_close(t->head);
    net_close(t->net);
    parameters_fini(&t->parameters);
    arena_fini(&t->arena);
    free(t);
}

/* ---- a step ---- */

/* Right answers over all labels of the data whose labels are learnt; NAN where the model cannot
 * answer. */
static double accuracy(const struct trainer *t, const float *outputs)
{
    const struct attributes *a = &t->attributes;
    long right = 0, all = 0;
    if (score_check(a, NULL) != 0)
        return (double)NAN;
    for (int i = t->recipe->labelled_batch > 0 ? t->recipe->batch : 0; i < trainer_data_rows(t);
         i++) {
        score_read(a, outputs + (size_t)i * (size_t)score_outputs(a), NULL, t->reading);
        for (int k = 0; k < a->n; k++) {
            const float *f = t->reading + a->list[k].first;
            const uint8_t y = t->y[(size_t)i * (size_t)a->n + (size_t)k];
            all += y != LOSS_MISSING;
            right += y == evaluate_top(f, a->list[k].n_values);
        }
    }
    return all ? (double)right / (double)all : 0;
}

/* The loss of rows [first, first + n), none if n is 0, and its slope at their logits; that at a
 * head's weights is added. `pull` scales the weights of log p. */
static struct loss_values group_loss(struct trainer *t, const struct loss_weights *weights,
                                     double pull, const float *logits, int first, int n)
{
    const struct attributes *a = &t->attributes;
    const size_t l = (size_t)score_outputs(a) * (size_t)first;
    const struct walk_weights slope = {.base = t->parameters.values, .gradient = t->slope};
    struct loss_group g = {.weights = *weights,
                           .n = n,
                           .logits = logits + l,
                           .labels = t->y + (size_t)first * (size_t)a->n,
                           .slope = &slope};
    struct loss_values v = {0};
    g.weights.log_px *= (float)pull;
    g.weights.log_pxy *= (float)pull;
    if (n > 0)
        loss_gradient(a, &g, t->dlogits + l, &v);
    return v;
}

struct step_losses {
    struct loss_values data, labelled, chains, paired;
};

/* The losses of all rows of the step and their slopes at the logits and, from zero, at a head's
 * weights. */
static struct step_losses measure(struct trainer *t, double pull, const float *logits)
{
    const struct recipe *r = t->recipe;
    const int at = trainer_data_rows(t), pairs = at + r->chains.count;
    memset(t->slope, 0, t->parameters.n * sizeof *t->slope);
    return (struct step_losses){
        .data = group_loss(t, &r->data, pull, logits, 0, r->batch),
        .labelled = group_loss(t, &r->labelled, pull, logits, r->batch, r->labelled_batch),
        .chains = group_loss(t, &r->negatives, pull, logits, at, r->chains.count),
        .paired = group_loss(t, &r->paired, pull, logits, pairs, r->chains.paired)};
}

/* Mean log p of data and of chains. */
struct pair {
    double data, chains;
};

static double apart(struct pair p)
{
    return fabs(p.data - p.chains);
}

/* log p(x, y) if that is trained; where each has chains of its own, what is farther apart. */
static struct pair shown(const struct recipe *r, const struct step_losses *of)
{
    const bool joint = r->negatives.log_pxy != 0 || r->paired.log_pxy != 0;
    const bool both = r->chains.count > 0 && r->chains.paired > 0;
    const struct pair px = {r->batch > 0 ? of->data.log_px : of->labelled.log_px,
                            of->chains.log_px};
    const struct pair pxy = {r->labelled_batch > 0 ? of->labelled.log_pxy : of->data.log_pxy,
                             r->chains.paired > 0 ? of->paired.log_pxy : of->chains.log_pxy};
    return joint && !(both && apart(px) > apart(pxy)) ? pxy : px;
}

/* The losses of data and chains, and the parameters' slope. */
static void descend(struct trainer *t, uint64_t seed, struct trainer_step *out)
{
    const struct recipe *r = t->recipe;
    const float *logits = gradient_forward(t->gradient, trainer_rows(t), t->x);
    const struct step_losses of = measure(t, 1, logits);
    const struct pair p = shown(r, &of);
    out->loss = of.data.loss + of.chains.loss + of.labelled.loss + of.paired.loss;
    out->cross_entropy = r->labelled_batch > 0 ? of.labelled.cross_entropy : of.data.cross_entropy;
    out->accuracy = accuracy(t, logits);
    out->log_p_data = p.data;
    out->log_p_chains = p.chains;
    if (r->gap > 0 && t->walkers) {
        /* The derivative of -gap + weight gap^2 by the gap is -pull. */
        const double gap = p.data - p.chains, pull = 1 - 2 * r->gap * gap;
        out->loss += r->gap * gap * gap;
        measure(t, pull > -1 ? pull : -1, logits);
    }
    gradient_backward(t->gradient, trainer_rows(t), t->dlogits, NULL, t->slope);
    if (t->kl_term && t->progress.step >= r->kl.after)
        kl_term_add(t, seed, out);
}

static void step_parameters(struct trainer *t, struct trainer_step *out)
{
    const struct recipe *r = t->recipe;
    const double now = (double)(t->progress.step + 1) / (double)(t->progress.step + 10);
    out->rate = recipe_rate(r, t->progress.step, t->progress.scale);
    if (r->clip > 0)
        optimiser_clip(t->slope, t->parameters.n, r->clip);
    optimiser_step(t->optimiser, out->rate, t->slope, t->parameters.values);
    optimiser_average(t->average, t->parameters.values, t->parameters.n,
                      r->average < now ? r->average : now);
    if (t->walkers)
        walkers_refresh(t->walkers);
}

/* After a look at fresh chains; where nobody looks, when a checkpoint is due. */
static void note_best(struct trainer *t)
{
    struct progress *p = &t->progress;
    const double quality = health_quality(&p->health, &t->recipe->health);
    if (p->health.steps < t->recipe->health.warm_up || (p->best_step > 0 && quality < p->best))
        return;
    p->best = quality;
    p->best_step = p->step;
    t->best_due = true;
}

static enum health_state one_step(struct trainer *t, struct trainer_step *out)
{
    const struct recipe *r = t->recipe;
    const uint64_t seed = trainer_seed(t, t->progress.step);
    struct health_signs signs = {.finite = true, .chains = t->walkers != NULL};
    struct chains_visit visit = {0};
    if (t->walkers)
        signs.finite = chains_move(t, seed, &visit);
    descend(t, seed, out);
    out->gradient = visit.gradient;
    out->drift = visit.drift;
    out->cosine = visit.cosine;
    out->norm = optimiser_norm(t->slope, t->parameters.n);
    signs.finite &= isfinite(out->loss) && isfinite(out->norm);
    signs.gap = t->walkers ? out->log_p_data - out->log_p_chains : 0;
    signs.gradient = visit.gradient;
    signs.drift = visit.drift;
    signs.cosine = visit.cosine;
    signs.loss = out->loss;
    signs.cross_entropy = out->cross_entropy;
    signs.accuracy = out->accuracy;
    enum health_state state = health_step(&t->progress.health, &r->health, &signs);
    if (state != HEALTH_GOOD)
        return state;
    step_parameters(t, out);
    t->progress.step++;
    if (t->walkers && r->chains.births > 0 && t->progress.step % r->chains.births_every == 0)
        state = chains_bear(t, seed, out->log_p_chains);
    if (state == HEALTH_GOOD && t->fresh && t->progress.step % r->health.fresh.every == 0) {
        state = fresh_look(t, seed);
        if (state == HEALTH_GOOD)
            note_best(t);
    } else if (state == HEALTH_GOOD && !t->fresh && t->progress.step % r->checkpoint_every == 0) {
        note_best(t);
    }
    return state;
}

static double mean_age(const struct trainer *t)
{
    double sum = 0;
    const int n = (int)t->progress.filled;
    for (int i = 0; i < n; i++)
        sum += t->buffer_age[i];
    return n ? sum / n : 0;
}

/* What the last step came to is on record by now. */
static int save_if_due(struct trainer *t, struct err *e)
{
    const long long step = t->progress.step;
    const bool due = step % t->recipe->checkpoint_every == 0 || step == t->recipe->steps;
    if (!t->directory[0] || !due || step == t->saved)
        return 0;
    t->saved = step;
    return checkpoint_save(t, e);
}

static int save_best(struct trainer *t, struct err *e)
{
    const bool due = t->best_due && t->directory[0];
    t->best_due = false;
    return due ? checkpoint_save_best(t, e) : 0;
}

int trainer_step(struct trainer *t, struct trainer_step *out, struct err *e)
{
    int rc = save_if_due(t, e);
    *out = (struct trainer_step){0};
    if (rc != 0 || t->progress.step >= t->recipe->steps)
        return rc != 0 ? rc : 1;
    rc = data_load(t, trainer_seed(t, t->progress.step), e);
    if (rc != 0)
        return rc;
    out->trouble = one_step(t, out);
    out->step = t->progress.step;
    rc = out->trouble != HEALTH_GOOD ? trainer_roll_back(t, out->trouble, e) : save_best(t, e);
    if (rc != 0)
        return rc;
    out->newborn = t->progress.newborn;
    out->age = mean_age(t);
    out->right = t->progress.right;
    out->fresh_log_p = t->progress.fresh_log_p;
    out->fresh_lag = t->progress.fresh_lag;
    out->best = t->progress.best_step;
    out->health = t->progress.health;
    out->rollbacks = trainer_rollbacks(t);
    return 0;
}

int trainer_save(struct trainer *t, struct err *e)
{
    return t->directory[0] && !t->existing ? checkpoint_save(t, e) : 0;
}

int trainer_load_best(struct trainer *t, struct err *e)
{
    const int rc = checkpoint_load_best(t, e);
    if (rc == 0 && t->walkers)
        walkers_refresh(t->walkers);
    return rc;
}

const struct recipe *trainer_recipe(const struct trainer *t)
{
    return t->recipe;
}

long long trainer_done(const struct trainer *t)
{
    return t->progress.step;
}

int trainer_rollbacks(const struct trainer *t)
{
    return (int)t->progress.attempt;
}

int trainer_images(const struct trainer *t)
{
    return trainer_data_rows(t);
}

bool trainer_exact(const struct trainer *t)
{
    return !t->progress.inexact;
}

const char *trainer_note(const struct trainer *t)
{
    return t->note;
}

void trainer_note_add(struct trainer *t, const char *format, ...)
{
    const size_t n = strlen(t->note);
    va_list args;
    va_start(args, format);
    snprintf(t->note + n, sizeof t->note - n, n ? "; " : "");
    vsnprintf(t->note + strlen(t->note), sizeof t->note - strlen(t->note), format, args);
    va_end(args);
}

const float *trainer_average(const struct trainer *t)
{
    return t->average;
}

const struct parameters *trainer_parameters(const struct trainer *t)
{
    return &t->parameters;
}

int trainer_buffer(const struct trainer *t, const float **x, const uint8_t **y)
{
    *x = t->buffer_x;
    *y = t->buffer_y;
    return (int)t->progress.filled;
}

struct gaussians trainer_gaussians(const struct trainer *t)
{
    return t->gaussians;
}

const uint8_t *trainer_visible_labels(const struct trainer *t)
{
    return t->labels.labels;
}
