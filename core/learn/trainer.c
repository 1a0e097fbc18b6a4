/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/trainer.h"

#include "base/pool.h"
#include "base/rng.h"
#include "ebm/start.h"
#include "learn/augment.h"
#include "learn/trainer_internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Streams of RNG_CHOICE in one step. */
enum { CHOICE_DATA, CHOICE_ENTRIES, CHOICE_CHAINS, CHOICE_BIRTHS };

enum { UNIFORMS = 8, INITIAL = 1 /* seeds of the initial buffer and weights */ };

/* ---- random numbers ---- */

static uint64_t mixed(uint64_t v) /* SplitMix64's output function (Steele et al. 2014) */
{
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9;
    v = (v ^ v >> 27) * 0x94d049bb133111eb;
    return v ^ v >> 31;
}

/* The seed of what a step draws; another one after a rollback. */
static uint64_t seed_of(const struct trainer *t, long long step)
{
    const uint64_t attempt = mixed((uint64_t)t->recipe->seed) + (uint64_t)t->progress.attempt;
    return mixed(mixed(attempt) + (uint64_t)step);
}

static struct rng_stream choice(uint64_t seed, uint32_t what, uint32_t item)
{
    return (struct rng_stream){.seed = seed, .step = what, .chain = item, .purpose = RNG_CHOICE};
}

static int below(float u, int n)
{
    const int i = (int)(u * (float)n);
    return i < n ? i : n - 1;
}

/* ---- sizes ---- */

static int labels(const struct trainer *t)
{
    return t->recipe->model.attributes.n;
}

static size_t elements(const struct trainer *t)
{
    return net_shape_elements(t->recipe->model.input);
}

static int rows(const struct trainer *t)
{
    return t->recipe->batch + t->recipe->chains.count;
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
            .seed = seed_of(t, -INITIAL), .chain = (uint32_t)i, .purpose = RNG_INIT};
        float *v = p->values + one->offset;
        if (one->n_dims > 1) /* a bias follows its weight */
            bound = 1 / sqrtf((float)(one->elements / (size_t)one->shape[0]));
        rng_uniform(&s, v, one->elements);
        for (size_t j = 0; j < one->elements; j++)
            v[j] = bound * (2 * v[j] - 1);
    }
    memcpy(t->average, p->values, p->n * sizeof *t->average);
}

/* Labels of a random row, some masked. */
static void draw_labels(const struct trainer *t, const struct rng_stream *s, uint8_t *y)
{
    const struct recipe_chains *c = &t->recipe->chains;
    const int k = labels(t);
    struct rng_stream more = *s;
    float u[2];
    rng_uniform(s, u, 2);
    more.purpose = RNG_ROWS;
    rng_uniform(&more, t->uniforms, (size_t)k);
    const uint8_t *row = t->data->labels + (size_t)below(u[0], (int)t->data->n) * (size_t)k;
    const bool none = c->labels == LABELS_FREE || (double)u[1] < c->free;
    for (int i = 0; i < k; i++)
        y[i] = none || (double)t->uniforms[i] < c->mask ? LOSS_MISSING : row[i];
}

static void init_buffer(struct trainer *t)
{
    const struct recipe *r = t->recipe;
    const uint64_t seed = seed_of(t, -INITIAL);
    for (int i = 0; i < r->chains.buffer; i++) {
        const struct rng_stream s = choice(seed, CHOICE_BIRTHS, (uint32_t)i);
        start_fresh(&r->model, &r->chains.sampler, seed, (uint32_t)i,
                    t->buffer_x + (size_t)i * elements(t), t->scratch);
        draw_labels(t, &s, t->buffer_y + (size_t)i * (size_t)labels(t));
        t->buffer_age[i] = 0;
    }
}

static int check_data(const struct trainer *t, struct err *e)
{
    const struct description *d = &t->recipe->model;
    const struct dataset *data = t->data;
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
    return dataset_check_labels(data, limits, e);
}

/* Walks through all that is in the arena: sums, or hands out. */
static void *take(struct arena *a, bool made, size_t bytes)
{
    if (made)
        return arena_take(a, bytes);
    a->size_bytes += arena_round(bytes);
    return NULL;
}

static void lay_out(struct trainer *t, struct arena *a, bool made)
{
    const struct recipe *r = t->recipe;
    const size_t e = elements(t), k = (size_t)labels(t), n = (size_t)rows(t);
    const size_t chains = (size_t)r->chains.count, births = chains ? (size_t)r->chains.births : 0;
    const size_t most = (chains > births ? chains : births) + 1;
    const size_t buffer = chains ? (size_t)r->chains.buffer : 0;
    t->average = take(a, made, t->parameters.n * sizeof(float));
    t->slope = take(a, made, t->parameters.n * sizeof(float));
    t->buffer_x = take(a, made, buffer * e * sizeof(float));
    t->buffer_y = take(a, made, buffer * k);
    t->buffer_age = take(a, made, buffer * sizeof(uint32_t));
    t->order = take(a, made, t->data->n * sizeof(uint32_t));
    t->x = take(a, made, n * e * sizeof(float));
    t->y = take(a, made, n * k);
    t->dlogits = take(a, made, n * (size_t)net_logits(t->net) * sizeof(float));
    t->picks = take(a, made, (chains + 1) * sizeof(int));
    t->log_p = take(a, made, most * sizeof(float));
    t->mean_gradient = take(a, made, most * sizeof(float));
    t->diverged = take(a, made, most);
    t->born_x = take(a, made, births * e * sizeof(float));
    t->born_y = take(a, made, births * k);
    t->scratch = take(a, made, e * sizeof(float));
    t->uniforms = take(a, made, (k + UNIFORMS) * sizeof(float));
}

static int open_parts(struct trainer *t, struct err *e)
{
    const struct description *d = &t->recipe->model;
    const struct gradient_options o = {.batch = rows(t), .pool = t->pool};
    struct arena sizes = {0};
    int rc = parameters_init(&t->parameters, d->layers, d->n_layers, d->input, e);
    if (rc != 0)
        return rc;
    const struct net_weights source = parameters_source(&t->parameters);
    rc = net_open(&t->net, d->layers, d->n_layers, d->input, &source, e);
    if (rc == 0 && net_logits(t->net) != d->attributes.n_logits)
        rc = fail(e, FAIL_BAD_MODEL, "the network makes %d numbers, the attributes have %d values",
                  net_logits(t->net), d->attributes.n_logits);
    if (rc == 0)
        rc = gradient_open(&t->gradient, t->net, &t->parameters, &o, e);
    if (rc == 0)
        rc = optimiser_open(&t->optimiser, &t->recipe->optimiser, t->parameters.n, e);
    if (rc != 0)
        return rc;
    lay_out(t, &sizes, false);
    rc = arena_init(&t->arena, sizes.size_bytes, e);
    if (rc != 0)
        return rc;
    lay_out(t, &t->arena, true);
    init_parameters(t);
    if (t->recipe->chains.count > 0)
        rc = walkers_open(&t->walkers, t->net, &d->attributes, t->pool, e);
    if (rc == 0 && t->walkers)
        init_buffer(t);
    return rc;
}

static int resume(struct trainer *t, struct err *e)
{
    if (!t->directory[0])
        return 0;
    if (mkdir(t->directory, 0777) != 0 && errno != EEXIST)
        return fail_errno(e, FAIL_IO, "cannot make %s", t->directory);
    const int rc = checkpoint_load(t, e);
    if (rc > 0 && t->walkers)
        walkers_refresh(t->walkers);
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
                          .epoch = -1,
                          .progress = {.scale = 1, .newborn = (double)NAN}};
    snprintf(t->directory, sizeof t->directory, "%s", o->directory ? o->directory : "");
    snprintf(t->identity, sizeof t->identity, "%s %s", o->recipe->sha256, o->data->sha256);
    int rc = check_data(t, e);
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
    walkers_close(t->walkers);
    gradient_close(t->gradient);
    optimiser_close(t->optimiser);
    net_close(t->net);
    parameters_fini(&t->parameters);
    arena_fini(&t->arena);
    free(t);
}

/* ---- data ---- */

/* The order of an epoch's rows; a tail that fills no batch is left out. */
static void shuffle(struct trainer *t, long long epoch)
{
    const uint32_t n = (uint32_t)t->data->n;
    const struct rng_stream s = {
        .seed = mixed((uint64_t)t->recipe->seed), .step = (uint32_t)epoch, .purpose = RNG_ROWS};
    uint32_t words[4];
    if (t->epoch == epoch)
        return;
    for (uint32_t i = 0; i < n; i++)
        t->order[i] = i;
    for (uint32_t i = n - 1; i > 0; i--) {
        if (i == n - 1 || i % 4 == 3)
            rng_block(&s, i / 4, words);
        const uint32_t j = (uint32_t)((uint64_t)words[i % 4] * (i + 1) >> 32);
        const uint32_t v = t->order[i];
        t->order[i] = t->order[j];
        t->order[j] = v;
    }
    t->epoch = epoch;
}

/* Row `row` of the data as the model sees it. */
static void load_row(const struct trainer *t, size_t row, float *x)
{
    const struct description *d = &t->recipe->model;
    const size_t plane = (size_t)d->input.h * (size_t)d->input.w, c = (size_t)d->input.c;
    const unsigned char *pixel = t->data->images + row * plane * c;
    for (size_t i = 0; i < plane; i++)
        for (size_t ch = 0; ch < c; ch++)
            x[ch * plane + i] = d->pixel_scale * (float)*pixel++ + d->pixel_offset;
}

static void clamp(const struct description *d, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < d->range_lo ? d->range_lo : x[i] > d->range_hi ? d->range_hi : x[i];
}

/* Image i of the batch, augmented. */
static void load_image(struct trainer *t, uint64_t seed, int i, size_t row)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = choice(seed, CHOICE_DATA, (uint32_t)i);
    const struct rng_stream noise = {.seed = seed, .chain = (uint32_t)i, .purpose = RNG_DATA};
    const size_t n = elements(t);
    float *x = t->x + (size_t)i * n, u[3];
    load_row(t, row, x);
    rng_uniform(&s, u, 3);
    if (r->flip && u[0] < 0.5f)
        augment_flip(r->model.input, x);
    if (r->crop > 0)
        augment_shift(r->model.input, x, augment_offset(u[1], r->crop),
                      augment_offset(u[2], r->crop), t->scratch);
    if (r->data_noise > 0) {
        rng_normal(&noise, t->scratch, n);
        for (size_t j = 0; j < n; j++)
            x[j] += (float)r->data_noise * t->scratch[j];
        clamp(&r->model, x, n);
    }
}

static void load_batch(struct trainer *t, uint64_t seed)
{
    const int batch = t->recipe->batch, k = labels(t);
    const long long each = (long long)t->data->n / batch, step = t->progress.step;
    shuffle(t, step / each);
    for (int i = 0; i < batch; i++) {
        const size_t row = t->order[step % each * batch + i];
        load_image(t, seed, i, row);
        memcpy(t->y + (size_t)i * (size_t)k, t->data->labels + row * (size_t)k, (size_t)k);
    }
}

/* ---- chains ---- */

/* Distinct entries of the buffer. */
static void pick_entries(struct trainer *t, uint64_t seed)
{
    const struct recipe_chains *c = &t->recipe->chains;
    struct rng_stream s = choice(seed, CHOICE_ENTRIES, 0);
    for (int i = 0; i < c->count; s.chain++) {
        float u;
        bool taken = false;
        rng_uniform(&s, &u, 1);
        t->picks[i] = below(u, c->buffer);
        for (int j = 0; j < i; j++)
            taken |= t->picks[j] == t->picks[i];
        i += !taken;
    }
}

/* Where chain i begins: in its entry, sometimes changed a little, or anew. */
static void begin_chain(struct trainer *t, uint64_t seed, int i)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = choice(seed, CHOICE_CHAINS, (uint32_t)i);
    const size_t n = elements(t), k = (size_t)labels(t), entry = (size_t)t->picks[i];
    float *x = t->x + ((size_t)r->batch + (size_t)i) * n, u[6];
    uint8_t *y = t->y + ((size_t)r->batch + (size_t)i) * k;
    memcpy(x, t->buffer_x + entry * n, n * sizeof *x);
    memcpy(y, t->buffer_y + entry * k, k);
    rng_uniform(&s, u, 6);
    if ((double)u[0] < r->chains.reinit) {
        start_fresh(&r->model, &r->chains.sampler, seed, (uint32_t)i, x, t->scratch);
        draw_labels(t, &s, y);
        t->buffer_age[entry] = 0;
    }
    if ((double)u[1] < r->chains.blur)
        augment_blur(r->model.input, x, 0.1f + 1.9f * u[2], t->scratch);
    if ((double)u[3] < r->chains.shift)
        augment_shift(r->model.input, x, augment_offset(u[4], 1), augment_offset(u[5], 1),
                      t->scratch);
}

static struct sampler visit_sampler(const struct trainer *t, int steps)
{
    struct sampler s = t->recipe->chains.sampler;
    s.steps = steps;
    s.step_norm *= (float)t->progress.scale;
    s.kind = t->recipe->chains.labels == LABELS_GIBBS ? SAMPLER_GIBBS : SAMPLER_SGLD;
    return s;
}

static double mean(const float *v, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)v[i];
    return sum / n;
}

static bool any(const uint8_t *v, int n)
{
    for (int i = 0; i < n; i++)
        if (v[i])
            return true;
    return false;
}

/* Moves the step's chains and puts them back. False when one was not finite. */
static bool move_chains(struct trainer *t, uint64_t seed, double *gradient)
{
    const struct recipe *r = t->recipe;
    const size_t n = elements(t), k = (size_t)labels(t);
    const struct sampler s = visit_sampler(t, r->chains.sampler.steps);
    float *x = t->x + (size_t)r->batch * n;
    uint8_t *y = t->y + (size_t)r->batch * k;
    pick_entries(t, seed);
    for (int i = 0; i < r->chains.count; i++)
        begin_chain(t, seed, i);
    walkers_run(t->walkers, &(struct walk_task){.sampler = &s,
                                                .step_norm_last = (float)(r->chains.step_norm_last *
                                                                          t->progress.scale),
                                                .seed = seed,
                                                .n = r->chains.count,
                                                .x = x,
                                                .y = y,
                                                .log_p = t->log_p,
                                                .gradient = t->mean_gradient,
                                                .diverged = t->diverged});
    for (int i = 0; i < r->chains.count; i++) {
        const size_t entry = (size_t)t->picks[i];
        memcpy(t->buffer_x + entry * n, x + (size_t)i * n, n * sizeof *x);
        memcpy(t->buffer_y + entry * k, y + (size_t)i * k, k);
        t->buffer_age[entry] += (uint32_t)s.steps;
    }
    *gradient = mean(t->mean_gradient, r->chains.count);
    return !any(t->diverged, r->chains.count);
}

/* New chains, from noise, take the place of random entries. */
static enum health_state bear(struct trainer *t, uint64_t seed, double log_p_chains)
{
    const struct recipe *r = t->recipe;
    const size_t n = elements(t), k = (size_t)labels(t);
    const struct sampler s = visit_sampler(t, r->chains.birth_steps);
    const uint64_t other = mixed(seed + 1);
    for (int i = 0; i < r->chains.births; i++) {
        const struct rng_stream one = choice(other, CHOICE_BIRTHS, (uint32_t)i);
        start_fresh(&r->model, &s, other, (uint32_t)i, t->born_x + (size_t)i * n, t->scratch);
        draw_labels(t, &one, t->born_y + (size_t)i * k);
    }
    walkers_run(t->walkers, &(struct walk_task){.sampler = &s,
                                                .seed = other,
                                                .n = r->chains.births,
                                                .x = t->born_x,
                                                .y = t->born_y,
                                                .log_p = t->log_p,
                                                .gradient = t->mean_gradient,
                                                .diverged = t->diverged});
    for (int i = 0; i < r->chains.births; i++) {
        const struct rng_stream one = choice(other, CHOICE_ENTRIES, (uint32_t)i);
        float u;
        rng_uniform(&one, &u, 1);
        const size_t entry = (size_t)below(u, r->chains.buffer);
        memcpy(t->buffer_x + entry * n, t->born_x + (size_t)i * n, n * sizeof *t->born_x);
        memcpy(t->buffer_y + entry * k, t->born_y + (size_t)i * k, k);
        t->buffer_age[entry] = (uint32_t)s.steps;
    }
    t->progress.newborn = mean(t->log_p, r->chains.births);
    return any(t->diverged, r->chains.births)
               ? HEALTH_NOT_FINITE
               : health_birth(&t->progress.health, &r->health, log_p_chains - t->progress.newborn);
}

/* ---- a step ---- */

/* Right answers over all labels of the data. */
static double accuracy(const struct trainer *t, const float *logits)
{
    const struct attributes *a = &t->recipe->model.attributes;
    long right = 0, all = 0;
    for (int i = 0; i < t->recipe->batch; i++) {
        for (int k = 0; k < a->n; k++) {
            const float *f = logits + (size_t)i * (size_t)a->n_logits + a->list[k].first;
            const uint8_t y = t->y[(size_t)i * (size_t)a->n + (size_t)k];
            int top = 0;
            for (int v = 1; v < a->list[k].n_values; v++)
                top = f[v] > f[top] ? v : top;
            all += y != LOSS_MISSING;
            right += y == top;
        }
    }
    return all ? (double)right / (double)all : 0;
}

/* The losses of data and chains, and the parameters' slope. */
static void descend(struct trainer *t, struct trainer_step *out)
{
    const struct recipe *r = t->recipe;
    const struct attributes *a = &r->model.attributes;
    const size_t l = (size_t)a->n_logits, batch = (size_t)r->batch;
    struct loss_values data, chains = {0};
    const float *logits = gradient_forward(t->gradient, rows(t), t->x);
    loss_gradient(
        a,
        &(struct loss_group){.weights = r->data, .n = r->batch, .logits = logits, .labels = t->y},
        t->dlogits, &data);
    if (r->chains.count > 0) {
        const struct loss_group g = {.weights = {.log_px = -r->data.log_px,
                                                 .log_pxy = -r->data.log_pxy,
                                                 .square_px = r->data.square_px,
                                                 .square_pxy = r->data.square_pxy},
                                     .n = r->chains.count,
                                     .logits = logits + batch * l,
                                     .labels = t->y + batch * (size_t)a->n};
        loss_gradient(a, &g, t->dlogits + batch * l, &chains);
    }
    const bool joint = r->data.log_pxy != 0;
    out->loss = data.loss + chains.loss;
    out->cross_entropy = data.cross_entropy;
    out->accuracy = accuracy(t, logits);
    out->log_p_data = joint ? data.log_pxy : data.log_px;
    out->log_p_chains = joint ? chains.log_pxy : chains.log_px;
    memset(t->slope, 0, t->parameters.n * sizeof *t->slope);
    gradient_backward(t->gradient, rows(t), t->dlogits, NULL, t->slope);
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

static enum health_state one_step(struct trainer *t, struct trainer_step *out)
{
    const struct recipe *r = t->recipe;
    const uint64_t seed = seed_of(t, t->progress.step);
    struct health_signs signs = {.finite = true};
    load_batch(t, seed);
    if (t->walkers)
        signs.finite = move_chains(t, seed, &out->gradient);
    descend(t, out);
    out->norm = optimiser_norm(t->slope, t->parameters.n);
    signs.finite &= isfinite(out->loss) && isfinite(out->norm);
    signs.gap = t->walkers ? out->log_p_data - out->log_p_chains : 0;
    signs.gradient = out->gradient;
    enum health_state state = health_step(&t->progress.health, &r->health, &signs);
    if (state != HEALTH_GOOD)
        return state;
    step_parameters(t, out);
    t->progress.step++;
    if (t->walkers && r->chains.births > 0 && t->progress.step % r->chains.births_every == 0)
        state = bear(t, seed, out->log_p_chains);
    return state;
}

/* Back to an earlier checkpoint, slower and with other random numbers. */
static int roll_back(struct trainer *t, enum health_state why, struct err *e)
{
    const struct recipe_health *h = &t->recipe->health;
    const long long attempt = t->progress.attempt + 1, at = t->progress.step;
    const double scale = t->progress.scale * h->slower;
    const int rc = attempt > h->retries || !t->directory[0] ? 0 : checkpoint_back(t, e);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return fail(
            e, FAIL_UNSUPPORTED,
            "given up at step %lld after %lld rollbacks: %s. Its learning rate was %.3g, the "
            "step norm %.3g; try a lower rate, more steps a visit, or a larger penalty",
            at, attempt - 1, health_texts[why], t->recipe->rate * t->progress.scale,
            (double)t->recipe->chains.sampler.step_norm * t->progress.scale);
    t->progress.attempt = attempt;
    t->progress.scale = scale;
    if (t->walkers)
        walkers_refresh(t->walkers);
    return checkpoint_save(t, e);
}

static double mean_age(const struct trainer *t)
{
    double sum = 0;
    const int n = t->walkers ? t->recipe->chains.buffer : 0;
    for (int i = 0; i < n; i++)
        sum += t->buffer_age[i];
    return n ? sum / n : 0;
}

int trainer_step(struct trainer *t, struct trainer_step *out, struct err *e)
{
    *out = (struct trainer_step){0};
    if (t->progress.step >= t->recipe->steps)
        return 1;
    out->trouble = one_step(t, out);
    out->step = t->progress.step;
    const int rc = out->trouble != HEALTH_GOOD ? roll_back(t, out->trouble, e)
                   : t->directory[0] && (t->progress.step % t->recipe->checkpoint_every == 0 ||
                                         t->progress.step == t->recipe->steps)
                       ? checkpoint_save(t, e)
                       : 0;
    if (rc != 0)
        return rc;
    out->newborn = t->progress.newborn;
    out->age = mean_age(t);
    out->health = t->progress.health;
    out->rollbacks = (int)t->progress.attempt;
    return t->progress.step >= t->recipe->steps;
}

int trainer_save(struct trainer *t, struct err *e)
{
    return t->directory[0] ? checkpoint_save(t, e) : 0;
}

const struct recipe *trainer_recipe(const struct trainer *t)
{
    return t->recipe;
}

long long trainer_done(const struct trainer *t)
{
    return t->progress.step;
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
    return t->walkers ? t->recipe->chains.buffer : 0;
}
