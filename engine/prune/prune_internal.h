/* What the files of engine/prune share. */
#ifndef OVERFILL_ENGINE_PRUNE_PRUNE_INTERNAL_H
#define OVERFILL_ENGINE_PRUNE_PRUNE_INTERNAL_H

#include "engine/model/model_file.h"
#include "engine/prune/prune.h"
#include "engine/prune/samples.h"

/* importance.c: scores of the channels, higher is kept first. */
struct importance {
    uint32_t n_layers, hidden, mlp;
    double *hidden_score; /* [hidden] */
    double *mlp_score;    /* [n_layers][mlp] */
};
int importance_measure(const struct prune_options *options, const struct model_file *file,
                       const struct sample_set *samples, struct importance *ret_importance,
                       struct error *err);
void importance_free(struct importance *importance);

/* select.c: which channels stay, in ascending order. */
struct kept {
    uint32_t hidden, mlp;
    uint32_t *hidden_index; /* [hidden] */
    uint32_t *mlp_index;    /* [n_layers][mlp] */
    double hidden_energy, mlp_energy;
};
/* A width as given on the command line to channels, rounded to PRUNE_WIDTH_MULTIPLE, or exactly
 * int(share * full). */
int width_resolve(const char *name, double wanted, uint32_t full, bool exact, uint32_t *ret_width,
                  struct error *err);
int kept_choose(const struct importance *importance, uint32_t hidden, uint32_t mlp,
                struct kept *ret_kept, struct error *err);
/* The first so many channels, which may be all, without a look at any text. */
int kept_first(uint32_t n_layers, uint32_t hidden, uint32_t mlp, struct kept *ret_kept,
               struct error *err);
void kept_free(struct kept *kept);
/* keep_list.c: those that a JSON file lists. */
int kept_read(const char *path, const struct model_params *params, struct kept *ret_kept,
              struct error *err);

/* slice.c: the narrower model. */
int slice_write(const struct prune_options *options, const struct model_file *file,
                const struct kept *kept, uint64_t calibration_hash, struct error *err);

/* The file's size with these widths, all but its metadata. */
size_t slice_bytes(const struct prune_options *options, const struct model_file *file,
                   uint32_t hidden, uint32_t mlp);

/* room.c: refuses what would not fit the disk, with the bytes needed; the memory, with the tokens
 * that would fit (bytes: whatever the calibration, of its samples, of each token); and the memory
 * of minitron. */
int room_check_disk(const struct prune_options *options, const struct model_file *file,
                    uint32_t hidden, uint32_t mlp, struct error *err);
int room_check_bytes(size_t fixed, size_t of_samples, size_t per_token, size_t n_tokens,
                     struct error *err);
int room_check_memory(const struct model_file *file, const struct sample_set *samples,
                      struct error *err);

/* reconstruct.c: a twin that is solved for. Fills the report's figures. */
int reconstruct_run(const struct prune_options *options, const struct model_file *file,
                    const struct sample_set *samples, struct prune_report *report,
                    struct error *err);

/* report.c */
int report_write(const char *path, const struct prune_report *report, struct error *err);

/* metadata.c: the source's entries with the twin's sizes, and how the twin was made. */
struct gguf_writer;
void twin_metadata(const struct model_file *file, const char *method, uint32_t hidden, uint32_t mlp,
                   uint64_t calibration_hash, struct gguf_writer *writer);

#endif
