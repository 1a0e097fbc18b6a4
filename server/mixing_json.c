/* SPDX-License-Identifier: Apache-2.0 */
#include "server/mixing_json.h"

#include "ebm/diagnostics.h"

#include <math.h>
#include <stdlib.h>

/* Of the chains first, first + 1, .. of a group. */
struct tally {
    int chains, diverged, sound, kept; /* sound: with a trace of `kept` points */
    long long proposals, accepted;
};

/* Their energies to room[sound][kept]; room may be NULL. */
static struct tally count(const struct chain_group *g, int first, int n, double *room)
{
    struct tally t = {.chains = n};
    for (int i = first; i < first + n; i++) {
        struct chain_result r;
        chain_group_result(g, i, &r);
        t.proposals += r.proposals;
        t.accepted += r.accepted;
        t.diverged += r.diverged;
        if (r.diverged)
            continue;
        t.kept = diagnostics_kept(r.n_trace);
        for (int k = 0; room && k < t.kept; k++)
            *room++ = -(double)r.trace_score[r.n_trace - t.kept + k];
        t.sound++;
    }
    return t;
}

/* To the precision of a float: the last digits of libm's functions are its own. */
static json_t *rounded(double v)
{
    return json_real_or_null((double)(float)v);
}

static int condition_json(json_t **out, const struct chain_group *g, int first, int n, int index,
                          struct err *e)
{
    struct diagnostics d;
    struct tally t = count(g, first, n, NULL);
    double *room = malloc(((size_t)t.sound * (size_t)t.kept + 1) * sizeof *room);
    if (!room)
        return fail(e, FAIL_NO_MEMORY, "no memory for the diagnostics of %d chains", n);
    t = count(g, first, n, room);
    const int rc = diagnostics_compute(&d, room, t.sound, t.kept, e);
    free(room);
    if (rc != 0)
        return rc;
    const double rate = t.proposals ? (double)t.accepted / (double)t.proposals : (double)NAN;
    *out = json_pack("{s:i, s:i, s:i, s:o, s:o, s:o, s:o}", "condition", index, "chains", t.chains,
                     "diverged", t.diverged, "acceptance_rate", json_real_or_null(rate), "r_hat",
                     rounded(d.r_hat), "ess_bulk", rounded(d.ess_bulk), "ess_tail",
                     rounded(d.ess_tail));
    return *out ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the result");
}

int mixing_json(json_t **out, const struct sample_request *q, const struct chain_group *g,
                struct err *e)
{
    json_t *array = json_array();
    int rc = array ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the result");
    for (int i = 0, first = 0; rc == 0 && i < q->n_conditions; first += q->counts[i++]) {
        json_t *one;
        rc = condition_json(&one, g, first, q->counts[i], i, e);
        if (rc == 0)
            json_array_append_new(array, one);
    }
    if (rc == 0)
        *out = array;
    else
        json_decref(array);
    return rc;
}

bool mixing_is_stuck(const struct sample_request *q, const struct chain_group *g)
{
    const struct tally t = count(g, 0, q->n_chains, NULL);
    return t.proposals > 0 && t.accepted == 0;
}
