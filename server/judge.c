/* SPDX-License-Identifier: Apache-2.0 */
#include "server/judge.h"

#include "base/timing.h"
#include "ebm/evaluate.h"
#include "ebm/score.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PART = 16, TEXT_MAX = 256, POLL_MS = 200 };

int judge_pair_parse(struct judge_pair *out, const struct attributes *a, const char *text,
                     struct err *e)
{
    char copy[TEXT_MAX], *rest = copy;
    struct judge_pair p = {.text = text};
    if (strlen(text) >= sizeof copy)
        return fail(e, FAIL_OUT_OF_RANGE, "a pair has at most %d characters", TEXT_MAX - 1);
    strcpy(copy, text);
    for (char *term; (term = strsep(&rest, ","));) {
        char *value = strchr(term, '=');
        if (!value || p.n == JUDGE_TERMS)
            return fail(e, FAIL_OUT_OF_RANGE, "a pair is up to %d terms NAME=VALUE, not \"%.80s\"",
                        JUDGE_TERMS, text);
        *value++ = '\0';
        const int k = attributes_find(a, term, e);
        if (k < 0)
            return k;
        const int v = attribute_find_value(&a->list[k], value, e);
        if (v < 0)
            return v;
        p.attribute[p.n] = k;
        p.value[p.n++] = v;
    }
    *out = p;
    return 0;
}

/* What the judge sees in n images: seen[n][K]. */
static int see(const struct judge_setup *s, const float *x, size_t n, uint8_t *seen, struct err *e)
{
    const struct attributes *a = &s->judge->d.attributes;
    const size_t elements = model_elements(s->judge), made = (size_t)model_outputs(s->judge);
    const struct engine *engine;
    struct workspace *w = NULL;
    float *logits = malloc((size_t)model_logits(s->judge) * sizeof *logits);
    int rc = logits ? score_check(a, e) : fail(e, FAIL_NO_MEMORY, "no memory for the judge");
    if (rc == 0)
        rc = model_engine(s->judge, &engine, e);
    if (rc == 0)
        rc = workspace_open_engine(&w, engine, PART, false, NULL, e);
    for (size_t at = 0; rc == 0 && at < n; at += PART) {
        const int m = (int)(n - at < PART ? n - at : PART);
        const float *outputs = net_forward(w, m, x + at * elements);
        for (int i = 0; i < m; i++) {
            score_read(a, outputs + (size_t)i * made, NULL, logits);
            for (int k = 0; k < a->n; k++)
                seen[(at + (size_t)i) * (size_t)a->n + (size_t)k] =
                    (uint8_t)evaluate_top(logits + a->list[k].first, a->list[k].n_values);
        }
    }
    workspace_close(w);
    free(logits);
    return rc;
}

/* Chain i counts hits[i] of of[i]. */
struct tally {
    size_t n;
    uint16_t *hits, *of;
};

static int share_of(struct judge_share *out, const struct judge_setup *s, const struct tally *t,
                    struct err *e)
{
    const struct bootstrap_counts counts = {.n = t->n, .hits = t->hits, .of = t->of};
    struct judge_share made = {0};
    for (size_t i = 0; i < t->n; i++)
        made.n += t->of[i] > 0;
    const int rc = bootstrap_share(&made.share, &counts, s->seed, s->resamples, s->pool, e);
    if (rc == 0)
        *out = made;
    return rc;
}

struct room {
    size_t n;
    float *x;
    uint8_t *seen;
    struct tally tally;
    struct condition *conditions;
    const struct condition **list;
};

/* Which attributes of a chain a tally counts: [first, end), or a pair's; `whole`: all of them as
 * one; `among`: only in rows that have all terms of that pair. */
struct question {
    int first, end;
    const struct judge_pair *pair, *among;
    bool whole;
};

static bool has_terms(const uint8_t *y, const struct judge_pair *pair)
{
    for (int j = 0; j < pair->n; j++)
        if (y[pair->attribute[j]] != pair->value[j])
            return false;
    return true;
}

static int answer(struct judge_share *out, const struct judge_setup *s, struct room *room,
                  const struct question *q, struct err *e)
{
    struct tally *t = &room->tally;
    const size_t n = room->n;
    const uint8_t *seen = room->seen;
    const int k = s->model->d.attributes.n;
    t->n = n;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *y = s->data->labels + i * (size_t)k, *saw = seen + i * (size_t)k;
        int hits = 0, of = 0, terms = q->pair ? q->pair->n : q->end - q->first;
        for (int j = 0; j < terms; j++) {
            const int at = q->pair ? q->pair->attribute[j] : q->first + j;
            of += y[at] != DATASET_MISSING;
            hits += y[at] != DATASET_MISSING && saw[at] == y[at];
        }
        if (q->among && !has_terms(y, q->among))
            of = hits = 0;
        const bool whole = q->whole && of > 0;
        t->hits[i] = (uint16_t)(whole ? hits == of : hits);
        t->of[i] = (uint16_t)(whole ? 1 : of);
    }
    return share_of(out, s, t, e);
}

/* ---- sampling ---- */

struct waiting {
    pthread_mutex_t mu;
    pthread_cond_t over;
    bool done; /* guarded by mu */
};

static void on_done(void *ctx, struct chain_group *g)
{
    struct waiting *w = ctx;
    (void)g;
    pthread_mutex_lock(&w->mu);
    w->done = true;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->mu);
}

/* Until the group is done, telling the watch, which may have it cancelled. */
static void wait_for(const struct judge_setup *s, struct chain_group *g, struct waiting *w)
{
    struct chain_progress p;
    for (bool done = false; !done;) {
        const struct timespec until = timing_after_ms(POLL_MS);
        pthread_mutex_lock(&w->mu);
        if (!w->done)
            pthread_cond_clockwait(&w->over, &w->mu, CLOCK_MONOTONIC, &until);
        done = w->done;
        pthread_mutex_unlock(&w->mu);
        if (!done && eval_watch_cancelled(s->watch))
            chain_group_cancel(g);
        chain_group_progress(g, &p);
        eval_watch_tell(s->watch, "chain steps", (size_t)p.steps_done, (size_t)p.steps_total);
    }
}

/* One condition a row: its known labels. */
static int conditions_of(const struct judge_setup *s, size_t n, struct condition *out,
                         const struct condition **list, struct err *e)
{
    const struct attributes *a = &s->model->d.attributes;
    for (size_t i = 0; i < n; i++) {
        const int rc = condition_init(&out[i], a, 1, e);
        if (rc != 0)
            return rc;
        list[i] = &out[i];
        for (int k = 0; k < a->n; k++) {
            const uint8_t y = s->data->labels[i * (size_t)a->n + (size_t)k];
            if (y != DATASET_MISSING)
                condition_fix(&out[i], 0, k, y);
        }
    }
    return 0;
}

static int sample(const struct judge_setup *s, const struct sampler *sampler,
                  const struct condition *const *list, size_t n, float *x, int *diverged,
                  struct err *e)
{
    const struct chains_settings settings = {
        .workers = s->threads, .slots = PART, .quantum_steps = 64, .quantum_ms = 0};
    struct waiting w = {.mu = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
    const struct chain_task t = {.model = s->model,
                                 .n_chains = (int)n,
                                 .conditions = list,
                                 .sampler = sampler,
                                 .seed = s->seed,
                                 .weight = 1,
                                 .done = on_done,
                                 .ctx = &w};
    struct chains *c;
    struct chain_group *g;
    int rc = chains_open(&c, &settings, e);
    if (rc != 0)
        return rc;
    rc = chains_submit(c, &t, NULL, &g, e);
    if (rc == 0) {
        wait_for(s, g, &w);
        const size_t elements = model_elements(s->model);
        if (chain_group_error(g)) {
            *e = *chain_group_error(g);
            rc = -(int)e->code;
        }
        if (rc == 0)
            rc = eval_watch_check(s->watch, e);
        for (size_t i = 0; rc == 0 && i < n; i++) {
            struct chain_result r;
            chain_group_result(g, (int)i, &r);
            memcpy(x + i * elements, r.x, elements * sizeof *x);
            *diverged += r.diverged;
        }
        chain_group_free(g);
    }
    chains_close(c);
    return rc;
}

/* ---- a run ---- */

static void room_free(struct room *r)
{
    for (size_t i = 0; r->conditions && i < r->n; i++)
        condition_fini(&r->conditions[i]);
    free(r->x);
    free(r->seen);
    free(r->tally.hits);
    free(r->tally.of);
    free(r->conditions);
    free(r->list);
}

static int room_make(struct room *r, const struct judge_setup *s, struct err *e)
{
    const size_t k = (size_t)s->model->d.attributes.n;
    r->n = s->limit && s->limit < s->data->n ? s->limit : s->data->n;
    r->x = calloc(r->n * model_elements(s->model), sizeof *r->x);
    r->seen = calloc(r->n, k);
    r->tally.hits = calloc(r->n, sizeof *r->tally.hits);
    r->tally.of = calloc(r->n, sizeof *r->tally.of);
    r->conditions = calloc(r->n, sizeof *r->conditions);
    r->list = calloc(r->n, sizeof *r->list);
    if (!r->x || !r->seen || !r->tally.hits || !r->tally.of || !r->conditions || !r->list)
        return fail(e, FAIL_NO_MEMORY, "no memory for %zu samples", r->n);
    return conditions_of(s, r->n, r->conditions, r->list, e);
}

static int check(const struct judge_setup *s, struct err *e)
{
    const struct description *m = &s->model->d, *j = &s->judge->d;
    const struct dataset *d = s->data;
    bool same = m->attributes.n == j->attributes.n && m->input.c == j->input.c &&
                m->input.h == j->input.h && m->input.w == j->input.w &&
                m->range_lo == j->range_lo && m->range_hi == j->range_hi;
    for (int k = 0; same && k < m->attributes.n; k++) {
        const struct attribute *a = &m->attributes.list[k], *b = &j->attributes.list[k];
        same = a->n_values == b->n_values && strcmp(a->name, b->name) == 0;
        for (int v = 0; same && v < a->n_values; v++)
            same = strcmp(a->values[v], b->values[v]) == 0;
    }
    if (m->attributes.head >= 0)
        return fail(e, FAIL_UNSUPPORTED,
                    "a model with an energy head has no samples under conditions to judge");
    if (!same)
        return fail(e, FAIL_OUT_OF_RANGE, "model and judge differ in input, range or attributes");
    if (d->channels != m->input.c || d->height != m->input.h || d->width != m->input.w)
        return fail(e, FAIL_OUT_OF_RANGE, "the data are not of the model's size");
    return 0;
}

/* What the judge sees in the room's images. */
static int look(struct judge_shares *out, const struct judge_setup *s, struct room *r,
                struct err *e)
{
    const int k = s->model->d.attributes.n;
    out->by_attribute = calloc((size_t)k, sizeof *out->by_attribute);
    if (!out->by_attribute)
        return fail(e, FAIL_NO_MEMORY, "no memory for %d attributes", k);
    int rc = see(s, r->x, r->n, r->seen, e);
    if (rc == 0)
        rc = answer(&out->right, s, r, &(struct question){.end = k}, e);
    if (rc == 0)
        rc = answer(&out->all, s, r, &(struct question){.end = k, .whole = true}, e);
    for (int i = 0; rc == 0 && i < k; i++)
        rc = answer(&out->by_attribute[i], s, r, &(struct question){.first = i, .end = i + 1}, e);
    for (int i = 0; rc == 0 && i < s->n_pairs; i++) {
        const struct judge_pair *pair = &s->pairs[i];
        struct question q = {.pair = pair, .among = pair, .whole = true};
        rc = answer(&out->pairs[i], s, r, &q, e);
        q = (struct question){.end = k, .among = pair, .whole = true};
        if (rc == 0)
            rc = answer(&out->pairs_all[i], s, r, &q, e);
    }
    return rc;
}

static int run_start(struct judge_start *out, const struct judge_setup *s, struct room *r,
                     struct err *e)
{
    struct sampler sampler = s->model->d.sampler;
    sampler.start = out->start;
    sampler.steps = out->steps;
    sampler.cool_last = sampler.cool_last < out->steps ? sampler.cool_last : out->steps;
    int rc = sample(s, &sampler, r->list, r->n, r->x, &out->diverged, e);
    if (rc == 0)
        rc = look(&out->samples, s, r, e);
    return rc == 0 && s->samples ? s->samples(s->ctx, out->start, r->x, r->n, e) : rc;
}

int judge_run(struct judge_result *out, const struct judge_setup *s, struct err *e)
{
    static const enum start_kind starts[JUDGE_STARTS] = {START_NOISE, START_BUFFER};
    const size_t elements = model_elements(s->model);
    struct room r = {0};
    *out = (struct judge_result){0};
    int rc = check(s, e);
    if (rc == 0)
        rc = room_make(&r, s, e);
    for (size_t i = 0; rc == 0 && i < r.n; i++)
        model_from_pixels(s->model, s->data->images + i * elements, r.x + i * elements);
    if (rc == 0)
        rc = look(&out->real, s, &r, e);
    for (int i = 0; rc == 0 && i < JUDGE_STARTS; i++) {
        out->starts[i].start = starts[i];
        out->starts[i].steps =
            starts[i] == START_BUFFER && s->model->n_buffer == 0 ? 0 : s->steps[i];
        if (out->starts[i].steps > 0)
            rc = run_start(&out->starts[i], s, &r, e);
    }
    room_free(&r);
    if (rc != 0)
        judge_free(out);
    return rc;
}

void judge_free(struct judge_result *r)
{
    for (int i = 0; i < JUDGE_STARTS; i++)
        free(r->starts[i].samples.by_attribute);
    free(r->real.by_attribute);
    *r = (struct judge_result){0};
}
