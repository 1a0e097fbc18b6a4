/* SPDX-License-Identifier: Apache-2.0 */
/* Gibbs-With-Gradients against exact enumeration: the chain's stationary distribution is p(y|x), and
 * one move satisfies detailed balance, whose proposals and acceptances are measured. Random numbers
 * are fixed: a test passes or fails for good; rates are what a fresh seed would have. */
#include "base/rng.h"
#include "ebm/gwg.h"
#include "unit/joint_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { LABELS_MOST = 32, CHAINS = 4000, ROUNDS = 12 };

static int index_of(const struct head *h, const uint16_t *y)
{
    int i = 0;
    for (int k = 0; k < h->attributes.n; k++)
        i = i * h->list[k].n_values + y[k];
    return i;
}

/* p of every y, by the interpreter; returns how many are allowed. */
static int exact(const struct head *h, const double *phi, const uint8_t *allowed,
                 double temperature, double *p)
{
    double sum = 0;
    uint16_t y[HEAD_ATTRIBUTES];
    int n = 0;
    for (int i = 0; head_label(h, i, y); i++) {
        bool in = true;
        for (int k = 0; k < h->attributes.n; k++)
            in &= allowed[h->list[k].first + y[k]];
        p[i] = in ? exp(head_of(h, phi, y) / temperature) : 0;
        sum += p[i];
        n += in;
    }
    for (int i = 0; i < LABELS_MOST; i++)
        p[i] /= sum;
    return n;
}

static const struct target {
    enum joint_kind kind;
    int values[HEAD_ATTRIBUTES + 1];
    int fixed,
        barred; /* attribute held at value 1; value number (of L) that is not allowed; or -1 */
    float temperature;
} targets[] = {
    {JOINT_DOT, {2, 2, 2, 2, 0}, -1, -1, 1}, /* binary */
    {JOINT_MLP, {5, 3, 0}, -1, -1, 1},       /* many-valued */
    {JOINT_DOT, {2, 4, 3, 0}, -1, 3, 1},     /* mixed, with a set */
    {JOINT_MLP, {3, 2, 4, 0}, 1, -1, 1},     /* with a fixed one */
    {JOINT_DOT, {3, 3, 2, 0}, -1, -1, 0.5f}, /* colder */
    {JOINT_MLP, {7, 0}, -1, 0, 1},           /* one attribute */
};
enum { TARGETS = sizeof targets / sizeof targets[0] };

static void open_target(struct head *h, int i, float *phi, double *same, uint8_t *allowed)
{
    const struct target *t = &targets[i];
    head_open(h, t->kind, 6, t->values, (const int[]){9, 5, 0});
    head_phi(h, 40 + (uint64_t)i, phi, same);
    memset(allowed, 1, HEAD_WIDTH);
    if (t->fixed >= 0)
        for (int v = 0; v < h->list[t->fixed].n_values; v++)
            allowed[h->list[t->fixed].first + v] = v == 1;
    if (t->barred >= 0)
        allowed[t->barred] = 0;
}

/* Upper quantile of chi-square with d degrees, for odds 1e-6 (Wilson and Hilferty 1931). */
static double chi_square_bound(int d)
{
    const double c = 2.0 / (9.0 * d), z = 4.753;
    return d * pow(1 - c + z * sqrt(c), 3);
}

/* 4000 independent chains from uniform starts, 12 runs each: chi-square of where they are against
 * exact p(y|x). False alarms: below 1e-6 a target, were the chains at equilibrium. */
static void chains_come_to_the_exact_posterior(void **state)
{
    (void)state;
    for (int i = 0; i < TARGETS; i++) {
        struct head h;
        float phi[HEAD_FEATURES], u[3 * HEAD_ATTRIBUTES];
        double same[HEAD_FEATURES], p[LABELS_MOST] = {0}, chi = 0;
        uint8_t allowed[HEAD_WIDTH];
        int seen[LABELS_MOST] = {0}, accepted = 0;
        open_target(&h, i, phi, same, allowed);
        const int n = exact(&h, same, allowed, (double)targets[i].temperature, p);
        for (int chain = 0; chain < CHAINS; chain++) {
            uint16_t y[HEAD_ATTRIBUTES];
            for (int round = 0; round < ROUNDS; round++) {
                const struct rng_stream s = {.seed = 9,
                                             .step = (uint32_t)round,
                                             .chain = (uint32_t)chain,
                                             .purpose = RNG_GIBBS};
                rng_uniform(&s, u, gwg_uniforms(h.attributes.n));
                if (round == 0)
                    gwg_start(h.joint, allowed, u, y);
                accepted += gwg_run(h.joint, phi, allowed, targets[i].temperature, u, y);
            }
            seen[index_of(&h, y)]++;
        }
        for (int l = 0; l < LABELS_MOST; l++) {
            if (p[l] <= 0) {
                assert_int_equal(seen[l], 0);
                continue;
            }
            const double wanted = p[l] * CHAINS;
            chi += (seen[l] - wanted) * (seen[l] - wanted) / wanted;
        }
        assert_true(accepted > CHAINS);
        if (chi > chi_square_bound(n - 1))
            fail_msg("target %d: chi-square %.1f of %d degrees", i, chi, n - 1);
        head_close(&h);
    }
}

enum { GRID = 4000, HALVINGS = 20 };

/* Where the first move of a run leads with these uniforms; the other moves are never accepted. */
static int first_move(const struct head *h, int target, const float *phi, const uint8_t *allowed,
                      const uint16_t *from, float propose, float accept)
{
    float u[3 * HEAD_ATTRIBUTES];
    uint16_t y[HEAD_ATTRIBUTES];
    for (int k = 0; k < h->attributes.n; k++) {
        u[k] = propose;
        u[h->attributes.n + k] = k == 0 ? accept : INFINITY;
    }
    memcpy(y, from, sizeof y);
    gwg_run(h->joint, phi, allowed, targets[target].temperature, u, y);
    return index_of(h, y);
}

/* The largest uniform that accepts what `propose` proposes. */
static double acceptance(const struct head *h, int target, const float *phi, const uint8_t *allowed,
                         const uint16_t *from, float propose)
{
    float lo = 0, hi = 1;
    for (int i = 0; i < HALVINGS; i++) {
        const float mid = 0.5f * (lo + hi);
        if (first_move(h, target, phi, allowed, from, propose, mid) == index_of(h, from))
            hi = mid;
        else
            lo = mid;
    }
    return (double)lo;
}

/* odds[to]: proposals counted on a grid of the uniform (with one that always accepts), times the
 * acceptance found by halving. */
static void measure(const struct head *h, int target, const float *phi, const uint8_t *allowed,
                    const uint16_t *from, double *odds)
{
    float at[LABELS_MOST];
    for (int g = 0; g < GRID; g++) {
        const float propose = ((float)g + 0.5f) / GRID;
        const int to = first_move(h, target, phi, allowed, from, propose, -1);
        odds[to] += 1.0 / GRID;
        at[to] = propose;
    }
    assert_true(odds[index_of(h, from)] <= 0);
    for (int to = 0; to < LABELS_MOST; to++)
        if (odds[to] > 0)
            odds[to] *= acceptance(h, target, phi, allowed, from, at[to]);
}

static void one_move_is_in_detailed_balance(void **state)
{
    (void)state;
    for (int i = 0; i < TARGETS; i++) {
        struct head h;
        float phi[HEAD_FEATURES];
        double same[HEAD_FEATURES], p[LABELS_MOST] = {0}, moved = 0;
        static double odds[LABELS_MOST][LABELS_MOST];
        uint8_t allowed[HEAD_WIDTH];
        uint16_t from[HEAD_ATTRIBUTES];
        open_target(&h, i, phi, same, allowed);
        exact(&h, same, allowed, (double)targets[i].temperature, p);
        memset(odds, 0, sizeof odds);
        for (int l = 0; head_label(&h, l, from); l++)
            if (p[l] > 0)
                measure(&h, i, phi, allowed, from, odds[l]);
        for (int a = 0; a < LABELS_MOST; a++) {
            for (int b = 0; b < a; b++) {
                const double there = p[a] * odds[a][b], back = p[b] * odds[b][a];
                if (fabs(there - back) > 1.5 / GRID * fmax(p[a], p[b]))
                    fail_msg("target %d: %d -> %d flows %.6f, back %.6f", i, a, b, there, back);
                moved += there;
            }
        }
        assert_true(moved > 0.1);
        head_close(&h);
    }
}

static void what_has_no_choice_stays(void **state)
{
    (void)state;
    struct head h;
    float phi[HEAD_FEATURES], u[3 * HEAD_ATTRIBUTES] = {0};
    double same[HEAD_FEATURES];
    uint8_t allowed[HEAD_WIDTH] = {0};
    uint16_t y[HEAD_ATTRIBUTES] = {0};
    head_open(&h, JOINT_DOT, 6, (const int[]){3, 2, 0}, (const int[]){4, 0});
    head_phi(&h, 1, phi, same);
    allowed[2] = allowed[3] = 1;
    gwg_start(h.joint, allowed, u, y);
    assert_int_equal(y[0], 2);
    assert_int_equal(y[1], 0);
    assert_int_equal(gwg_run(h.joint, phi, allowed, 1, u, y), 0);
    assert_int_equal(y[0], 2);
    head_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chains_come_to_the_exact_posterior),
        cmocka_unit_test(one_move_is_in_detailed_balance),
        cmocka_unit_test(what_has_no_choice_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
