/* SPDX-License-Identifier: Apache-2.0 */
#include "server/eval_input.h"

#include <stdatomic.h>

bool eval_watch_cancelled(const struct eval_watch *w)
{
    return w && w->cancel && atomic_load(w->cancel);
}

void eval_watch_tell(const struct eval_watch *w, const char *what, size_t done, size_t of)
{
    if (w && w->progress)
        w->progress(w->ctx, what, done, of);
}

int eval_watch_check(const struct eval_watch *w, struct err *e)
{
    return eval_watch_cancelled(w) ? fail(e, FAIL_SHUTTING_DOWN, "the evaluation was cancelled")
                                   : 0;
}

size_t eval_input_scratch(const struct eval_input *in)
{
    return (size_t)in->data->height * (size_t)in->data->width * (size_t)in->model->d.input.c;
}

int eval_input_row(const struct eval_input *in, size_t i, unsigned char *scratch, float *x,
                   struct err *e)
{
    const struct dataset *d = in->data;
    const struct net_shape to = in->model->d.input;
    const size_t area = (size_t)d->height * (size_t)d->width;
    struct image made = {0};
    const struct image native = {.width = (uint32_t)d->width,
                                 .height = (uint32_t)d->height,
                                 .channels = to.c,
                                 .data = scratch};
    image_convert(scratch, to.c, d->images + i * area * (size_t)d->channels, d->channels, area);
    if (d->height == to.h && d->width == to.w) {
        model_from_pixels(in->model, scratch, x);
        return 0;
    }
    const int rc = image_resize(&made, &native, (uint32_t)to.w, (uint32_t)to.h, in->resize, e);
    if (rc == 0)
        model_from_pixels(in->model, made.data, x);
    image_fini(&made);
    return rc;
}
