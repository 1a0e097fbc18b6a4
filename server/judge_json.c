/* SPDX-License-Identifier: Apache-2.0 */
#include "server/judge_json.h"

json_t *judge_share_json(const struct judge_share *s)
{
    return json_pack("{s:I, s:o, s:o, s:o}", "n", (json_int_t)s->n, "share",
                     json_real_or_null(s->share.value), "lo", json_real_or_null(s->share.lo), "hi",
                     json_real_or_null(s->share.hi));
}

static json_t *pair_json(const struct judge_share *pair, const struct judge_share *all)
{
    json_t *o = judge_share_json(pair);
    json_object_set_new(o, "all", judge_share_json(all));
    return o;
}

/* {"right", "all", "attributes": {..}, "pairs": {..}} */
static json_t *shares_json(const struct judge_setup *s, const struct judge_shares *t)
{
    const struct attributes *a = &s->model->d.attributes;
    json_t *by = json_object(), *pairs = json_object();
    for (int k = 0; k < a->n; k++)
        json_object_set_new(by, a->list[k].name, judge_share_json(&t->by_attribute[k]));
    for (int i = 0; i < s->n_pairs; i++)
        json_object_set_new(pairs, s->pairs[i].text, pair_json(&t->pairs[i], &t->pairs_all[i]));
    return json_pack("{s:o, s:o, s:o, s:o}", "right", judge_share_json(&t->right), "all",
                     judge_share_json(&t->all), "attributes", by, "pairs", pairs);
}

static json_t *start_json(const struct judge_setup *s, const struct judge_start *t)
{
    json_t *o = shares_json(s, &t->samples);
    json_object_set_new(o, "start", json_string(start_kind_names[t->start]));
    json_object_set_new(o, "steps", json_integer(t->steps));
    json_object_set_new(o, "diverged", json_integer(t->diverged));
    return o;
}

json_t *judge_result_json(const struct judge_setup *s, const char *split,
                          const struct judge_result *r)
{
    json_t *starts = json_array();
    for (int i = 0; i < JUDGE_STARTS; i++)
        if (r->starts[i].steps > 0)
            json_array_append_new(starts, start_json(s, &r->starts[i]));
    return json_pack("{s:s, s:o, s:o}", "split", split, "real", shares_json(s, &r->real), "samples",
                     starts);
}
