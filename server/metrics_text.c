/* SPDX-License-Identifier: Apache-2.0 */
#include "server/metrics_text.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* Bytes of the UTF-8 sequence at s (Unicode 15, table 3-7), or 0 when it is none. */
static int utf8_length(const unsigned char *s)
{
    static const struct {
        unsigned char first_low, first_high, second_low, second_high;
        int length;
    } forms[] = {
        {0x01, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        if (s[0] < forms[f].first_low || s[0] > forms[f].first_high)
            continue;
        const int length = forms[f].length;
        if (length > 1 && (s[1] < forms[f].second_low || s[1] > forms[f].second_high))
            return 0;
        for (int i = 2; i < length; i++)
            if (s[i] < 0x80 || s[i] > 0xbf)
                return 0;
        return length;
    }
    return 0;
}

static void write_value(FILE *out, const char *value)
{
    for (const unsigned char *s = (const unsigned char *)value; *s;) {
        const int length = utf8_length(s);
        if (*s == '\\' || *s == '"')
            fprintf(out, "\\%c", *s);
        else if (*s == '\n')
            fputs("\\n", out);
        else if (length == 0)
            fputc('?', out);
        else
            fwrite(s, 1, (size_t)length, out);
        s += length ? length : 1;
    }
}

void metrics_text_labels(FILE *out, const char *const *names, const char *const *values, int n)
{
    for (int i = 0; i < n; i++) {
        fprintf(out, "%c%s=\"", i ? ',' : '{', names[i]);
        write_value(out, values[i]);
        fputc('"', out);
    }
    if (n)
        fputc('}', out);
}

const char *metrics_text_number(double value, char out[32])
{
    if (isnan(value))
        return "NaN";
    if (isinf(value))
        return value > 0 ? "+Inf" : "-Inf";
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, value);
        if (strtod(out, NULL) == value)
            break;
    }
    return out;
}
