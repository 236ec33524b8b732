/* The report of a pruning run as JSON. See prune.h for what the figures mean. */
#include "engine/base/buf.h"
#include "engine/base/system.h"
#include "engine/prune/prune_internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* NAN has no place in JSON. */
static void put_number(struct buf *json, const char *name, double value)
{
    if (isfinite(value))
        buf_printf(json, "\"%s\":%.6g", name, value);
    else
        buf_printf(json, "\"%s\":null", name);
}

static void put_layers(struct buf *json, const struct prune_report *r)
{
    buf_append_str(json, ",\"layers\":[");
    for (uint32_t l = 0; l < r->n_layers; l++) {
        const struct layer_report *layer = &r->layers[l];
        const struct {
            const char *name;
            double value;
        } parts[] = {{"qkv_residual", layer->qkv},
                     {"o_step_residual", layer->o.step},
                     {"o_drift_residual", layer->o.drift},
                     {"o_step_ridge", layer->o.step_ridge},
                     {"o_drift_ridge", layer->o.drift_ridge},
                     {"gate_up_residual", layer->gate_up},
                     {"down_step_residual", layer->down.step},
                     {"down_drift_residual", layer->down.drift},
                     {"down_step_ridge", layer->down.step_ridge},
                     {"down_drift_ridge", layer->down.drift_ridge},
                     {"mlp_energy", layer->mlp_energy}};
        buf_append_str(json, l ? ",{" : "{");
        for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
            buf_append_str(json, i ? "," : "");
            put_number(json, parts[i].name, parts[i].value);
        }
        buf_append_str(json, "}");
    }
    buf_append_str(json, "]");
}

static void put_types(struct buf *json, const struct prune_report *r)
{
    buf_append_str(json, ",\"types\":{");
    for (size_t i = 0; i < PRUNE_MOST_TYPES && r->types[i].n_matrices; i++)
        buf_printf(json, "%s\"%s\":{\"matrices\":%u,\"bytes\":%zu}", i ? "," : "",
                   tensor_type_name((enum tensor_type)r->types[i].type), r->types[i].n_matrices,
                   r->types[i].bytes);
    buf_append_str(json, "}");
}

static void put_held(struct buf *json, const struct prune_report *r)
{
    if (!r->held.n_tokens)
        return;
    buf_printf(json,
               ",\"held\":{\"tokens\":%zu,\"kl\":%.6f,\"agree\":%.6f,\"nll\":%.6f,"
               "\"nll_full\":%.6f}",
               r->held.n_tokens, r->held.kl, r->held.agree, r->held.nll, r->held.nll_full);
}

int report_write(const char *path, const struct prune_report *r, struct error *err)
{
    _cleanup_buf_ struct buf json = {0};
    buf_printf(&json,
               "{\"method\":\"%s\",\"hidden\":%u,\"hidden_full\":%u,\"mlp\":%u,"
               "\"mlp_full\":%u,\"calibration_tokens\":%zu,\"hidden_energy\":%.6f,"
               "\"mlp_energy\":%.6f,\"seconds\":%.2f,\"out_bytes\":%zu,\"peak_rss_bytes\":%zu",
               prune_method_name(r->method), r->hidden, r->hidden_full, r->mlp, r->mlp_full,
               r->n_calibration_tokens, r->hidden_energy, r->mlp_energy, r->seconds, r->out_bytes,
               system_peak_rss_bytes());
    put_types(&json, r);
    if (r->layers) {
        buf_append_str(&json, ",");
        put_number(&json, "head_residual", r->head_residual);
        buf_append_str(&json, ",");
        put_number(&json, "temperature", r->temperature);
        put_layers(&json, r);
        put_held(&json, r);
    }
    buf_append_str(&json, "}\n");
    if (json.failed)
        return error_memory(err, "report", json.len);
    FILE *f = fopen(path, "we");
    if (!f)
        return error_set(err, ERROR_IO, "report %s: %s", path, strerror(errno));
    bool ok = fwrite(json.data, 1, json.len, f) == json.len;
    ok = fclose(f) == 0 && ok;
    return ok ? 0 : error_set(err, ERROR_IO, "report %s: cannot be written", path);
}
