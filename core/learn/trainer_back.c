/* SPDX-License-Identifier: Apache-2.0 */
/* How a run heals itself: it goes back, farther every time that it comes to the same trouble. */
#include "learn/trainer_internal.h"

/* Loads what to go back to, or begins anew. */
static int go_back(struct trainer *t, long long attempt, struct err *e)
{
    const long long from_best = t->progress.from_best;
    const int rc = checkpoint_back(t, e);
    t->progress.from_best = from_best;
    if (rc == CHECKPOINT_BEST) {
        t->progress.from_best = t->progress.step;
        trainer_note_add(t, "went back to the best checkpoint");
    } else if (rc == CHECKPOINT_NONE) {
        trainer_begin(t, attempt);
        t->progress.from_best = from_best;
        trainer_note_add(t, "there is nothing older to go back to: begins anew");
    }
    return rc < 0 ? rc : 0;
}

int trainer_roll_back(struct trainer *t, enum health_state why, struct err *e)
{
    const struct recipe_health *h = &t->recipe->health;
    const struct progress was = t->progress;
    t->note[0] = 0;
    if (was.attempt >= h->retries || !t->directory[0])
        return fail(
            e, FAIL_UNSUPPORTED,
            "given up at step %lld after %lld rollbacks: %s. The learning rate was %.3g; try a "
            "lower one, more steps a visit, or a larger penalty",
            was.step, was.attempt, health_texts[why], t->recipe->rate * was.scale);
    const int rc = go_back(t, was.attempt + 1, e);
    if (rc < 0)
        return rc;
    struct progress *p = &t->progress;
    p->attempt = was.attempt + 1;
    p->scale = was.scale * h->slower;
    p->best = was.best;
    p->best_step = was.best_step;
    p->base = p->step;
    p->inexact |= was.inexact;
    t->saved = p->step;
    if (t->walkers)
        walkers_refresh(t->walkers);
    return checkpoint_save(t, e);
}
