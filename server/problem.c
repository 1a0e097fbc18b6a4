/* SPDX-License-Identifier: Apache-2.0 */
#include "server/problem.h"

#include "file/clip.h"
#include "file/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct problem {
    int status;
    const char *title, *help;
};

static const struct problem problems[FAIL_COUNT] = {
    [FAIL_BAD_REQUEST] = {400, "Malformed request",
                          "The request line, a header, the path or the query breaks the rules of "
                          "HTTP or of this API. The detail says which; correct it and send again."},
    [FAIL_MALFORMED_JSON] = {400, "Malformed JSON",
                             "The body is not JSON. The detail gives line and column."},
    [FAIL_DUPLICATE_KEY] = {400, "Duplicate key in JSON",
                            "An object names the same member twice; keep one of them."},
    [FAIL_TOO_DEEP] = {400, "JSON nested too deeply",
                       "Arrays and objects may be nested 32 levels deep."},
    [FAIL_UNKNOWN_FIELD] = {400, "Unknown field",
                            "A member or query parameter is not part of the API. Look at "
                            "did_you_mean and /openapi.json."},
    [FAIL_MISSING_FIELD] = {400, "Missing field", "A required member is absent; add it."},
    [FAIL_WRONG_TYPE] = {400, "Wrong type", "A member has another JSON type than the API wants."},
    [FAIL_OUT_OF_RANGE] = {422, "Out of range",
                           "A value is outside what the API or this daemon's settings allow; "
                           "errors[].limit gives the bound, /v1/capabilities all limits."},
    [FAIL_BAD_BASE64] = {400, "Bad base64",
                         "Images inside JSON are base64 with the standard alphabet and padding."},
    [FAIL_BAD_IMAGE] = {422, "Unreadable image",
                        "The bytes are not a complete, valid PNG or JPEG. The detail says what is "
                        "wrong with them."},
    [FAIL_IMAGE_TOO_LARGE] = {422, "Image too large",
                              "The image has more pixels, or would take more memory to decode, "
                              "than this daemon accepts; scale it down first."},
    [FAIL_IMAGE_SIZE_MISMATCH] = {422, "Image size mismatch",
                                  "The image has another size than the model's input and "
                                  "resize=reject (or a raw tensor) forbids scaling it."},
    [FAIL_UNKNOWN_ATTRIBUTE] = {422, "Unknown attribute",
                                "The model has no attribute of this name; see did_you_mean and "
                                "GET /v1/models/{model}."},
    [FAIL_UNKNOWN_VALUE] = {422, "Unknown value",
                            "The attribute has no such value; see did_you_mean and GET "
                            "/v1/models/{model}."},
    [FAIL_EMPTY_VALUE_SET] = {422, "Empty value set",
                              "A condition leaves an attribute without any allowed value. Allow at "
                              "least one, or leave the attribute out to make it free."},
    [FAIL_UNSUPPORTED] = {422, "Not supported",
                          "The request is well-formed, but this model or this version of the "
                          "daemon cannot do it; /v1/capabilities lists what it can."},
    [FAIL_BAD_RECIPE] = {422, "Bad recipe",
                         "The recipe of a training job does not describe a network that can be "
                         "trained. The detail says what is wrong with which part."},
    [FAIL_UNAUTHORIZED] = {401, "Unauthorized",
                           "Send a valid key as \"Authorization: Bearer …\" or X-API-Key."},
    [FAIL_FORBIDDEN] = {403, "Forbidden",
                        "The key is valid but lacks the scope this needs, or the daemon's "
                        "settings forbid it to everybody."},
    [FAIL_NOT_FOUND] = {404, "Not found",
                        "There is no such route, model, job or artifact. Paths are listed in "
                        "/openapi.json."},
    [FAIL_METHOD_NOT_ALLOWED] = {405, "Method not allowed",
                                 "The path exists but not with this method; see the Allow header."},
    [FAIL_NOT_ACCEPTABLE] = {406, "Not acceptable",
                             "The Accept header excludes every representation this route has."},
    [FAIL_REQUEST_TIMEOUT] = {408, "Request timeout",
                              "The request did not arrive completely in time."},
    [FAIL_CONFLICT] = {409, "Conflict",
                       "The request contradicts the present state of the resource; fetch it and "
                       "decide again."},
    [FAIL_IDEMPOTENCY_MISMATCH] = {422, "Idempotency key reused",
                                   "This Idempotency-Key was used with another body; use a new "
                                   "key for a new job."},
    [FAIL_EXPIRED] = {410, "Gone", "The job's retention time is over; its results were removed."},
    [FAIL_LENGTH_REQUIRED] = {411, "Length required",
                              "Send Content-Length or Transfer-Encoding: chunked."},
    [FAIL_PRECONDITION_FAILED] = {412, "Precondition failed",
                                  "If-Match names an older revision; fetch the resource again."},
    [FAIL_BODY_TOO_LARGE] = {413, "Body too large",
                             "The body exceeds the limit of this route (errors[].limit, bytes)."},
    [FAIL_URI_TOO_LONG] = {414, "URI too long", "Shorten the path or the query."},
    [FAIL_UNSUPPORTED_MEDIA_TYPE] = {415, "Unsupported media type",
                                     "The Content-Type is not one this route reads; the detail "
                                     "lists them."},
    [FAIL_RANGE_NOT_SATISFIABLE] = {416, "Range not satisfiable",
                                    "The Range lies outside the artifact."},
    [FAIL_QUOTA] = {429, "Too many requests",
                    "You have as many jobs waiting as one caller may; try again after Retry-After "
                    "seconds or cancel some."},
    [FAIL_HEADERS_TOO_LARGE] = {431, "Headers too large",
                                "Request line and headers together exceed the limit."},
    [FAIL_OVERLOADED] = {503, "Overloaded",
                         "The daemon has no capacity left just now; try again after Retry-After "
                         "seconds."},
    [FAIL_SHUTTING_DOWN] = {503, "Shutting down",
                            "The daemon is being stopped; try again after Retry-After seconds."},
    [FAIL_DEADLINE] = {504, "Deadline exceeded",
                       "The answer was not ready within timeout_ms (or the job's deadline)."},
    [FAIL_STORE_FULL] = {507, "Store full",
                         "There is no room for another job's results; delete old jobs or wait for "
                         "their retention to end."},
    [FAIL_STORE_UNAVAILABLE] = {503, "Store unavailable",
                                "The daemon cannot use its job store just now; /readyz?verbose "
                                "says why. Predictions go on; try jobs again later."},
    [FAIL_MODEL_GONE] = {410, "Model gone",
                         "The model a job was accepted for is not loaded any more."},
    [FAIL_CRASH_LOOP] =
        {500, "Crash loop",
         "A job made its worker crash each time it was begun with, and is not tried "
         "again; report it with the job's id and the daemon's log."},
    [FAIL_BAD_MODEL] = {500, "Broken model", "A model file does not describe a usable model."},
    [FAIL_BAD_FILE] = {500, "Broken file", "A file the daemon reads is damaged."},
    [FAIL_BAD_SETTING] = {500, "Bad setting", "A setting is wrong; see the daemon's log."},
    [FAIL_IO] = {500, "Input/output error", "The operating system refused an operation."},
    [FAIL_NO_MEMORY] = {503, "Out of memory",
                        "The daemon could not get the memory for this request; try again later or "
                        "send less at once."},
    [FAIL_INTERNAL] = {500, "Internal error",
                       "A defect in the daemon; report it with the request_id."},
};

static const struct problem *problem_of(enum fail_code code)
{
    const int known = code > FAIL_NONE && code < FAIL_COUNT && problems[code].status;
    return &problems[known ? code : FAIL_INTERNAL];
}

int problem_status(enum fail_code code)
{
    return problem_of(code)->status;
}

const char *problem_title(enum fail_code code)
{
    return problem_of(code)->title;
}

const char *problem_help(enum fail_code code)
{
    return problem_of(code)->help;
}

enum fail_code problem_find(const char *name)
{
    for (int i = FAIL_NONE + 1; i < FAIL_COUNT; i++)
        if (strcmp(fail_name((enum fail_code)i), name) == 0)
            return (enum fail_code)i;
    return FAIL_NONE;
}

/* Bytes of the character that text begins with, 0 if it is not UTF-8. */
static size_t character(const char *text)
{
    char one[5] = {0};
    for (size_t n = 1; n <= 4 && text[n - 1]; n++) {
        one[n - 1] = text[n - 1];
        if (clip_is_utf8(one))
            return n;
    }
    return 0;
}

/* JSON takes UTF-8 only, and a sentence may quote what is not, or cut a character in two. */
static void mend(char *text)
{
    for (size_t n; *text; text += n ? n : 1) {
        n = character(text);
        if (n == 0)
            *text = '?';
    }
}

#define NO_MEMORY_BODY                                                                             \
    "{\"type\":\"/problems/no_memory\",\"title\":\"Out of memory\",\"status\":503,"                \
    "\"code\":\"no_memory\",\"detail\":\"no memory for the answer; try again later\","             \
    "\"instance\":\"\",\"request_id\":\"see X-Request-Id\"}"

struct blob *problem_without_memory(void)
{
    static struct blob body = {
        .refs = 1, .size = sizeof NO_MEMORY_BODY - 1, .bytes = NO_MEMORY_BODY};
    return blob_get(&body);
}

struct blob *problem_body(const struct err *why, const char *instance, const char *request_id)
{
    struct err mended = *why;
    const struct err *const e = &mended;
    mend(mended.text);
    json_forget();
    char type[80];
    snprintf(type, sizeof type, "/problems/%s", fail_name(e->code));
    json_t *root = json_pack("{s:s, s:s, s:i, s:s, s:s, s:s, s:s}", "type", type, "title",
                             problem_title(e->code), "status", problem_status(e->code), "code",
                             fail_name(e->code), "detail", e->text, "instance", instance,
                             "request_id", request_id);
    if (root && (e->pointer[0] || e->has_limit || e->did_you_mean[0])) {
        json_t *item = json_pack("{s:s, s:s, s:s}", "pointer", e->pointer, "code",
                                 fail_name(e->code), "detail", e->text);
        if (e->has_limit)
            json_object_set_new(item, "limit", json_integer(e->limit));
        if (e->did_you_mean[0])
            json_object_set_new(item, "did_you_mean", json_string(e->did_you_mean));
        json_object_set_new(root, "errors", json_pack("[o]", item));
    }
    return json_blob(root);
}
