/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes: recipe_parse refuses them with a sentence, or gives a recipe whose settings are in
 * range. */
#include "file/clip.h"
#include "learn/recipe.h"

#include <math.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct recipe r;
    struct err e;
    if (recipe_parse(&r, (const char *)data, size, "fuzz", &e) != 0) {
        invariant(e.text[0] && clip_is_utf8(e.text));
        return 0;
    }
    invariant(r.steps >= 1 && r.batch + r.labelled_batch >= 1 && r.checkpoint_every >= 1 &&
              r.chains.births_every >= 1);
    invariant(r.chains.count + r.chains.paired <= r.chains.buffer ||
              r.chains.count + r.chains.paired == 0);
    invariant(!r.chains.slots || (r.model.attributes.n == 1 && r.chains.labels != LABELS_DATA));
    for (long long step = 0; step < r.steps; step += r.steps / 7 + 1)
        invariant(isfinite(recipe_rate(&r, step, 1)) && recipe_rate(&r, step, 1) >= 0);
    recipe_fini(&r);
    return 0;
}
