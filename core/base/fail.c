/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fail.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"none",
#define FAIL_NAME(id, name) #name,
                                    FAIL_LIST(FAIL_NAME)
#undef FAIL_NAME
};

const char *fail_name(enum fail_code code)
{
    return (unsigned)code < FAIL_COUNT ? names[code] : "internal";
}

__attribute__((format(printf, 3, 0))) static void set(struct err *e, enum fail_code code,
                                                      const char *fmt, va_list ap)
{
    e->code = code;
    e->pointer[0] = e->did_you_mean[0] = '\0';
    e->limit = 0;
    e->has_limit = 0;
    e->retry_s = 0;
    vsnprintf(e->text, sizeof e->text, fmt, ap);
}

int fail(struct err *e, enum fail_code code, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        set(e, code, fmt, ap);
        va_end(ap);
    }
    return -(int)code;
}

int fail_errno(struct err *e, enum fail_code code, const char *fmt, ...)
{
    const int saved = errno;
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        set(e, code, fmt, ap);
        va_end(ap);
        char why[96];
        const size_t used = strlen(e->text);
        snprintf(e->text + used, sizeof e->text - used, " (%s)",
                 strerror_r(saved, why, sizeof why));
    }
    return -(int)code;
}

int fail_at(struct err *e, const char *pointer)
{
    if (!e)
        return -1;
    snprintf(e->pointer, sizeof e->pointer, "%s", pointer);
    return -(int)e->code;
}

int fail_limit(struct err *e, long long limit)
{
    if (!e)
        return -1;
    e->limit = limit;
    e->has_limit = 1;
    return -(int)e->code;
}

int fail_retry(struct err *e, int seconds)
{
    if (!e)
        return -1;
    e->retry_s = seconds;
    return -(int)e->code;
}

int fail_suggest(struct err *e, const char *name)
{
    if (!e)
        return -1;
    if (name)
        snprintf(e->did_you_mean, sizeof e->did_you_mean, "%s", name);
    return -(int)e->code;
}

enum { WORD_MAX = 64 };

static int min3(int a, int b, int c)
{
    const int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Optimal string alignment distance; words longer than WORD_MAX are far from everything. */
static int distance(const char *a, const char *b)
{
    const int n = (int)strlen(a), m = (int)strlen(b);
    int row[3][WORD_MAX + 1];
    if (n > WORD_MAX || m > WORD_MAX)
        return INT_MAX;
    for (int j = 0; j <= m; j++)
        row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            const int cost = a[i - 1] != b[j - 1];
            now[j] = min3(up[j] + 1, now[j - 1] + 1, up[j - 1] + cost);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                up2[j - 2] + 1 < now[j])
                now[j] = up2[j - 2] + 1;
        }
    }
    return row[n % 3][m];
}

const char *fail_nearest(const char *word, const char *const *list, int n)
{
    const int length = (int)strlen(word);
    int best = length / 3 > 1 ? length / 3 : 1;
    const char *found = NULL;
    for (int i = 0; i < n; i++) {
        const int d = distance(word, list[i]);
        if (d < best || (d == best && !found)) {
            best = d;
            found = list[i];
        }
    }
    return found;
}

_Noreturn void fail_invariant(const char *expr, const char *file, int line, const char *func)
{
    fprintf(stderr, "jemd: broken invariant: %s in %s (%s:%d)\n", expr, func, file, line);
    abort();
}
