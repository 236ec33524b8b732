#include "engine/model/model_file_internal.h"
int hf_folder_open(const char *path, struct model_file *file, struct error *err)
{
    return error_set(err, ERROR_UNSUPPORTED, "%s: folders are not read yet", path);
}
void hf_folder_close(struct hf_folder *folder)
{
}
