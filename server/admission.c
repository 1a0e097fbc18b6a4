/* SPDX-License-Identifier: Apache-2.0 */
#include "server/admission.h"

#include <math.h>

/* In overload the limit of time is a TIGHTth of itself, for CALM_NS after the last time that more
 * than one in FEW was refused. */
enum { TIGHT = 25, FEW = 8, CALM_NS = 1000000000, RETRY_SECONDS_MAX = 60 };

static int ahead(const struct admission *a)
{
    return a->waiting + a->places;
}

static double fading(const struct admission *a, int64_t now)
{
    return now > a->counted_ns ? exp((double)(a->counted_ns - now) * 1e-9) : 1;
}

static void fade(struct admission *a, int64_t now)
{
    const double left = fading(a, now);
    a->accepted *= left;
    a->refused *= left;
    a->counted_ns = now > a->counted_ns ? now : a->counted_ns;
}

static double computing_seconds(const struct admission *a, int64_t now)
{
    const double left = a->computing * a->image_seconds - (double)(now - a->begun_ns) * 1e-9;
    return left > 0 ? left : 0;
}

double admission_seconds(const struct admission *a, int64_t now)
{
    return ahead(a) * a->image_seconds + computing_seconds(a, now);
}

static double limit_seconds(const struct admission *a, int64_t now)
{
    const double calm = a->queue_ms * 1e-3;
    return now < a->tight_until_ns ? calm / TIGHT : calm;
}

int admission_check_room(const struct admission *a, int images, struct err *e)
{
    if (ahead(a) == 0 || images <= a->queue_max - ahead(a))
        return 0;
    fail(e, FAIL_OVERLOADED, "%d images are waiting already, the queue holds %d", ahead(a),
         a->queue_max);
    fail_limit(e, a->queue_max);
    return -FAIL_OVERLOADED;
}

int admission_check(const struct admission *a, int images, int64_t now, struct err *e)
{
    const double seconds = admission_seconds(a, now);
    const int rc = admission_check_room(a, images, e);
    if (rc != 0)
        return rc;
    if (a->queue_ms == 0 || ahead(a) < a->least || seconds <= limit_seconds(a, now))
        return 0;
    return fail(e, FAIL_OVERLOADED,
                "what waits takes %.0f ms already, and more is asked for than can be computed",
                seconds * 1e3);
}

void admission_accept(struct admission *a, int64_t now)
{
    fade(a, now);
    a->accepted++;
}

void admission_refuse(struct admission *a, int64_t now)
{
    fade(a, now);
    a->refused++;
    if (now >= a->tight_until_ns || a->refused * FEW > a->accepted + a->refused)
        a->tight_until_ns = now + CALM_NS;
}

void admission_begin(struct admission *a, int images, int64_t now)
{
    a->computing = images;
    a->begun_ns = now;
}

void admission_learn(struct admission *a, int images, double seconds)
{
    const double each = seconds / images;
    a->image_seconds = a->image_seconds > 0 ? 0.9 * a->image_seconds + 0.1 * each : each;
}

double admission_retry_seconds(const struct admission *a, int64_t now)
{
    const double again = a->refused * fading(a, now) * a->image_seconds;
    return fmin(admission_seconds(a, now) + again, RETRY_SECONDS_MAX);
}
