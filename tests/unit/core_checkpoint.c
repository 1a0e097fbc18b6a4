/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of a training: what is read of them is checked whatever their digest says, a damaged one
 * gives way to an older one, and a run in trouble goes back as far as it takes. */
#include "file/safetensors.h"
#include "learn/trainer_internal.h"
#include "unit/trainer_patches.h"

#include <errno.h>
#include <math.h>

static const char training[] =
    "\"steps\":60,\"batch\":8,\"seed\":5,\"checkpoint_every\":10,"
    "\"chains\":{\"count\":8,\"buffer\":20,\"steps\":3,\"births\":{\"count\":0}},"
    "\"health\":{\"warm_up\":5,\"retries\":6,\"fresh\":{\"every\":0}}";

static void path_of(const char *directory, const char *name, char out[128])
{
    snprintf(out, 128, "%s/%s.safetensors", directory, name);
}

static bool is_there(const char *directory, const char *name)
{
    char path[128];
    path_of(directory, name, path);
    return access(path, F_OK) == 0;
}

/* Opens a run in `directory` and steps until `until` steps are done. */
static void run_to(struct run *r, const char *text, const char *directory, long long until)
{
    struct trainer_step s;
    struct err e;
    open_run(r, text, 0, directory);
    while (trainer_done(r->trainer) < until)
        assert_int_equal(trainer_step(r->trainer, &s, &e), 0);
}

/* What a run comes to; closes it. */
static float *finish(struct run *r, size_t *n)
{
    struct trainer_step s;
    struct err e;
    assert_int_equal(run_until(r, r->recipe.steps, &s, &e), 1);
    float *out = outcome(r, n);
    run_close(r);
    return out;
}

static void same_and_free(float *a, size_t n, float *b, size_t m)
{
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n * sizeof *a);
    free(a);
    free(b);
}

static void copy(const char *from, const char *to)
{
    static char bytes[1 << 20];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    const size_t n = fread(bytes, 1, sizeof bytes, in);
    assert_true(n < sizeof bytes);
    assert_int_equal(fwrite(bytes, 1, n, out), n);
    fclose(in);
    fclose(out);
}

/* ---- what is read is checked ---- */

/* The first of these is one that cannot be; all have a digest that is right. */
static void spoil(struct trainer *t, int which)
{
    struct progress *p = &t->progress;
    switch (which) {
    case 0:
        p->step = -1;
        break;
    case 1:
        p->step = 61;
        break;
    case 2:
        p->step = 11;
        break; /* the optimiser's is another one */
    case 3:
        p->filled = 2000000000;
        break;
    case 4:
        p->filled = -1;
        break;
    case 5:
        p->written = 1;
        break;
    case 6:
        p->attempt = 7;
        break;
    case 7:
        p->attempt = -1;
        break;
    case 8:
        p->scale = (double)NAN;
        break;
    case 9:
        p->scale = 2;
        break;
    case 10:
        p->best_step = 61;
        break;
    case 11:
        p->best = (double)NAN;
        break;
    case 12:
        p->base = -2;
        break;
    case 13:
        p->from_best = 61;
        break;
    case 14:
        p->inexact = 2;
        break;
    case 15:
        p->newborn = (double)INFINITY;
        break;
    case 16:
        p->health.steps = -1;
        break;
    case 17:
        p->health.steps = 0.5;
        break;
    case 18:
        p->health.gap = (double)NAN;
        break;
    case 19:
        p->health.fresh = (double)INFINITY;
        break;
    case 20:
        t->buffer_y[19] = 3;
        break;
    case 21:
        t->buffer_y[0] = 200;
        break;
    default:
        optimiser_reset(t->optimiser);
        break;
    }
}
enum { SPOILT = 23 };

static void what_cannot_be_is_refused_whatever_the_digest(void **state)
{
    char directory[64], path[128], good[128];
    struct run r, other;
    struct trainer_step s;
    struct err e;
    size_t n, m;
    (void)state;
    make_directory(directory);
    path_of(directory, "spoilt", path);
    path_of(directory, "good", good);
    run_to(&r, training, directory, 10);
    assert_int_equal(checkpoint_write(r.trainer, good, &e), 0);
    open_run(&other, training, 0, NULL);
    float *before = outcome(&other, &n);
    for (int i = 0; i < SPOILT; i++) {
        spoil(r.trainer, i);
        assert_int_equal(checkpoint_write(r.trainer, path, &e), 0);
        if (checkpoint_read(other.trainer, path, &e) != -FAIL_BAD_FILE)
            fail_msg("case %d was taken", i);
        assert_non_null(strstr(e.text, "is damaged"));
        assert_int_equal(trainer_done(other.trainer), 0);
        if (checkpoint_read(r.trainer, good, &e) != 0) /* and all is as it was */
            fail_msg("%s", e.text);
    }
    float *after = outcome(&other, &m);
    same_and_free(after, m, before, n); /* a refused one changes nothing */
    assert_int_equal(trainer_step(other.trainer, &s, &e), 0);
    run_close(&other);
    run_close(&r);
    remove_directory(directory);
}

/* A buffer that fills counts its entries in another way. */
static void a_count_of_a_ring_is_checked(void **state)
{
    static const char ring[] =
        "\"steps\":60,\"batch\":8,\"seed\":5,\"checkpoint_every\":10,"
        "\"chains\":{\"count\":8,\"buffer\":20,\"steps\":3,\"write\":\"ring\","
        "\"births\":{\"count\":0}},\"health\":{\"warm_up\":5,\"fresh\":{\"every\":0}}";
    static const long long counts[][2] = {{20, 81}, {21, 21},        {20, 19},
                                          {-1, -1}, {20, INT64_MAX}, {19, 80}};
    char directory[64], path[128];
    struct run r;
    struct err e;
    (void)state;
    make_directory(directory);
    path_of(directory, "spoilt", path);
    run_to(&r, ring, directory, 10);
    assert_int_equal(r.trainer->progress.filled, 20);
    assert_int_equal(r.trainer->progress.written, 80);
    assert_int_equal(checkpoint_write(r.trainer, path, &e), 0);
    assert_int_equal(checkpoint_read(r.trainer, path, &e), 0);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        r.trainer->progress.filled = counts[i][0];
        r.trainer->progress.written = counts[i][1];
        assert_int_equal(checkpoint_write(r.trainer, path, &e), 0);
        assert_int_equal(checkpoint_read(r.trainer, path, &e), -FAIL_BAD_FILE);
    }
    run_close(&r);
    remove_directory(directory);
}

/* Every so many bytes one is changed, or the rest is missing. */
static void bit_rot_and_truncation_are_refused(void **state)
{
    static unsigned char bytes[1 << 20];
    char directory[64], path[128];
    struct run r;
    struct err e;
    (void)state;
    make_directory(directory);
    path_of(directory, "spoilt", path);
    run_to(&r, training, directory, 10);
    assert_int_equal(checkpoint_write(r.trainer, path, &e), 0);
    FILE *f = fopen(path, "rb+");
    assert_non_null(f);
    const size_t size = fread(bytes, 1, sizeof bytes, f);
    assert_true(size > 10000 && size < sizeof bytes);
    for (size_t at = 3; at < size; at += at < 1200 ? 7 : 977) {
        const unsigned char flipped = bytes[at] ^ (unsigned char)(1 << at % 8);
        fseek(f, (long)at, SEEK_SET);
        fwrite(&flipped, 1, 1, f);
        fflush(f);
        const int rc = checkpoint_read(r.trainer, path, &e);
        if (rc != -FAIL_BAD_FILE && !(rc == -FAIL_CONFLICT && at < 1200)) /* the layout's number */
            fail_msg("byte %zu: %d", at, rc);
        fseek(f, (long)at, SEEK_SET);
        fwrite(bytes + at, 1, 1, f);
        fflush(f);
    }
    assert_int_equal(checkpoint_read(r.trainer, path, &e), 0);
    fclose(f);
    for (size_t left = size - 1; left > 0; left = left > 2000 ? left - 1999 : left / 2) {
        assert_int_equal(truncate(path, (off_t)left), 0);
        assert_int_equal(checkpoint_read(r.trainer, path, &e), -FAIL_BAD_FILE);
    }
    run_close(&r);
    remove_directory(directory);
}

/* Writes a checkpoint of `t` again with other metadata. */
static void rewrite(const char *path, const struct tensor_metadata *meta, size_t n_meta)
{
    struct safetensors *s;
    struct err e;
    assert_int_equal(safetensors_open(&s, path, &e), 0);
    const int rc =
        safetensors_write(path, safetensors_at(s, 0), safetensors_count(s), meta, n_meta, &e);
    if (rc != 0)
        fail_msg("%s", e.text);
    safetensors_close(s);
}

/* As checkpoints were before they had a layout: whoever owns them may still want them. */
static void a_checkpoint_of_another_layout_is_refused_and_stays(void **state)
{
    char directory[64], path[128];
    struct run r;
    struct err e;
    struct trainer *t;
    (void)state;
    make_directory(directory);
    path_of(directory, "checkpoint-10", path);
    run_to(&r, training, directory, 11);
    rewrite(path, &(struct tensor_metadata){"jemd.training", r.trainer->identity}, 1);
    const struct trainer_options o = {.recipe = &r.recipe, .data = &r.data, .directory = directory};
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_CONFLICT);
    assert_non_null(strstr(e.text, "another version of jemd"));
    assert_true(is_there(directory, "checkpoint-10"));
    run_close(&r);
    remove_directory(directory);
}

static void going_on_under_other_kernels_is_said(void **state)
{
    char directory[64], path[128], content[DIGEST_HEX];
    struct run r;
    struct err e;
    (void)state;
    make_directory(directory);
    path_of(directory, "checkpoint-10", path);
    run_to(&r, training, directory, 11);
    assert_true(trainer_exact(r.trainer));
    assert_string_equal(trainer_note(r.trainer), "");
    static const char *const names[] = {"progress", "optimiser",  "parameters", "average",
                                        "buffer.x", "buffer.age", "buffer.y"};
    struct tensor_metadata meta[] = {{"jemd.layout", "jemdtrn2"},
                                     {"jemd.training", r.trainer->identity},
                                     {"jemd.compute", "abacus/beads-1"},
                                     {"jemd.content", content}};
    struct safetensors *s;
    assert_int_equal(safetensors_open(&s, path, &e), 0);
    struct digest *d = digest_begin();
    for (int i = 0; i < 3; i++)
        digest_add(d, meta[i].value, strlen(meta[i].value) + 1);
    for (int i = 0; i < 7; i++)
        digest_add(d, safetensors_find(s, names[i])->data,
                   safetensors_find(s, names[i])->size_bytes);
    digest_end(d, content);
    safetensors_close(s);
    rewrite(path, meta, 4);
    run_close(&r);
    for (int i = 0; i < 2; i++) { /* what has once been so stays so */
        open_run(&r, training, 0, directory);
        assert_false(trainer_exact(r.trainer));
        assert_int_equal(strstr(trainer_note(r.trainer), "abacus/beads-1") != NULL, i == 0);
        assert_int_equal(trainer_done(r.trainer), 10 + i);
        struct trainer_step step;
        assert_int_equal(trainer_step(r.trainer, &step, &e), 0);
        assert_int_equal(trainer_save(r.trainer, &e), 0);
        run_close(&r);
    }
    remove_directory(directory);
}

/* ---- a damaged one gives way ---- */

static void an_older_one_stands_in_for_a_damaged_one(void **state)
{
    size_t n, m;
    char directory[64], path[128];
    struct run r;
    (void)state;
    open_run(&r, training, 0, NULL);
    float *whole = finish(&r, &n);
    make_directory(directory);
    run_to(&r, training, directory, 33);
    run_close(&r);
    path_of(directory, "checkpoint-30", path);
    assert_int_equal(truncate(path, 5000), 0);
    path_of(directory, "checkpoint-20", path);
    FILE *f = fopen(path, "rb+");
    fseek(f, -100, SEEK_END);
    fputs("rotten", f);
    fclose(f);
    open_run(&r, training, 0, directory);
    assert_int_equal(trainer_done(r.trainer), 10);
    assert_non_null(strstr(trainer_note(r.trainer), "checkpoint-30.safetensors"));
    assert_non_null(strstr(trainer_note(r.trainer), "checkpoint-20.safetensors"));
    assert_non_null(strstr(trainer_note(r.trainer), "goes on from step 10"));
    assert_true(trainer_exact(r.trainer));
    float *parts = finish(&r, &m);
    same_and_free(parts, m, whole, n);
    assert_true(is_there(directory, "checkpoint-60"));
    remove_directory(directory);
}

/* All are damaged: first the best one, which is there, then nothing. */
static void the_best_one_and_then_the_beginning_stand_in_for_all(void **state)
{
    size_t n, m;
    char directory[64], path[128], name[40];
    struct run r;
    struct trainer *t;
    struct err e;
    (void)state;
    open_run(&r, training, 0, NULL);
    float *whole = finish(&r, &n);
    make_directory(directory);
    run_to(&r, training, directory, 33);
    const long long best = r.trainer->progress.best_step;
    assert_true(best > 0 && is_there(directory, "best"));
    run_close(&r);
    for (int round = 0; round < 2; round++) {
        for (int step = 0; step <= 30; step += 10) {
            snprintf(name, sizeof name, "checkpoint-%d", step);
            path_of(directory, name, path);
            if (access(path, F_OK) == 0)
                assert_int_equal(truncate(path, 700), 0);
        }
        path_of(directory, "best", path);
        if (round == 1)
            assert_int_equal(truncate(path, 700), 0);
        open_run(&r, training, 0, directory);
        assert_int_equal(trainer_done(r.trainer), round == 0 ? best : 0);
        assert_non_null(strstr(trainer_note(r.trainer),
                               round == 0 ? "goes on from the best checkpoint" : "begins anew"));
        assert_int_equal(trainer_exact(r.trainer), round == 1);
        if (round == 0)
            run_close(&r);
    }
    float *again = finish(&r, &m);
    same_and_free(again, m, whole, n);
    remove_directory(directory);
    make_directory(directory); /* whoever only looks makes nothing */
    const struct recipe recipe = test_recipe(patches_model, training);
    const struct source data = patches();
    struct trainer_options o = {
        .recipe = &recipe, .data = &data, .directory = directory, .existing = true};
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_NOT_FOUND);
    assert_false(is_there(directory, "checkpoint-0"));
    remove_directory(directory);
    assert_true(trainer_open(&t, &o, &e) < 0);
    assert_int_not_equal(access(directory, F_OK), 0);
    recipe_fini((struct recipe *)&recipe);
}

/* Killed when damaged ones had been put aside, and before the best one was written again. */
static void the_best_one_is_found_where_there_is_nothing_else(void **state)
{
    char directory[64], path[128], aside[160], name[40];
    struct run r;
    (void)state;
    make_directory(directory);
    run_to(&r, training, directory, 33);
    const long long best = r.trainer->progress.best_step;
    run_close(&r);
    for (int step = 0; step <= 33; step++) {
        snprintf(name, sizeof name, "checkpoint-%d", step);
        path_of(directory, name, path);
        snprintf(aside, sizeof aside, "%s.damaged", path);
        assert_true(rename(path, aside) == 0 || errno == ENOENT);
    }
    open_run(&r, training, 0, directory);
    assert_true(best > 0);
    assert_int_equal(trainer_done(r.trainer), best);
    assert_non_null(strstr(trainer_note(r.trainer), "goes on from the best checkpoint"));
    run_close(&r);
    remove_directory(directory);
}

/* A flipped bit in what says how it is laid out makes it damaged, not another version's. */
static void a_damaged_layout_is_no_other_version(void **state)
{
    char directory[64], path[128];
    struct run r;
    (void)state;
    make_directory(directory);
    run_to(&r, training, directory, 21);
    run_close(&r);
    path_of(directory, "checkpoint-20", path);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    char head[4096];
    const size_t n = fread(head, 1, sizeof head, f);
    char *at = memmem(head, n, "jemdtrn", 7);
    assert_non_null(at);
    at[7] ^= 1;
    rewind(f);
    assert_true(fwrite(head, 1, n, f) == n && fclose(f) == 0);
    open_run(&r, training, 0, directory);
    assert_int_equal(trainer_done(r.trainer), 10);
    assert_non_null(strstr(trainer_note(r.trainer), "checkpoint-20.safetensors is damaged"));
    run_close(&r);
    remove_directory(directory);
}

/* ---- going back ---- */

/* The checkpoint of the step that was just made has weights that are no numbers; the run goes on
 * with good ones. */
static void poison(struct run *r)
{
    struct err e;
    float *first = &r->trainer->parameters.values[0], good = *first;
    *first = NAN;
    assert_int_equal(trainer_save(r->trainer, &e), 0);
    r->trainer->saved = trainer_done(r->trainer);
    *first = good;
}

/* To step 34, where trouble is; checkpoints 20 and 30 are poisoned by `how`. */
static void run_into_trouble(struct run *r, const char *directory, void (*how)(struct run *))
{
    struct trainer_step s;
    struct err e;
    run_to(r, training, directory, 20);
    how(r);
    assert_int_equal(run_until(r, 30, &s, &e), 0);
    how(r);
    assert_int_equal(run_until(r, 34, &s, &e), 0);
    r->trainer->parameters.values[0] = NAN;
}

static void a_run_whose_last_two_checkpoints_are_bad_goes_back_farther(void **state)
{
    static const long long expected[] = {20, 10};
    char directory[64];
    struct run r;
    struct trainer_step s;
    struct err e;
    size_t n;
    (void)state;
    make_directory(directory);
    run_into_trouble(&r, directory, poison);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
        assert_int_equal(s.trouble, HEALTH_NOT_FINITE);
        assert_int_equal(s.rollbacks, i + 1);
        assert_int_equal(trainer_done(r.trainer), expected[i]);
    }
    assert_int_equal(run_until(&r, 60, &s, &e), 1);
    assert_int_equal(s.rollbacks, 2);
    assert_true(isfinite(s.loss));
    free(outcome(&r, &n));
    run_close(&r);
    remove_directory(directory);
}

/* The averaged gap was beyond half its limit of 10. */
static void strain(struct run *r)
{
    struct err e;
    const double gap = r->trainer->progress.health.gap;
    r->trainer->progress.health.gap = 6;
    assert_int_equal(trainer_save(r->trainer, &e), 0);
    r->trainer->saved = trainer_done(r->trainer);
    r->trainer->progress.health.gap = gap;
}

static void a_checkpoint_made_near_a_limit_is_no_target(void **state)
{
    char directory[64];
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    make_directory(directory);
    run_into_trouble(&r, directory, strain);
    assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
    assert_int_equal(trainer_done(r.trainer), 10);
    assert_false(is_there(directory, "checkpoint-20"));
    assert_false(is_there(directory, "checkpoint-30"));
    run_close(&r);
    remove_directory(directory);
}

/* Trouble at every step after the last checkpoint: each kept one, the best one, the beginning. */
static void trouble_that_does_not_end_goes_to_the_beginning_and_to_a_verdict(void **state)
{
    static const char kept[] =
        "\"steps\":90,\"batch\":8,\"seed\":5,\"checkpoint_every\":10,"
        "\"chains\":{\"count\":8,\"buffer\":20,\"steps\":3,\"births\":{\"count\":0}},"
        "\"health\":{\"warm_up\":5,\"retries\":7,\"fresh\":{\"every\":0}}";
    static const long long expected[] = {60, 50, 40, 20, 0, 0, 0};
    char directory[64];
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    make_directory(directory);
    open_run(&r, kept, 0, directory);
    while (trainer_done(r.trainer) < 75) {
        assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
        if (trainer_done(r.trainer) == 19) /* what comes next is better, and nothing later */
            r.trainer->progress.best = -1e9;
        if (trainer_done(r.trainer) == 20)
            r.trainer->progress.best = 2;
    }
    for (int i = 0; i < 7; i++) {
        r.trainer->parameters.values[0] = NAN;
        assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
        assert_int_equal(trainer_done(r.trainer), expected[i]);
        assert_int_equal(strstr(trainer_note(r.trainer), "best checkpoint") != NULL, i == 3);
        assert_int_equal(strstr(trainer_note(r.trainer), "begins anew") != NULL, i > 3);
        assert_true(fabs(r.trainer->progress.scale - ldexp(1, -i - 1)) < 1e-12);
        for (int step = 0; step < 2; step++)
            assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
        assert_int_equal(s.trouble, HEALTH_GOOD);
    }
    r.trainer->parameters.values[0] = NAN;
    assert_int_equal(trainer_step(r.trainer, &s, &e), -FAIL_UNSUPPORTED);
    run_close(&r);
    remove_directory(directory);
}

/* Killed after the target was written again, before what is newer was removed; and before all that. */
static void a_rollback_that_was_cut_off_comes_to_the_same(void **state)
{
    char directory[64], before[2][128], saved[2][128], half[128];
    size_t n, m;
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    make_directory(directory);
    run_into_trouble(&r, directory, poison);
    for (int i = 0; i < 2; i++) {
        path_of(directory, i ? "checkpoint-30" : "checkpoint-20", before[i]);
        path_of(directory, i ? "kept-30" : "kept-20", saved[i]);
        copy(before[i], saved[i]);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
    assert_int_equal(trainer_done(r.trainer), 10);
    run_close(&r);
    for (int i = 0; i < 2; i++) /* what the rollback to 10 had removed, 20 with one rollback less */
        copy(saved[i], before[i]);
    snprintf(half, sizeof half, "%s/.safetensors-1-2-3", directory);
    copy(saved[0], half);
    open_run(&r, training, 0, directory);
    assert_int_equal(trainer_done(r.trainer), 10);
    assert_int_equal(trainer_rollbacks(r.trainer), 2);
    assert_false(is_there(directory, "checkpoint-30"));
    assert_int_not_equal(access(half, F_OK), 0);
    float *cut = finish(&r, &n);
    remove_directory(directory);
    make_directory(directory);
    run_into_trouble(&r, directory, poison);
    float *whole = finish(&r, &m);
    same_and_free(cut, n, whole, m);
    remove_directory(directory);
}

/* ---- the best one of a classifier ---- */

static void a_classifier_has_a_best_checkpoint(void **state)
{
    static const char classifier[] =
        "\"steps\":60,\"batch\":8,\"checkpoint_every\":10,\"loss\":{\"log_pxy\":0},"
        "\"optimiser\":{\"rate\":0.003,\"decay_last\":0},\"health\":{\"warm_up\":15}";
    char directory[64];
    struct run r;
    struct trainer_step s;
    struct err e;
    long long best = 0;
    double quality = -1e9;
    (void)state;
    make_directory(directory);
    open_run(&r, classifier, 0, directory);
    while (trainer_step(r.trainer, &s, &e) == 0) {
        const double q = s.health.accuracy - s.health.cross_entropy;
        if (s.step % 10 == 0 && s.step >= 15 && q >= quality) {
            quality = q;
            best = s.step;
        }
        assert_int_equal(s.best, best);
    }
    assert_true(best > 0);
    assert_int_equal(trainer_load_best(r.trainer, &e), 0);
    assert_int_equal(trainer_done(r.trainer), best);
    run_close(&r);
    remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_is_refused_whatever_the_digest),
        cmocka_unit_test(a_count_of_a_ring_is_checked),
        cmocka_unit_test(bit_rot_and_truncation_are_refused),
        cmocka_unit_test(a_checkpoint_of_another_layout_is_refused_and_stays),
        cmocka_unit_test(going_on_under_other_kernels_is_said),
        cmocka_unit_test(an_older_one_stands_in_for_a_damaged_one),
        cmocka_unit_test(the_best_one_and_then_the_beginning_stand_in_for_all),
        cmocka_unit_test(the_best_one_is_found_where_there_is_nothing_else),
        cmocka_unit_test(a_damaged_layout_is_no_other_version),
        cmocka_unit_test(a_run_whose_last_two_checkpoints_are_bad_goes_back_farther),
        cmocka_unit_test(a_checkpoint_made_near_a_limit_is_no_target),
        cmocka_unit_test(trouble_that_does_not_end_goes_to_the_beginning_and_to_a_verdict),
        cmocka_unit_test(a_rollback_that_was_cut_off_comes_to_the_same),
        cmocka_unit_test(a_classifier_has_a_best_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
