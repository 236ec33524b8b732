/* The channels to keep, read from a file: {"hidden": [...], "mlp": [[...], ...]}, indices of the
 * full model's channels in any order, one list of MLP channels a layer; the twin has them in
 * ascending order. A key that is not there keeps all. See prune_internal.h. */
#include "engine/base/mem.h"
#include "engine/model/json_file.h"
#include "engine/model/mapped_file.h"
#include "engine/prune/prune_internal.h"

#include <inttypes.h>
#include <string.h>

#define MAX_KEEP_BYTES ((size_t)256 << 20)

/* list to index, each below `full` and no two the same. seen[full] is scratch. */
static int read_list(const cJSON *list, uint32_t full, uint8_t *seen, uint32_t *index,
                     struct error *err)
{
    uint32_t n = 0;
    memset(seen, 0, full);
    for (const cJSON *item = list->child; item; item = item->next, n++) {
        uint64_t channel;
        if (!json_whole(item, &channel) || channel >= full)
            return error_set(err, ERROR_FORMAT,
                             "item %" PRIu32 ": a channel 0..%" PRIu32 " expected", n, full - 1);
        if (seen[channel])
            return error_set(err, ERROR_FORMAT,
                             "item %" PRIu32 ": channel %" PRIu64 " stands there twice", n,
                             channel);
        seen[channel] = 1;
    }
    for (uint32_t i = 0, k = 0; i < full; i++)
        if (seen[i])
            index[k++] = i;
    return 0;
}

/* A list's length, as a width of 1..full. */
static int read_width(const cJSON *list, uint32_t full, uint32_t *ret_width, struct error *err)
{
    int n = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || n < 1 || (uint32_t)n > full)
        return error_set(err, ERROR_FORMAT, "a list of 1 to %" PRIu32 " channels expected", full);
    *ret_width = (uint32_t)n;
    return 0;
}

static int read_widths(const cJSON *json, const struct model_params *p, uint32_t *hidden,
                       uint32_t *mlp, struct error *err)
{
    const cJSON *hidden_list = cJSON_GetObjectItemCaseSensitive(json, "hidden");
    const cJSON *mlp_lists = cJSON_GetObjectItemCaseSensitive(json, "mlp");
    *hidden = p->hidden;
    *mlp = p->mlp;
    if (!hidden_list && !mlp_lists)
        return error_set(err, ERROR_FORMAT, "key hidden or mlp expected");
    if (hidden_list && read_width(hidden_list, p->hidden, hidden, err))
        return error_prefix(err, "key hidden");
    if (!mlp_lists)
        return 0;
    if (!cJSON_IsArray(mlp_lists) || (uint32_t)cJSON_GetArraySize(mlp_lists) != p->n_layers)
        return error_set(err, ERROR_FORMAT, "key mlp: %" PRIu32 " lists expected, one a layer",
                         p->n_layers);
    uint32_t layer = 0;
    for (const cJSON *list = mlp_lists->child; list; list = list->next, layer++) {
        uint32_t width;
        if (read_width(list, p->mlp, &width, err))
            return error_prefix(err, "key mlp: layer %" PRIu32, layer);
        if (layer && width != *mlp)
            return error_set(err, ERROR_FORMAT,
                             "key mlp: layer %" PRIu32 ": %" PRIu32
                             " channels expected as in layer 0, found %" PRIu32,
                             layer, *mlp, width);
        *mlp = width;
    }
    return 0;
}

static int read_lists(const cJSON *json, const struct model_params *p, struct kept *kept,
                      struct error *err)
{
    const cJSON *hidden = json_array(json, "hidden");
    const cJSON *mlp = json_array(json, "mlp");
    uint32_t most = p->hidden > p->mlp ? p->hidden : p->mlp;
    uint32_t layer = 0;
    _cleanup_mem_ uint8_t *seen = mem_alloc(most);
    if (!seen)
        return error_memory(err, "kept channels", most);
    if (hidden && read_list(hidden, p->hidden, seen, kept->hidden_index, err))
        return error_prefix(err, "key hidden");
    for (const cJSON *list = mlp ? mlp->child : NULL; list; list = list->next, layer++)
        if (read_list(list, p->mlp, seen, kept->mlp_index + (size_t)layer * kept->mlp, err))
            return error_prefix(err, "key mlp: layer %" PRIu32, layer);
    return 0;
}

static int read_json(const char *path, cJSON **ret_json, struct error *err)
{
    struct mapped_file map;
    int rc = mapped_file_open(path, &map, err);
    if (rc)
        return rc;
    if (map.bytes > MAX_KEEP_BYTES)
        rc = error_set(err, ERROR_FORMAT, "at most %zu bytes expected, found %zu", MAX_KEEP_BYTES,
                       map.bytes);
    else
        rc = json_parse(map.bytes ? map.data : (const void *)"", map.bytes, ret_json, err);
    mapped_file_close(&map);
    return rc;
}

static int read_kept(const char *path, const struct model_params *params, struct kept *kept,
                     struct error *err)
{
    _cleanup_json_ cJSON *json = NULL;
    uint32_t hidden = 0, mlp = 0;
    int rc = read_json(path, &json, err);
    if (rc == 0)
        rc = read_widths(json, params, &hidden, &mlp, err);
    if (rc == 0)
        rc = kept_first(params->n_layers, hidden, mlp, kept, err);
    return rc ? rc : read_lists(json, params, kept, err);
}

int kept_read(const char *path, const struct model_params *params, struct kept *ret_kept,
              struct error *err)
{
    struct kept kept = {0};
    int rc = read_kept(path, params, &kept, err);
    if (rc) {
        kept_free(&kept);
        return error_prefix(err, "%s", path);
    }
    *ret_kept = kept;
    return 0;
}
