/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a description: its energy is refused with a sentence, or makes a head that works. */
#include "ebm/description.h"
#include "ebm/gwg.h"
#include "file/clip.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ELEMENTS_MAX = 1 << 22 };

static const float *find(void *ctx, const char *name, const int *shape, int n_dims, struct err *e)
{
    size_t n = 1;
    for (int i = 0; i < n_dims; i++) {
        invariant(shape[i] >= 1);
        n = n > ELEMENTS_MAX ? n : n * (size_t)shape[i];
    }
    if (n <= ELEMENTS_MAX)
        return ctx;
    fail(e, FAIL_BAD_MODEL, "\"%s\" is too large", name);
    return NULL;
}

static void use(const struct joint *j, const struct attributes *a)
{
    float *phi = calloc((size_t)joint_features(j), sizeof *phi);
    float *out = calloc((size_t)a->n_logits + JOINT_EVIDENCE, sizeof *out);
    float *u = calloc(gwg_uniforms(a->n), sizeof *u);
    uint16_t *y = calloc((size_t)a->n, sizeof *y);
    invariant(phi && out && u && y);
    gwg_start(j, NULL, u, y);
    gwg_run(j, phi, NULL, 1, u, y);
    for (int k = 0; k < a->n; k++)
        invariant(y[k] < a->list[k].n_values);
    joint_read(j, phi, NULL, out);
    invariant(joint_labels(j, NULL) == 0 || isfinite(out[a->n_logits + JOINT_LOG_PX]));
    free(phi);
    free(out);
    free(u);
    free(y);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float *zeros;
    struct description d;
    struct joint *j = NULL;
    struct err e = {0};
    char *text = malloc(size + 1);
    zeros = zeros ? zeros : calloc(ELEMENTS_MAX, sizeof *zeros);
    invariant(text && zeros);
    memcpy(text, data, size);
    text[size] = '\0';
    const int rc = description_parse(&d, text, "fuzz", &e);
    free(text);
    if (rc != 0) {
        invariant(e.text[0] && clip_is_utf8(e.text));
        return 0;
    }
    const struct net_weights source = {.ctx = zeros, .find = find};
    const int features = joint_spec_features(&d.energy, &d.attributes);
    if (d.energy.kind != JOINT_NONE &&
        joint_open(&j, &d.energy, features, &d.attributes, &source, &e) != 0)
        invariant(e.text[0] && clip_is_utf8(e.text));
    if (j)
        use(j, &d.attributes);
    joint_close(j);
    description_fini(&d);
    return 0;
}
