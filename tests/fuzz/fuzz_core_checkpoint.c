/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a training's checkpoint, and any record, labels and state of the optimiser with a digest
 * that is right: refused, or the run goes on from it, whatever it then comes to. The first byte says
 * which, and whether the buffer is a ring.
 */
#include "fuzz_directory.h"
#include "learn/trainer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char recipe_text[] =
    "{\"model\":{\"format\":1,\"name\":\"m\",\"version\":\"1\",\"family\":\"jem\","
    "\"input\":{\"channels\":1,\"height\":4,\"width\":4,\"range\":[-1,1]},"
    "\"layers\":[{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"w\",\"in\":16,\"out\":3}"
    "],"
    "\"attributes\":[{\"name\":\"a\",\"values\":[\"0\",\"1\",\"2\"]}],"
    "\"sampler\":{\"steps\":2,\"steps_buffer\":2,\"clamp\":[-1,1]}},"
    "\"training\":{\"steps\":40,\"batch\":2,\"checkpoint_every\":10,\"export_buffer\":4,"
    "\"chains\":{\"count\":2,\"buffer\":5,\"steps\":2,\"labels\":\"gibbs\",\"write\":\"%s\","
    "\"births\":{\"every\":2,\"count\":1,\"steps\":2}},"
    "\"health\":{\"warm_up\":3,\"retries\":5,\"fresh\":{\"every\":3,\"count\":2,\"steps\":2}}}}";

struct lab {
    struct recipe recipe;
    struct source source;
    struct trainer *trainer;
    char good[128], bad[128];
};

static struct lab benches[2];

static void clean_up(void)
{
    for (int i = 0; i < 2; i++) {
        if (!benches[i].trainer)
            continue;
        unlink(benches[i].good);
        unlink(benches[i].bad);
    }
}

static void must(int rc, const struct err *e)
{
    if (rc != 0)
        fprintf(stderr, "%s\n", e->text);
    invariant(rc == 0);
}

static void open_lab(struct lab *l, const char *write)
{
    static unsigned char images[8 * 16], labels[8] = {0, 1, 2, 0, 1, 2, 0, 1};
    char text[2048];
    struct trainer_step s;
    struct err e;
    const int n = snprintf(text, sizeof text, recipe_text, write);
    invariant(recipe_parse(&l->recipe, text, (size_t)n, "fuzz", &e) == 0);
    l->source = (struct source){.n = 8,
                                .height = 4,
                                .width = 4,
                                .channels = 1,
                                .columns = 1,
                                .images = images,
                                .labels = labels,
                                .sha256 = "fuzz"};
    const struct trainer_options o = {.recipe = &l->recipe, .data = &l->source};
    invariant(trainer_open(&l->trainer, &o, &e) == 0);
    for (int i = 0; i < 4; i++)
        invariant(trainer_step(l->trainer, &s, &e) == 0);
    snprintf(l->good, sizeof l->good, "%s/good-%s", fuzz_directory(), write);
    snprintf(l->bad, sizeof l->bad, "%s/bad-%s", fuzz_directory(), write);
    invariant(checkpoint_write(l->trainer, l->good, &e) == 0);
}

static size_t spread(void *to, size_t room, const uint8_t **data, size_t *size)
{
    const size_t n = *size < room ? *size : room;
    unsigned char *bytes = to;
    for (size_t i = 0; i < n; i++)
        bytes[i] ^= (*data)[i]; /* zeros leave what is good */
    *data += n;
    *size -= n;
    return n;
}

/* The trainer's own state, spoilt and written with its digest. */
static void write_spoilt(struct trainer *t, const char *path, const uint8_t *data, size_t size)
{
    const size_t entries = (size_t)t->recipe->chains.buffer,
                 bytes = optimiser_state_bytes(t->optimiser);
    void *state = malloc(bytes);
    struct err e;
    invariant(state != NULL);
    spread(&t->progress, sizeof t->progress, &data, &size);
    spread(t->buffer_y, entries, &data, &size);
    optimiser_save(t->optimiser, state);
    spread(state, bytes, &data, &size);
    if (optimiser_load(t->optimiser, state, bytes, NULL) != 0)
        optimiser_reset(t->optimiser);
    spread(t->buffer_age, entries * sizeof *t->buffer_age, &data, &size);
    spread(t->parameters.values, t->parameters.n * sizeof(float), &data, &size);
    spread(t->buffer_x, entries * trainer_elements(t) * sizeof(float), &data, &size);
    free(state);
    must(checkpoint_write(t, path, &e), &e);
}

static void write_raw(const char *path, const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    invariant(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct trainer_step s;
    struct err e;
    if (size == 0)
        return 0;
    struct lab *l = &benches[data[0] & 1];
    fuzz_directory(); /* what it does at the end comes behind clean_up */
    if (!benches[0].trainer && !benches[1].trainer)
        atexit(clean_up);
    if (!l->trainer)
        open_lab(l, data[0] & 1 ? "ring" : "in_place");
    if (data[0] & 2)
        write_raw(l->bad, data + 1, size - 1);
    else
        write_spoilt(l->trainer, l->bad, data + 1, size - 1);
    must(checkpoint_read(l->trainer, l->good, &e), &e);
    if (checkpoint_read(l->trainer, l->bad, &e) != 0) {
        invariant((e.code == FAIL_BAD_FILE || e.code == FAIL_CONFLICT) && e.text[0]);
        invariant(trainer_done(l->trainer) == 4);
    } else {
        walkers_refresh(l->trainer->walkers);
    }
    for (int i = 0, rc = 0; i < 3 && rc == 0; i++) {
        rc = trainer_step(l->trainer, &s, &e);
        invariant(rc == 0 || rc == 1 || rc == -FAIL_UNSUPPORTED);
    }
    must(checkpoint_read(l->trainer, l->good, &e), &e);
    return 0;
}
