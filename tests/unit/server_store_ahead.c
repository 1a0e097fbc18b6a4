/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the way of a job is said to be, against how long it turns out to be: jobs are claimed from a
 * store, and share the slots of an engine by ebm/chain_shares.h, a step after the other. Time is counted
 * in the steps that all have made, which take alike.
 */
#include "ebm/chains_internal.h"
#include "store_suite_base.h"

#include <math.h>

enum { PLACES = 64, SLOTS = 32, CAP = 32, MOST = 200 };

static const struct store_engine engines[JOB_TYPES] = {
    [JOB_SAMPLE] = {.places = PLACES, .slots = SLOTS},
    [JOB_PREDICT] = {PLACES, 0},
    [JOB_TRAIN] = {1, 0}};

/* A load: jobs 1..n, and what became of them. */
static struct {
    int n;
    struct work {
        struct chain_group group;
        enum job_priority priority;
        char client[8];
        int chains;
        long long left;
        uint64_t epoch;
        double told, took;
        int position, turn;
    } jobs[MOST + 1];
} load;

static void begin(int cap)
{
    struct store_limits l = generous;
    l.max_running_per_client = cap;
    use_limits(&l);
    memset(&load, 0, sizeof load);
}

static void give(const char *client, enum job_priority priority, int chains, int steps)
{
    struct work *w = &load.jobs[++load.n];
    struct job j = new_job(load.n);
    assert_in_range(load.n, 1, MOST);
    *w = (struct work){.priority = priority, .chains = chains, .left = (long long)chains * steps};
    snprintf(w->client, sizeof w->client, "%s", client);
    strcpy(j.client, client);
    j.priority = priority;
    j.steps_total = w->left;
    j.width = chains;
    assert_int_equal(put(j), 0);
}

static struct store_ahead way_of(int n)
{
    struct store_ahead a = {0};
    assert_int_equal(st->ops->ahead(st, id_of(n), engines, &a, &e), 0);
    return a;
}

/* Asks for the way of every job. */
static void tell(void)
{
    for (int n = 1; n <= load.n; n++) {
        struct work *w = &load.jobs[n];
        const struct store_ahead a = way_of(n);
        assert_int_equal(a.own_steps, w->left);
        w->told = (double)(a.own_steps + a.other_steps);
        w->position = a.position;
    }
}

/* Claims what there is room for. Every group is linked to the next, oldest first. */
static void claim_all(struct chain_shares *s, struct chain_group **groups, int *running,
                      int *claims)
{
    uint64_t epoch;
    int n;
    while (*running < PLACES && (n = claim_at(NOW, &epoch)) != 0) {
        struct work *w = &load.jobs[n];
        struct chain_room room;
        struct chain_group **at = groups;
        w->epoch = epoch;
        w->turn = ++*claims;
        w->group.task = (struct chain_task){.rank = (int)w->priority,
                                            .rank_weight = job_priority_weights[w->priority],
                                            .weight = 1};
        w->group.ready_count = w->chains;
        assert_int_equal(room_make(&room, w->client, &e), 0);
        shares_join(s, &w->group, *groups, &room);
        room_drop(&room);
        while (*at)
            at = &(*at)->next;
        *at = &w->group;
        ++*running;
    }
}

static struct work *work_of(struct chain_group *g)
{
    return (struct work *)(void *)((char *)g - offsetof(struct work, group));
}

/* One step of as many chains as there are slots; returns how many. */
static int iterate(struct chain_group *groups)
{
    int made = 0;
    for (; made < SLOTS; made++) {
        struct chain_group *best = NULL;
        for (struct chain_group *g = groups; g; g = g->next)
            if (group_waits(g) && (!best || shares_precede(g, best)))
                best = g;
        if (!best)
            break;
        best->ready_count--;
        work_of(best)->left--;
        shares_charge(best, 1);
    }
    return made;
}

/* Runs all to their end. */
static void run(void)
{
    struct chain_shares shares = {0};
    struct chain_group *groups = NULL;
    int running = 0, claims = 0;
    long long time = 0;
    do {
        claim_all(&shares, &groups, &running, &claims);
        time += iterate(groups);
        for (struct chain_group **at = &groups; *at;) {
            struct work *w = work_of(*at);
            w->group.ready_count = w->left < w->chains ? (int)w->left : w->chains;
            if (w->left > 0) {
                at = &(*at)->next;
                continue;
            }
            *at = w->group.next;
            shares_leave(&shares, &w->group);
            w->took = (double)time;
            assert_int_equal(finish((int)(w - load.jobs), w->epoch, JOB_SUCCEEDED, NULL), 0);
            running--;
        }
    } while (groups);
    shares_fini(&shares);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Quartiles of took / told over the jobs of one client (NULL = all), which are to be within these, and
 * the rest not far from it. */
static void judge(const char *what, const char *client, double low, double high)
{
    double ratios[MOST];
    int n = 0;
    for (int i = 1; i <= load.n; i++) {
        const struct work *w = &load.jobs[i];
        if (w->told > 0 && (!client || strcmp(client, w->client) == 0))
            ratios[n++] = w->took / w->told;
    }
    assert_true(n > 0);
    qsort(ratios, (size_t)n, sizeof ratios[0], ascending);
    print_message("%s%s%s: took / told of %d: least %.2f, quartiles %.2f %.2f %.2f, most %.2f\n",
                  what, client ? " of " : "", client ? client : "", n, ratios[0], ratios[n / 4],
                  ratios[n / 2], ratios[3 * n / 4], ratios[n - 1]);
    assert_true(ratios[n / 4] >= low && ratios[3 * n / 4] <= high);
    assert_true(ratios[0] >= low / 4 && ratios[n - 1] <= 2 * high);
}

static void one_job_beside_thirty_of_another(void **state)
{
    (void)state;
    begin(CAP);
    for (int i = 0; i < 30; i++)
        give("ann", JOB_NORMAL, 16, 100);
    give("bob", JOB_NORMAL, 16, 100);
    tell();
    assert_int_equal(load.jobs[31].position, 2);
    run();
    assert_int_equal(load.jobs[31].turn, 2);
    judge("30 and 1", "ann", 0.8, 1.25);
    judge("30 and 1", "bob", 0.8, 1.25);
}

static void one_high_beside_ten_normal(void **state)
{
    (void)state;
    begin(CAP);
    for (int i = 0; i < 10; i++)
        give("ann", JOB_NORMAL, 16, 100);
    give("ann", JOB_HIGH, 64, 25);
    tell();
    assert_int_equal(load.jobs[11].position, 1);
    assert_true(fabs(load.jobs[11].told / 1600 - 1.5) < 0.01);
    run();
    judge("1 high and 10 normal", NULL, 0.8, 1.25);
}

static void few_chains_take_as_long_as_many(void **state)
{
    (void)state;
    begin(CAP);
    for (int i = 0; i < 4; i++)
        give("ann", JOB_NORMAL, 16, 100);
    give("bob", JOB_NORMAL, 1, 100);
    give("cyd", JOB_HIGH, 2, 40);
    tell();
    run();
    judge("1 and 2 chains beside 64", NULL, 0.8, 1.25);
}

static void what_all_has_a_slot_ends_by_itself(void **state)
{
    (void)state;
    begin(CAP);
    give("ann", JOB_NORMAL, 16, 100);
    give("bob", JOB_HIGH, 1, 1000);
    give("bob", JOB_LOW, 4, 50);
    tell();
    run();
    judge("21 chains", NULL, 0.9, 1.1);
}

static int pick(uint64_t *random, int low, int high)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return low + (int)((*random >> 33) % (uint64_t)(high - low + 1));
}

/* Of all sorts: three clients, one of them with half of the jobs. */
static void give_some(uint64_t *random)
{
    static const int chains[] = {1, 2, 4, 8, 16, 64}, times[] = {1, 2, 5, 10};
    static const char *const clients[] = {"ann", "ann", "ann", "bob", "bob", "cyd"};
    const char *const client = clients[pick(random, 0, 5)];
    const enum job_priority priority = (enum job_priority)pick(random, 0, 2);
    const int n = chains[pick(random, 0, 5)];
    give(client, priority, n, 10 * times[pick(random, 0, 3)]);
}

static void a_position_is_the_order_of_claims(void **state)
{
    uint64_t random = 5;
    (void)state;
    for (int round = 0; round < 20; round++) {
        int n = 0, claims = 0;
        begin(round % 2 ? 0 : 12);
        for (int i = 0; i < round % 8; i++) {
            give_some(&random);
            assert_int_equal(claim_at(NOW, NULL), load.n);
        }
        for (int i = 0; i < 40; i++)
            give_some(&random);
        tell();
        while ((n = claim_at(NOW, NULL)) != 0)
            assert_int_equal(load.jobs[n].position, ++claims);
        assert_true(claims == 40 || (round % 2 == 0 && claims > 12));
    }
}

static void what_is_scheduled_says_so(void **state)
{
    (void)state;
    begin(CAP);
    give("ann", JOB_NORMAL, 16, 100);
    struct job j = new_job(2);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW + 3600000;
    assert_int_equal(put(j), 0);
    struct store_ahead a = way_of(2);
    assert_true(a.begins && a.begins_ms == NOW + 3600000 && a.position == 0);
    assert_int_equal(a.own_steps, 100);
    a = way_of(1);
    assert_true(a.begins && a.begins_ms == 0 && a.position == 1);
    assert_int_equal(a.other_steps, 0); /* it may have ended by then */
    assert_int_equal(claim_at(NOW, NULL), 1);
    assert_false(way_of(1).begins);
}

static struct store_ahead soonest(enum job_type type, const char *client)
{
    struct store_ahead a = {.own_steps = 1};
    assert_int_equal(st->ops->soonest(st, type, client, engines, &a, &e), 0);
    return a;
}

static void the_job_that_ends_first_is_known(void **state)
{
    (void)state;
    begin(CAP);
    assert_int_equal(soonest(JOB_SAMPLE, "ann").own_steps, 0);
    struct job j = new_job(9);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW + 1000;
    j.steps_total = 7;
    assert_int_equal(put(j), 0);
    assert_int_equal(soonest(JOB_SAMPLE, "ann").begins_ms, NOW + 1000);
    give("ann", JOB_NORMAL, 16, 100);
    assert_int_equal(soonest(JOB_SAMPLE, "ann").own_steps, 1600);
    give("ann", JOB_NORMAL, 16, 50);
    give("ann", JOB_HIGH, 16, 99);
    give("bob", JOB_HIGH, 1, 1);
    assert_int_equal(soonest(JOB_SAMPLE, "ann").own_steps,
                     16 * 99); /* at twice the pace of others */
    assert_int_equal(claim_at(NOW, NULL), 3);
    assert_int_equal(claim_at(NOW, NULL), 4);
    assert_int_equal(claim_at(NOW, NULL), 1);
    assert_int_equal(soonest(JOB_SAMPLE, "ann").own_steps, 16 * 99);
    assert_int_equal(soonest(JOB_SAMPLE, "bob").own_steps, 1);
    assert_int_equal(soonest(JOB_PREDICT, "ann").own_steps, 0);
    assert_int_equal(soonest(JOB_SAMPLE, "cyd").own_steps, 0);
}

static void mixed_loads(void **state)
{
    uint64_t random = 1;
    (void)state;
    for (int round = 0; round < 6; round++) {
        char what[32];
        begin(round % 3 == 0 ? CAP : round % 3 == 1 ? 8 : 0);
        for (int i = 0; i < (round < 3 ? 40 : 150); i++)
            give_some(&random);
        snprintf(what, sizeof what, "mixed %d", round);
        tell();
        run();
        judge(what, NULL, 0.5, 2);
    }
}

static void forget(void)
{
}

int main(void)
{
    static const struct store_kind memory = {
        .name = "store_memory", .open = store_memory_open, .empty = forget};
    kind = &memory;
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_position_is_the_order_of_claims, tear_down),
        cmocka_unit_test_teardown(one_job_beside_thirty_of_another, tear_down),
        cmocka_unit_test_teardown(one_high_beside_ten_normal, tear_down),
        cmocka_unit_test_teardown(few_chains_take_as_long_as_many, tear_down),
        cmocka_unit_test_teardown(what_all_has_a_slot_ends_by_itself, tear_down),
        cmocka_unit_test_teardown(what_is_scheduled_says_so, tear_down),
        cmocka_unit_test_teardown(the_job_that_ends_first_is_known, tear_down),
        cmocka_unit_test_teardown(mixed_loads, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
