/* SPDX-License-Identifier: Apache-2.0 */
/* What a trainer takes, by the sums that its parts are opened with. */
#include "ebm/score.h"
#include "learn/export.h"
#include "learn/trainer_internal.h"

#include <stdlib.h>

/* Chains and all that is there for them. */
static size_t chains_bytes(const struct trainer *t)
{
    const struct recipe *r = t->recipe;
    const struct attributes *a = &t->attributes;
    size_t sum = walkers_estimate(t->net, a, t->threads);
    if (r->chains.gaussian)
        sum = mem_sum(sum,
                      gaussian_fit_estimate(r->model.input, a->list[0].n_values, r->chains.grid));
    if (r->health.fresh.every > 0 && score_check(a, NULL) == 0)
        sum = mem_sum(sum, fresh_estimate(t));
    return trainer_has_kl(t) ? mem_sum(sum, kl_term_estimate(t)) : sum;
}

/* All of an opened trainer, and the optimiser's state as a checkpoint is written from. */
static size_t all_bytes(struct trainer *t)
{
    const struct recipe *r = t->recipe;
    const size_t n = t->data->n, p = t->parameters.n;
    const struct gradient_options o = {.batch = trainer_pass(t)};
    size_t sum = p * sizeof(float) + 2 * optimiser_estimate(&r->optimiser, p);
    sum = mem_sum(sum, trainer_arena(t));
    sum = mem_sum(sum, mem_times(n, t->data->columns) + n * sizeof(uint32_t)); /* labels */
    sum = mem_sum(sum, gradient_estimate(t->net, &t->parameters, &o, t->threads));
    return trainer_chains(t) > 0 ? mem_sum(sum, chains_bytes(t)) : sum;
}

static int describe(struct trainer *t, struct err *e)
{
    const struct description *d = &t->recipe->model;
    int rc = parameters_init_model(&t->parameters, d, e);
    if (rc != 0)
        return rc;
    const struct net_weights source = parameters_source(&t->parameters);
    rc = net_open(&t->net, d->layers, d->n_layers, d->input, &source, e);
    t->attributes = d->attributes;
    if (rc == 0 && d->energy.kind != JOINT_NONE)
        rc = joint_open(&t->head, &d->energy, net_logits(t->net), &t->attributes, &source, e);
    t->attributes.joint = t->head;
    return rc;
}

int trainer_estimate(struct trainer_cost *out, const struct trainer_options *o, int threads,
                     struct err *e)
{
    struct trainer *t = calloc(1, sizeof *t);
    if (!t)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a trainer");
    *t = (struct trainer){.recipe = o->recipe, .data = o->data, .threads = threads};
    t->labels.n = o->data->n; /* at most */
    const int rc = describe(t, e);
    if (rc == 0)
        *out = (struct trainer_cost){
            .parameters = t->parameters.n,
            .memory_bytes = all_bytes(t),
            .export_bytes =
                export_estimate(t->recipe, t->net, &t->attributes, t->parameters.n, threads),
            .walkers_bytes = walkers_estimate(t->net, &t->attributes, threads)};
    trainer_close(t);
    return rc;
}
