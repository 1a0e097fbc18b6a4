/* SPDX-License-Identifier: Apache-2.0 */
/* R-hat and effective sample sizes against published values, and against numbers that the R package
 * posterior 1.4.0, by authors of the definition, gives for draws that are made here and there by the
 * same arithmetic. */
#include "ebm/diagnostics.h"
#include "unit/eight_schools.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 8 * 256 };

static struct diagnostics of(const double *x, int chains, int n)
{
    struct diagnostics d;
    struct err e;
    assert_int_equal(diagnostics_compute(&d, x, chains, n, &e), 0);
    return d;
}

static void near(const char *what, double got, double wanted)
{
    if (isnan(wanted) ? !isnan(got) : !(fabs(got - wanted) <= 1e-9 * fabs(wanted)))
        fail_msg("%s: %.15g, expected %.15g", what, got, wanted);
}

/* As posterior's README prints them, and with all digits. */
static void eight_schools_have_their_published_values(void **state)
{
    (void)state;
    const struct diagnostics mu = of(eight_schools_mu[0], 4, 100);
    const struct diagnostics tau = of(eight_schools_tau[0], 4, 100);
    assert_true(round(mu.r_hat * 100) == 102 && round(tau.r_hat * 100) == 101);
    assert_true(round(mu.ess_bulk) == 558 && round(tau.ess_bulk) == 246);
    assert_true(round(mu.ess_tail) == 322 && round(tau.ess_tail) == 202);
    near("R-hat of mu", mu.r_hat, 1.02192302747315);
    near("bulk ESS of mu", mu.ess_bulk, 558.01731109754655);
    near("tail ESS of mu", mu.ess_tail, 322.09551798119435);
    near("R-hat of tau", tau.r_hat, 1.01467273951012);
    near("bulk ESS of tau", tau.ess_bulk, 246.37339221599507);
    near("tail ESS of tau", tau.ess_tail, 202.02342275575006);
}

/* An autoregression driven by Park and Miller's generator, chain c raised by apart c, and, with grid,
 * rounded down to one in grid. */
struct recipe {
    int chains, n;
    double phi, apart, grid, r_hat, bulk, tail;
};

static void make(const struct recipe *r, double *x)
{
    double state = 12345;
    for (int c = 0; c < r->chains; c++) {
        double at = 0;
        for (int t = 0; t < r->n; t++) {
            state = fmod(16807 * state, 2147483647);
            at = r->phi * at + (state / 2147483647 - 0.5);
            const double v = at + r->apart * c;
            x[c * r->n + t] = r->grid > 0 ? floor(v * r->grid) : v;
        }
    }
}

static void made_draws_have_the_values_of_another_implementation(void **state)
{
    (void)state;
    static const struct recipe recipes[] = {
        {4, 200, 0.9, 0, 0, 1.06289206790003, 49.06597175095528, 91.46995346128314},
        {6, 100, -0.7, 0, 0, 1.01094265693564, 1666.89075023018609,
         607.39493120093505}, /* capped */
        {4, 256, 0.99, 0, 0, 1.37359848145561, 9.12282123249395, 16.71528623391296},
        {4, 128, 0.5, 0.4, 0, 1.69620968581223, 6.76192622375546, 34.15050705697860},  /* apart */
        {5, 150, 0.5, 0, 4, 1.01719867220879, 202.07409835168792, 426.27110760650817}, /* ties */
        {4, 12, 0.3, 0, 0, 1.05463469600028, 34.60768682695294, 30.33149171270718},
        {8, 256, 0, 0, 0, 1.00076968746373, 1976.02193974921647, 1966.20741761026125},
        {4, 64, 0.2, 0, 1, 1.00536852697265, 244.91581322501168, (double)NAN}, /* no tail */
        {4, 40, -0.98, 0, 0, 1.54699920126603, 352.65919722494800, 13.88159547021622}};
    static double x[MOST];
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++) {
        const struct recipe *r = &recipes[i];
        make(r, x);
        const struct diagnostics d = of(x, r->chains, r->n);
        near("R-hat", d.r_hat, r->r_hat);
        near("bulk ESS", d.ess_bulk, r->bulk);
        near("tail ESS", d.ess_tail, r->tail);
    }
}

/* What ranks and medians make of it: the same of a growing function of the draws and of their negative,
 * of which only the tails' edges are elsewhere. */
static void ranks_are_all_that_counts_in_the_bulk(void **state)
{
    (void)state;
    static double x[MOST], y[MOST];
    const struct recipe r = {.chains = 5, .n = 120, .phi = 0.8, .apart = 0.1};
    make(&r, x);
    const struct diagnostics d = of(x, r.chains, r.n);
    for (int i = 0; i < r.chains * r.n; i++)
        y[i] = exp(x[i]);
    near("ESS of exp x", of(y, r.chains, r.n).ess_bulk, d.ess_bulk);
    for (int i = 0; i < r.chains * r.n; i++)
        y[i] = -x[i];
    near("ESS of -x", of(y, r.chains, r.n).ess_bulk, d.ess_bulk);
    near("R-hat of -x", of(y, r.chains, r.n).r_hat, d.r_hat);
}

/* Unlike scales about one median show in the folded R-hat alone. */
static void chains_of_unlike_scale_have_not_mixed(void **state)
{
    (void)state;
    static double x[MOST];
    const struct recipe r = {.chains = 4, .n = 200, .phi = 0};
    make(&r, x);
    assert_true(of(x, 4, 200).r_hat < 1.03);
    for (int i = 0; i < 200; i++)
        x[i] *= 8;
    assert_true(of(x, 4, 200).r_hat > 1.15);
}

static bool none(struct diagnostics d)
{
    return isnan(d.r_hat) && isnan(d.ess_bulk) && isnan(d.ess_tail);
}

static void what_says_nothing_gets_no_number(void **state)
{
    (void)state;
    static double x[MOST];
    const struct recipe r = {.chains = 8, .n = 100, .phi = 0.5};
    make(&r, x);
    assert_false(none(of(x, 4, 100)));
    assert_true(none(of(x, 3, 100)) && none(of(x, 1, 100)) && none(of(x, 0, 0)));
    assert_true(none(of(x, 4, 2)) && none(of(x, 4, 99)));
    const struct diagnostics few = of(x, 4, 10);
    assert_true(!isnan(few.r_hat) && isnan(few.ess_bulk) && isnan(few.ess_tail));
    x[17] = (double)INFINITY;
    assert_true(none(of(x, 4, 100)));
    x[17] = (double)NAN;
    assert_true(none(of(x, 4, 100)));
    for (int i = 0; i < 400; i++)
        x[i] = 3.25;
    assert_true(none(of(x, 4, 100)));
    for (int i = 0; i < 400; i++)
        x[i] = i / 100; /* stuck, each chain elsewhere */
    assert_true(none(of(x, 4, 100)));
    x[399]++;
    const struct diagnostics hardly = of(x, 4, 100);
    assert_true(hardly.r_hat > 5 && hardly.ess_bulk < 8);
}

static void the_first_half_of_a_trace_is_dropped(void **state)
{
    (void)state;
    static const int kept[][2] = {{0, 0}, {1, 0}, {3, 0},   {4, 2},
                                  {7, 2}, {8, 4}, {21, 10}, {512, 256}};
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
        assert_int_equal(diagnostics_kept(kept[i][0]), kept[i][1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eight_schools_have_their_published_values),
        cmocka_unit_test(made_draws_have_the_values_of_another_implementation),
        cmocka_unit_test(ranks_are_all_that_counts_in_the_bulk),
        cmocka_unit_test(chains_of_unlike_scale_have_not_mixed),
        cmocka_unit_test(what_says_nothing_gets_no_number),
        cmocka_unit_test(the_first_half_of_a_trace_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
