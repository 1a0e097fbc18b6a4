/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes: json_parse refuses them or gives a value whose text parses to the same text, and the
 * getters cope with whatever is in it. */
#include "file/clip.h"
#include "file/json.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_members(const json_t *value)
{
    static const char *const words[] = {"sgld", "gibbs"};
    struct json_reader r;
    struct err e;
    const json_t *any = NULL, *array = NULL, *object = NULL;
    const char *text = NULL;
    long long integer = 0;
    double number = 0;
    bool flag = false;
    int word = 0;
    if (json_reader_init(&r, value, "/fuzz~0", &e)) {
        invariant(e.code == FAIL_WRONG_TYPE && clip_is_utf8(e.text));
        return;
    }
    json_get(&r, "a", &any);
    if (json_get_int(&r, "b", -10, 10, &integer, &e) < 0)
        invariant(clip_is_utf8(e.text) && integer == 0);
    if (json_get_number(&r, "c", -1, 1, &number, &e) > 0)
        invariant(fabs(number) <= 1);
    json_get_bool(&r, "d", &flag, &e);
    if (json_get_string(&r, "e", 8, &text, &e) > 0)
        invariant(strlen(text) <= 8);
    if (json_get_word(&r, "f", words, 2, &word, &e) < 0)
        invariant(clip_is_utf8(e.text));
    if (json_get_array(&r, "g", 4, &array, &e) > 0)
        invariant(json_array_size(array) <= 4);
    if (json_get_object(&r, "h", &object, &e) > 0)
        read_members(object);
    if (json_reader_finish(&r, &e))
        invariant(e.code == FAIL_UNKNOWN_FIELD && clip_is_utf8(e.text) && clip_is_utf8(e.pointer));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *value = NULL, *again = NULL;
    struct err e;
    if (json_parse((const char *)data, size, &value, &e)) {
        invariant(!value && e.text[0] && clip_is_utf8(e.text));
        return 0;
    }
    size_t length = 0;
    char *text = json_text(value, &length);
    invariant(text && strlen(text) == length);
    invariant(json_parse(text, length, &again, &e) == 0);
    char *same = json_text(again, NULL);
    invariant(same && strcmp(same, text) == 0);
    read_members(value);
    free(same);
    free(text);
    json_decref(again);
    json_decref(value);
    return 0;
}
