/* SPDX-License-Identifier: Apache-2.0 */
/* Networks compiled for the fast kernels against the layer-by-layer walk with ops/ref.c: with plain
 * loops as kernels (what the compiler does), and with every table this CPU can run. */
#include "base/mem.h"
#include "base/pool.h"
#include "file/segment.h"
#include "net/engine.h"
#include "unit/plain_kernels.h"
#include "unit/program_nets.h"
#include "unit/test_allocations.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

enum { BATCH = 5, TABLES_MAX = KERNELS_MAX + 2, TEAM_MAX = 3 };

static struct pool *pools[TEAM_MAX + 1]; /* [threads]; [1] = NULL: no pool */

static int tables(const struct kernels *out[TABLES_MAX])
{
    out[0] = &plain_kernels;
    out[1] = &plain_kernels_split;
    return 2 + kernels_available(out + 2);
}

/* What a table may differ from the truth by: forward; ten times that backward, where a sign near
 * zero may flip. */
static double tolerance(const struct kernels *k)
{
    static const double limits[PRECISIONS] = {1e-5, 1e-4, 3e-2};
    return limits[k->precision];
}

static struct engine *engine_of(const struct net *net, const struct kernels *k, bool backward)
{
    struct engine *engine;
    struct err e;
    const struct engine_options o = {.kernels = k, .backward = backward, .pool = pools[2]};
    if (engine_open(&engine, net, &o, &e) != 0)
        fail_msg("%s", e.text);
    return engine;
}

static struct workspace *work(const struct engine *engine, int batch, bool backward, int threads)
{
    struct workspace *w;
    struct err e;
    if (workspace_open_engine(&w, engine, batch, backward, pools[threads], &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(workspace_bytes(w),
                     workspace_estimate_engine(engine, batch, backward, threads));
    return w;
}

/* A batch, what the walk makes of it and what an engine did. */
struct truth {
    size_t n, k; /* elements of an image, logits */
    float *x, *c, *logits, *dx, *got_logits, *got_dx;
};

static void truth_open(struct truth *t, const struct net *net)
{
    struct workspace *w;
    struct err e;
    t->n = net_shape_elements(net_input(net));
    t->k = (size_t)net_logits(net);
    float **const all[] = {&t->x, &t->dx, &t->got_dx, &t->c, &t->logits, &t->got_logits};
    for (int i = 0; i < 6; i++) {
        *all[i] = calloc(BATCH * (i < 3 ? t->n : t->k), sizeof(float));
        assert_non_null(*all[i]);
    }
    test_fill(t->x, BATCH * t->n, 51);
    test_fill(t->c, BATCH * t->k, 52);
    assert_int_equal(workspace_open(&w, net, &ops_ref, BATCH, true, &e), 0);
    memcpy(t->logits, net_forward(w, BATCH, t->x), BATCH * t->k * sizeof(float));
    net_backward_input(w, BATCH, t->c, t->dx);
    workspace_close(w);
}

static void truth_close(struct truth *t)
{
    float *const all[] = {t->x, t->dx, t->got_dx, t->c, t->logits, t->got_logits};
    for (int i = 0; i < 6; i++)
        free(all[i]);
}

static void check_close(struct truth *t, const struct engine *engine, const char *what)
{
    const struct kernels *k = engine_kernels(engine);
    struct workspace *w = work(engine, BATCH, true, 1);
    memcpy(t->got_logits, net_forward(w, BATCH, t->x), BATCH * t->k * sizeof(float));
    net_backward_input(w, BATCH, t->c, t->got_dx);
    workspace_close(w);
    const double forward = test_relative_f(t->got_logits, t->logits, BATCH * t->k);
    const double backward = test_relative_f(t->got_dx, t->dx, BATCH * t->n);
    if (!(forward < tolerance(k) && backward < 10 * tolerance(k)))
        fail_msg("%s with %s: forward %.3g, backward %.3g from the walk", what, k->name, forward,
                 backward);
}

/* The bits that check_close got, again: by a team, in another workspace, one image at a time, and
 * forward only. */
static void check_bits(const struct truth *t, const struct engine *engine)
{
    const size_t logits = t->k * sizeof(float), image = t->n * sizeof(float);
    float *one = calloc(BATCH * t->n, sizeof *one);
    for (int threads = 2; threads <= TEAM_MAX; threads++) {
        struct workspace *w = work(engine, BATCH + 2, true, threads);
        assert_memory_equal(net_forward(w, BATCH, t->x), t->got_logits, BATCH * logits);
        net_backward_input(w, BATCH, t->c, one);
        assert_memory_equal(one, t->got_dx, BATCH * image);
        workspace_close(w);
    }
    struct workspace *w = work(engine, 2, true, 1), *only = work(engine, BATCH, false, 2);
    assert_memory_equal(net_forward(only, BATCH, t->x), t->got_logits, BATCH * logits);
    for (size_t b = 0; b < BATCH; b++) {
        const float *got = net_forward(w, 1, t->x + b * t->n);
        assert_memory_equal(got, t->got_logits + b * t->k, logits);
        net_backward_input(w, 1, t->c + b * t->k, one);
        assert_memory_equal(one, t->got_dx + b * t->n, image);
        assert_memory_equal(got, t->got_logits + b * t->k, logits);
    }
    workspace_close(w);
    workspace_close(only);
    free(one);
}

static void check_net(const struct layer_spec *list, int n, struct net_shape input,
                      const char *what)
{
    const struct kernels *all[TABLES_MAX];
    const int n_tables = tables(all);
    struct made m;
    struct truth t;
    make(&m, list, n, input);
    truth_open(&t, m.net);
    for (int i = 0; i < n_tables; i++) {
        struct engine *engine = engine_of(m.net, all[i], true);
        check_close(&t, engine, what);
        check_bits(&t, engine);
        engine_close(engine);
    }
    truth_close(&t);
    drop(&m);
}

static int list_length(const struct program_net *p)
{
    static const struct layer_spec none;
    int n = PROGRAM_NET_LAYERS;
    while (memcmp(&p->list[n - 1], &none, sizeof none) == 0)
        n--;
    return n;
}

static void compiled_networks_agree_with_the_walk(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(program_nets); i++) {
        const struct program_net *p = &program_nets[i];
        check_net(p->list, list_length(p), p->input, p->name);
    }
}

static void common_networks_have_a_stage_a_convolution(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(program_nets); i++) {
        const struct program_net *p = &program_nets[i];
        struct made m;
        int stages[2] = {0};
        if (p->stages[0] == 0)
            continue;
        make(&m, p->list, list_length(p), p->input);
        struct engine *engine = engine_of(m.net, &plain_kernels_split, true);
        for (int s = 0; s < engine_stages(engine); s++) {
            struct engine_stage stage;
            engine_stage(engine, s, &stage);
            stages[stage.backward]++;
        }
        assert_int_equal(stages[0], p->stages[0]);
        assert_int_equal(stages[1], p->stages[1]);
        engine_close(engine);
        drop(&m);
    }
}

/* A list under construction: shapes of its values as a reader sees them. */
struct random_list {
    uint64_t random;
    int n;
    struct layer_spec *list;
    struct net_shape shapes[64];
    bool used[64];
};

static struct layer_spec *random_add(struct random_list *r, enum layer_kind kind, int from)
{
    struct layer_spec *s = &r->list[r->n];
    *s = (struct layer_spec){.kind = kind, .slope = 0.3f};
    snprintf(s->id, sizeof s->id, "v%d", r->n + 1);
    snprintf(s->from, sizeof s->from, from ? "v%d" : "input", from);
    r->used[from] = true;
    return s;
}

static void random_done(struct random_list *r, int from)
{
    r->shapes[r->n + 1] = test_eval_shape(&r->list[r->n], r->shapes[from]);
    r->used[r->n + 1] = false;
    r->n++;
}

static void random_weights(struct layer_spec *s, int index, int in, int out)
{
    snprintf(s->weights, sizeof s->weights, "w%d", index);
    s->in = in;
    s->out = out;
}

static void random_layer(struct random_list *r)
{
    static const enum layer_kind kinds[] = {
        LAYER_CONV, LAYER_CONV, LAYER_LRELU,   LAYER_SILU,    LAYER_SQUARE, LAYER_ADD,
        LAYER_ADD,  LAYER_ADD,  LAYER_AVGPOOL, LAYER_FLATTEN, LAYER_LINEAR, LAYER_LRELU};
    static const int outs[] = {1, 2, 2, 5, 17, 34};
    const int from = test_pick(&r->random, 0, r->n);
    const struct net_shape in = r->shapes[from];
    enum layer_kind kind = kinds[test_pick(&r->random, 0, COUNT_OF(kinds) - 1)];
    if (kind == LAYER_LINEAR && (in.h > 1 || in.w > 1))
        kind = LAYER_FLATTEN;
    struct layer_spec *s = random_add(r, kind, from);
    if (kind == LAYER_ADD) {
        int with = test_pick(&r->random, 0, r->n);
        while (memcmp(&r->shapes[with], &in, sizeof in) != 0)
            with = (with + 1) % (r->n + 1);
        snprintf(s->with, sizeof s->with, with ? "v%d" : "input", with);
        r->used[with] = true;
    } else if (kind == LAYER_LINEAR) {
        random_weights(s, r->n, in.c, outs[test_pick(&r->random, 0, 5)]);
    } else if (kind == LAYER_AVGPOOL) {
        const int side = in.h < in.w ? in.h : in.w;
        s->kernel_h = s->kernel_w = test_pick(&r->random, 1, side < 3 ? side : 3);
    } else if (kind == LAYER_CONV) {
        random_weights(s, r->n, in.c, outs[test_pick(&r->random, 0, 5)]);
        s->pad = test_pick(&r->random, 0, 2);
        const int room = (in.h < in.w ? in.h : in.w) + 2 * s->pad;
        s->kernel_h = s->kernel_w = test_pick(&r->random, s->pad + 1, room < 5 ? room : 5);
        s->stride = test_pick(&r->random, 1, 2);
    }
    random_done(r, from);
}

/* Any value may be read by any layer; what nobody read goes flat through linear layers into the
 * sum that is the logits, so that every list is valid. */
static void random_list(struct random_list *r, int length)
{
    for (int i = 0; i < length; i++)
        random_layer(r);
    int sum = 0;
    const int made = r->n;
    for (int v = 1; v <= made; v++) {
        if (r->used[v])
            continue;
        random_add(r, LAYER_FLATTEN, v);
        random_done(r, v);
        const int flat = r->n;
        random_weights(random_add(r, LAYER_LINEAR, flat), r->n, r->shapes[flat].c, 3);
        random_done(r, flat);
        if (sum) {
            struct layer_spec *s = random_add(r, LAYER_ADD, r->n);
            snprintf(s->with, sizeof s->with, "v%d", sum);
            random_done(r, r->n);
        }
        sum = r->n;
    }
}

static void random_graphs_agree_with_the_walk(void **state)
{
    (void)state;
    static const struct net_shape inputs[] = {{1, 3, 4}, {2, 5, 3}, {3, 4, 4}, {18, 2, 3}};
    for (int i = 0; i < 200; i++) {
        struct layer_spec list[64];
        struct random_list r = {.random = (uint64_t)(1000 + 64 * i), .list = list};
        char what[32];
        r.shapes[0] = inputs[i % 4];
        random_list(&r, 1 + i % 11);
        snprintf(what, sizeof what, "graph %d", i);
        check_net(list, r.n, inputs[i % 4], what);
    }
}

static void a_forward_engine_needs_less(void **state)
{
    (void)state;
    struct made m;
    const struct program_net *p = &program_nets[0];
    make(&m, p->list, list_length(p), p->input);
    struct engine *both = engine_of(m.net, &plain_kernels, true);
    struct engine *only = engine_of(m.net, &plain_kernels, false);
    assert_true(engine_packed_bytes(only) < engine_packed_bytes(both));
    assert_true(workspace_estimate_engine(both, 4, false, 1) <
                workspace_estimate_engine(both, 4, true, 1));
    assert_int_equal(workspace_estimate_engine(both, 4, false, 1),
                     workspace_estimate_engine(only, 4, false, 1));
    engine_close(both);
    engine_close(only);
    drop(&m);
}

static void a_plan_tells_what_the_engine_will_need(void **state)
{
    (void)state;
    struct made m;
    struct err e;
    struct engine *plan;
    const struct program_net *p = &program_nets[1];
    const struct engine_options o = {
        .kernels = &plain_kernels, .backward = true, .plan_only = true};
    make(&m, p->list, list_length(p), p->input);
    struct engine *engine = engine_of(m.net, &plain_kernels, true);
    assert_int_equal(engine_open(&plan, m.net, &o, &e), 0);
    assert_null(engine_segment(plan));
    assert_int_equal(segment_bytes(engine_segment(engine)), engine_packed_bytes(plan));
    assert_int_equal(workspace_estimate_engine(plan, 4, true, 2),
                     workspace_estimate_engine(engine, 4, true, 2));
    assert_int_equal(engine_stages(plan), engine_stages(engine));
    engine_close(plan);
    engine_close(engine);
    drop(&m);
}

static void stages_have_names_and_costs(void **state)
{
    (void)state;
    struct made m;
    struct engine_stage s;
    const struct program_net *p = &program_nets[0];
    long long macs[2] = {0};
    size_t packed = 0;
    make(&m, p->list, list_length(p), p->input);
    struct engine *engine = engine_of(m.net, &plain_kernels, true);
    for (int i = 0; i < engine_stages(engine); i++) {
        engine_stage(engine, i, &s);
        macs[s.backward] += s.macs;
        packed += s.packed_bytes;
        assert_true(s.name[0] && s.algorithm[0]);
    }
    assert_int_equal(macs[0], net_macs(m.net));
    assert_int_equal(macs[1], net_macs(m.net));
    assert_true(packed > 0 && packed <= engine_packed_bytes(engine));
    engine_stage(engine, 3, &s);
    assert_string_equal(s.name, "as + add + lrelu");
    assert_string_equal(s.algorithm, "direct");
    assert_true(s.shape.c == 24 && s.shape.h == 8 && s.shape.w == 10 && !s.backward);
    engine_stage(engine, engine_stages(engine) - 1, &s);
    assert_string_equal(s.name, "stem");
    assert_string_equal(s.algorithm, "columns");
    assert_true(s.shape.c == 3 && s.backward);
    engine_close(engine);
    drop(&m);
}

static void a_profile_counts_the_time_of_every_stage(void **state)
{
    (void)state;
    struct made m;
    struct truth t;
    double seconds[64] = {0};
    const struct program_net *p = &program_nets[0];
    make(&m, p->list, list_length(p), p->input);
    truth_open(&t, m.net);
    struct engine *engine = engine_of(m.net, &plain_kernels, true);
    for (int threads = 1; threads <= TEAM_MAX; threads++) {
        struct workspace *w = work(engine, BATCH, true, threads);
        const int n = engine_stages(engine);
        memset(seconds, 0, sizeof seconds);
        workspace_profile(w, seconds);
        net_forward(w, BATCH, t.x);
        net_backward_input(w, BATCH, t.c, t.got_dx);
        for (int i = 0; i < n; i++)
            assert_true(seconds[i] > 0);
        assert_true(seconds[n] == 0);
        const double first = seconds[0];
        workspace_profile(w, NULL);
        net_forward(w, BATCH, t.x);
        assert_true(seconds[0] == first);
        workspace_close(w);
    }
    engine_close(engine);
    truth_close(&t);
    drop(&m);
}

static void engines_of_one_key_share_their_packed_weights(void **state)
{
    (void)state;
    struct made m;
    struct truth t;
    struct err e;
    char directory[] = "/tmp/jemd-unit-XXXXXX";
    const struct program_net *p = &program_nets[0];
    assert_non_null(mkdtemp(directory));
    make(&m, p->list, list_length(p), p->input);
    truth_open(&t, m.net);
    const struct segment_options segments = {
        .directory = directory, .build = "test", .limit_bytes = 64 << 20};
    const struct engine_options o = {
        .kernels = &plain_kernels, .backward = true, .segments = &segments, .key = "digest"};
    struct engine *first, *second, *third;
    assert_int_equal(engine_open(&first, m.net, &o, &e), 0);
    assert_int_equal(engine_open(&second, m.net, &o, &e), 0);
    assert_false(segment_attached(engine_segment(first)));
    assert_true(segment_attached(engine_segment(second)));
    check_close(&t, second, p->name);
    /* another table packs otherwise, also where its name is the same */
    struct kernels other = plain_kernels_split;
    other.name = plain_kernels.name;
    struct engine_options o2 = o;
    o2.kernels = &other;
    assert_int_equal(engine_open(&third, m.net, &o2, &e), 0);
    assert_false(segment_attached(engine_segment(third)));
    engine_close(first);
    engine_close(second);
    engine_close(third);
    assert_int_equal(segment_sweep(&segments, 0, NULL, &e), 0);
    assert_int_equal(rmdir(directory), 0);
    truth_close(&t);
    drop(&m);
}

static void a_pass_allocates_nothing(void **state)
{
    (void)state;
    const struct kernels *all[TABLES_MAX];
    const int n_tables = tables(all);
    struct made m;
    struct truth t;
    const struct program_net *p = &program_nets[0];
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    make(&m, p->list, list_length(p), p->input);
    truth_open(&t, m.net);
    for (int i = 0; i < n_tables; i++) {
        struct engine *engine = engine_of(m.net, all[i], true);
        for (int threads = 1; threads <= 2; threads++) {
            struct workspace *w = work(engine, BATCH, true, threads);
            const long before = allocations_made;
            for (int n = 1; n <= BATCH; n++) {
                net_forward(w, n, t.x);
                net_backward_input(w, n, t.c, t.got_dx);
            }
            assert_int_equal(allocations_made, before);
            workspace_close(w);
        }
        engine_close(engine);
    }
    truth_close(&t);
    drop(&m);
}

static void without_memory_nothing_is_opened(void **state)
{
    (void)state;
    struct made m;
    struct err e;
    const struct program_net *p = &program_nets[0];
    struct engine *engine = NULL;
    struct workspace *w = NULL;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    make(&m, p->list, list_length(p), p->input);
    struct engine *good = engine_of(m.net, &plain_kernels, true);
    const struct engine_options o = {.kernels = &plain_kernels, .backward = true};
    for (size_t limit = 0; limit < 8192; limit = 2 * limit + 1) {
        allocations_largest = limit;
        const int rc[2] = {engine_open(&engine, m.net, &o, &e),
                           workspace_open_engine(&w, good, 2, true, NULL, &e)};
        allocations_largest = SIZE_MAX;
        assert_int_equal(rc[0], -FAIL_NO_MEMORY);
        assert_int_equal(rc[1], -FAIL_NO_MEMORY);
        assert_null(engine);
        assert_null(w);
    }
    engine_close(good);
    drop(&m);
}

static int open_pools(void **state)
{
    struct err e;
    (void)state;
    for (int threads = 2; threads <= TEAM_MAX; threads++)
        if (pool_open(&pools[threads], threads, &e) != 0)
            return -1;
    return 0;
}

static int close_pools(void **state)
{
    (void)state;
    for (int threads = 2; threads <= TEAM_MAX; threads++)
        pool_close(pools[threads]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compiled_networks_agree_with_the_walk),
        cmocka_unit_test(common_networks_have_a_stage_a_convolution),
        cmocka_unit_test(random_graphs_agree_with_the_walk),
        cmocka_unit_test(a_forward_engine_needs_less),
        cmocka_unit_test(a_plan_tells_what_the_engine_will_need),
        cmocka_unit_test(stages_have_names_and_costs),
        cmocka_unit_test(a_profile_counts_the_time_of_every_stage),
        cmocka_unit_test(engines_of_one_key_share_their_packed_weights),
        cmocka_unit_test(a_pass_allocates_nothing),
        cmocka_unit_test(without_memory_nothing_is_opened),
    };
    return cmocka_run_group_tests(tests, open_pools, close_pools);
}
