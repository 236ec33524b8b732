/* The table of chat template families, most particular first. Sources: the chat_template of the
 * families' published tokenizer_config.json. The bos token is left to chat_prompt_encode, except
 * where the family repeats it. See chat_families.h. */
#include "engine/tokenizer/chat_families.h"

#define IM(role) "<|im_start|>" role "\n"
#define IM_END "<|im_end|>\n"
#define HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define CHATML_TURNS                                                                               \
    {                                                                                              \
        [CHAT_SYSTEM] = {IM("system"), IM_END}, [CHAT_USER] = {IM("user"), IM_END},                \
        [CHAT_ASSISTANT] = {IM("assistant"), IM_END}, [CHAT_TOOL] = {IM("tool"), IM_END},          \
    }
/* Qwen shows results of tools as the user's; several in a row are one turn. */
#define QWEN_TURNS                                                                                 \
    {                                                                                              \
        [CHAT_SYSTEM] = {IM("system"), IM_END}, [CHAT_USER] = {IM("user"), IM_END},                \
        [CHAT_ASSISTANT] = {IM("assistant"), IM_END},                                              \
        [CHAT_TOOL] = {IM("user") "<tool_response>\n", "\n</tool_response>" IM_END,                \
                       "\n</tool_response>\n<tool_response>\n"},                                   \
    }

const struct chat_template chat_families[] = {
    {
        .name = "smollm", /* SmolLM2 */
        .marks = {"<|im_start|>", "You are a helpful AI assistant named SmolLM"},
        .absent = {"## Metadata"}, /* SmolLM3 builds a longer system text */
        .turns = CHATML_TURNS,
        .generation = IM("assistant"),
        .default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    },
    {
        .name = "qwen3",
        .marks = {"<|im_start|>", "<tool_response>"},
        /* Qwen2.5; families with a turn of their own for tools; SmolLM3 */
        .absent = {"You are Qwen", "<|im_start|>tool", "## Metadata"},
        .turns = QWEN_TURNS,
        .generation = IM("assistant"),
        .drops_thoughts = true,
    },
    {
        .name = "qwen", /* Qwen2.5 */
        .marks = {"<|im_start|>", "You are Qwen, created by Alibaba Cloud"},
        .turns = QWEN_TURNS,
        .generation = IM("assistant"),
        .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    },
    {
        .name = "qwen2",
        .marks = {"<|im_start|>", "You are a helpful assistant.<|im_end|>"},
        .turns = CHATML_TURNS,
        .generation = IM("assistant"),
        .default_system = "You are a helpful assistant.",
    },
    {
        .name = "qwen1.5",
        .marks = {"<|im_start|>", "You are a helpful assistant<|im_end|>"},
        .turns = CHATML_TURNS,
        .generation = IM("assistant"),
        .default_system = "You are a helpful assistant",
    },
    {
        .name = "chatml",
        .marks = {"<|im_start|>", "<|im_end|>"},
        /* relatives that are something else: Phi-4, SmolVLM, SmolLM3 */
        .absent = {"<|im_sep|>", "<end_of_utterance>", "## Metadata"},
        .turns = CHATML_TURNS,
        .generation = IM("assistant"),
    },
    {
        .name = "llama3.1", /* and 3.2, 3.3; the date is the template's own when it gets none */
        .marks = {"<|start_header_id|>", "<|eot_id|>", "Cutting Knowledge Date"},
        .turns = {[CHAT_SYSTEM] = {HEADER("system") "Cutting Knowledge Date: December 2023\n"
                                                    "Today Date: 26 Jul 2024\n\n",
                                   "<|eot_id|>"},
                  [CHAT_USER] = {HEADER("user"), "<|eot_id|>"},
                  [CHAT_ASSISTANT] = {HEADER("assistant"), "<|eot_id|>"},
                  [CHAT_TOOL] = {HEADER("ipython"), "<|eot_id|>"}},
        .generation = HEADER("assistant"),
        .default_system = "",
        .trims = true,
    },
    {
        .name = "llama3",
        .marks = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
        .turns = {[CHAT_SYSTEM] = {HEADER("system"), "<|eot_id|>"},
                  [CHAT_USER] = {HEADER("user"), "<|eot_id|>"},
                  [CHAT_ASSISTANT] = {HEADER("assistant"), "<|eot_id|>"}},
        .generation = HEADER("assistant"),
        .trims = true,
    },
    {
        .name = "mistral-v7",
        .marks = {"[INST]", "[SYSTEM_PROMPT] "},
        .absent = {"default_system_message"}, /* long texts with dates in them */
        .turns = {[CHAT_SYSTEM] = {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"},
                  [CHAT_USER] = {"[INST] ", "[/INST]"},
                  [CHAT_ASSISTANT] = {" ", "</s>"}},
        .generation = "",
    },
    {
        .name = "mistral-v7-tekken",
        .marks = {"[INST]", "[SYSTEM_PROMPT]"},
        .absent = {"default_system_message", "[SYSTEM_PROMPT] "},
        .turns = {[CHAT_SYSTEM] = {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
                  [CHAT_USER] = {"[INST]", "[/INST]"},
                  [CHAT_ASSISTANT] = {"", "</s>"}},
        .generation = "",
    },
    {
        .name = "mistral-v1",
        .marks = {" [INST] ", "system_message", "eos_token"},
        .absent = {"<<SYS>>", "[AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]"},
        .turns = {[CHAT_SYSTEM] = {"", "\n\n"},
                  [CHAT_USER] = {" [INST] ", " [/INST]"},
                  [CHAT_ASSISTANT] = {" ", "</s>"}},
        .generation = "",
        .system_place = CHAT_SYSTEM_IN_NEXT_USER,
    },
    {
        .name = "mistral-tekken", /* Nemo */
        .marks = {"[AVAILABLE_TOOLS]", "\"[INST]\""},
        .absent = {"[SYSTEM_PROMPT]"},
        .turns = {[CHAT_SYSTEM] = {"", "\n\n"},
                  [CHAT_USER] = {"[INST]", "[/INST]"},
                  [CHAT_ASSISTANT] = {"", "</s>"}},
        .generation = "",
        .system_place = CHAT_SYSTEM_IN_LAST_USER,
    },
    {
        .name = "mistral-v3",
        .marks = {"[INST] ", "[AVAILABLE_TOOLS]"},
        .absent = {"[SYSTEM_PROMPT]"},
        .turns = {[CHAT_SYSTEM] = {"", "\n\n"},
                  [CHAT_USER] = {"[INST] ", "[/INST]"},
                  [CHAT_ASSISTANT] = {" ", "</s>"}},
        .generation = "",
        .system_place = CHAT_SYSTEM_IN_LAST_USER,
        .trims_answers = true,
    },
    {
        .name = "llama2",
        .marks = {"[INST] ", "<<SYS>>", "eos_token"},
        .turns = {[CHAT_SYSTEM] = {"<<SYS>>\n", "\n<</SYS>>\n\n"},
                  [CHAT_USER] = {"<s>[INST] ", " [/INST]"},
                  [CHAT_ASSISTANT] = {" ", " </s>"}},
        .generation = "",
        .system_place = CHAT_SYSTEM_IN_NEXT_USER,
        .trims = true,
    },
    {
        .name = "mistral", /* as published with 7B v0.1 and v0.2 */
        .marks = {"[INST] ", " [/INST]", "eos_token"},
        .absent = {"<<SYS>>", "[AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]"},
        .turns = {[CHAT_SYSTEM] = {"", "\n\n"},
                  [CHAT_USER] = {"[INST] ", " [/INST]"},
                  [CHAT_ASSISTANT] = {"", "</s>"}},
        .generation = "",
        .system_place = CHAT_SYSTEM_IN_NEXT_USER,
    },
    {
        .name = "gemma",
        .marks = {"<start_of_turn>", "<end_of_turn>"},
        .turns = {[CHAT_SYSTEM] = {"", "\n\n"},
                  [CHAT_USER] = {"<start_of_turn>user\n", "<end_of_turn>\n"},
                  [CHAT_ASSISTANT] = {"<start_of_turn>model\n", "<end_of_turn>\n"}},
        .generation = "<start_of_turn>model\n",
        .system_place = CHAT_SYSTEM_IN_NEXT_USER,
        .trims = true,
    },
    {
        .name = "zephyr", /* and TinyLlama */
        .marks = {"<|user|>", "<|system|>", "<|assistant|>", "eos_token"},
        .absent = {"<|end|>"},
        .turns = {[CHAT_SYSTEM] = {"<|system|>\n", "</s>\n"},
                  [CHAT_USER] = {"<|user|>\n", "</s>\n"},
                  [CHAT_ASSISTANT] = {"<|assistant|>\n", "</s>\n"}},
        .generation = "<|assistant|>\n",
    },
};
const size_t n_chat_families = sizeof(chat_families) / sizeof(chat_families[0]);

const char chat_family_names[] =
    "chatml, gemma, llama2, llama3, llama3.1, mistral, mistral-tekken, mistral-v1, mistral-v3, "
    "mistral-v7, mistral-v7-tekken, qwen, qwen1.5, qwen2, qwen3, smollm, zephyr";
