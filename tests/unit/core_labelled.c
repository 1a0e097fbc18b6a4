/* SPDX-License-Identifier: Apache-2.0 */
/* Which labels a training sees. */
#include "learn/labelled.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 400, K = 2, PER_VALUE = 5 };

/* The first label has three values, of which 2 has 5 rows; the second is often missing. */
static uint8_t label(size_t row, int k)
{
    if (k == 0)
        return row % 80 == 3 ? 2 : (uint8_t)(row / 3 % 2);
    return row % 4 == 0 ? (uint8_t)(row / 4 % 5) : LABELLED_MISSING;
}

static const int values[K] = {3, 5};

static struct source rows(void)
{
    static uint8_t labels[ROWS * K];
    for (size_t i = 0; i < ROWS; i++)
        for (int k = 0; k < K; k++)
            labels[i * K + (size_t)k] = label(i, k);
    return (struct source){.n = ROWS, .columns = K, .labels = labels};
}

static struct labelled chosen(int per_value, uint64_t seed)
{
    const struct source data = rows();
    struct labelled l;
    struct err e;
    assert_int_equal(labelled_init(&l, &data, values, per_value, seed, &e), 0);
    return l;
}

static void all_are_seen_unless_few_are_wanted(void **state)
{
    struct labelled l = chosen(0, 1);
    (void)state;
    for (size_t i = 0; i < ROWS; i++)
        for (int k = 0; k < K; k++)
            assert_int_equal(l.labels[i * K + (size_t)k], label(i, k));
    assert_int_equal(l.n, ROWS);
    labelled_fini(&l);
}

static void so_many_rows_of_every_value_keep_their_label(void **state)
{
    struct labelled l = chosen(PER_VALUE, 1);
    int count[K][5] = {0};
    size_t listed = 0;
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        bool some = false;
        for (int k = 0; k < K; k++) {
            const uint8_t y = l.labels[i * K + (size_t)k];
            assert_true(y == LABELLED_MISSING || y == label(i, k));
            if (y == LABELLED_MISSING)
                continue;
            count[k][y]++;
            some = true;
        }
        if (some)
            assert_int_equal(l.list[listed++], i);
    }
    assert_int_equal(listed, l.n);
    for (int v = 0; v < 5; v++)
        assert_int_equal(count[1][v], PER_VALUE);
    for (int v = 0; v < 3; v++)
        assert_int_equal(count[0][v], PER_VALUE);
    labelled_fini(&l);
}

static void a_value_of_too_few_rows_is_named(void **state)
{
    const struct source data = rows();
    struct labelled l;
    struct err e;
    (void)state;
    assert_int_equal(labelled_init(&l, &data, values, 6, 1, &e), -FAIL_OUT_OF_RANGE);
    assert_non_null(strstr(e.text, "value 2 of label 0 has only 5"));
    assert_int_equal(labelled_init(&l, &data, (const int[]){3, 6}, 1, 1, &e), -FAIL_OUT_OF_RANGE);
    assert_non_null(strstr(e.text, "value 5 of label 1 has only 0"));
}

static void the_choice_is_the_seeds(void **state)
{
    struct labelled a = chosen(PER_VALUE, 1), b = chosen(PER_VALUE, 1), c = chosen(PER_VALUE, 2);
    (void)state;
    assert_memory_equal(a.labels, b.labels, ROWS * K);
    assert_memory_not_equal(a.labels, c.labels, ROWS * K);
    labelled_fini(&a);
    labelled_fini(&b);
    labelled_fini(&c);
}

static void a_shuffle_is_a_permutation(void **state)
{
    (void)state;
    for (uint32_t n = 0; n < 40; n++) {
        const struct rng_stream s = {.seed = n, .purpose = RNG_ROWS};
        uint32_t order[40];
        bool seen[40] = {false};
        labelled_shuffle(&s, n, order);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(order[i] < n && !seen[order[i]]);
            seen[order[i]] = true;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_are_seen_unless_few_are_wanted),
        cmocka_unit_test(so_many_rows_of_every_value_keep_their_label),
        cmocka_unit_test(a_value_of_too_few_rows_is_named),
        cmocka_unit_test(the_choice_is_the_seeds),
        cmocka_unit_test(a_shuffle_is_a_permutation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
