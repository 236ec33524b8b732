"""What llama-server has and overfill has not, and where both differ on purpose. See plugin.py."""

# Paths (fnmatch) that only llama-server serves.
PATHS_NOT_SERVED = {
    "/completion": "llama-server's own completion API (`/completion`); ours is `/v1/completions`",
    "/completions": "llama-server's own completion API (`/completion`); ours is `/v1/completions`",
    "/slots*": "slots: our sequences share one pool of pages, so there are none to show or save",
    "/props": "`/props`: `/v1/models`, `/tokenizer_info` and `/metrics` say what it says",
    "/infill": "fill in the middle",
    "/predict": "Google Cloud's prediction API",
    "/embedding*": "embeddings",
    "/v1/embedding*": "embeddings",
    "/rerank*": "reranking",
    "/v1/rerank*": "reranking",
    "/v1/systemone": "the system-one API",
    "/lora-adapters": "LoRA adapters",
    "/tools": "tools that the server itself runs",
    "/cors-proxy": "a proxy for the web page",
    "/models/*": "a router of several models",
    "/v1/stream*": "resuming a dropped stream",
    "/apply-template": "`/apply-template`: `/tokenize` takes messages",
    "/*/input_tokens": "counting without generating (but for Anthropic's `count_tokens`): `/tokenize` "
                       "takes messages",
}

MODEL_NOT_AT_HAND = "needs a model that is not at hand (images, embeddings, infill, MoE, split)"

TEMPLATES = {None, "smollm", "qwen3", "qwen", "qwen2", "qwen1.5", "chatml", "llama3.1", "llama3",
             "mistral-v7", "mistral-v7-tekken", "mistral-v1", "mistral-tekken", "mistral-v3",
             "llama2", "mistral", "gemma", "zephyr"}


def is_other_model(server):
    return "stories260K" not in str(server.model_hf_repo) or "infill" in str(server.model_hf_repo)


# Servers that the tests set up with something that only llama-server has.
SERVER_NOT_LIKE_OURS = [
    (lambda s: s.server_embeddings or s.server_reranking, "embeddings and reranking"),
    (lambda s: s.lora_files, "LoRA adapters"),
    (lambda s: s.slot_save_path, "slots: our sequences share one pool of pages, so there are none "
                                 "to show or save"),
    (lambda s: s.server_tools or s.mcp_servers_config or s.mcp_servers_json or s.ui_mcp_proxy,
     "tools that the server itself runs"),
    (lambda s: s.sleep_idle_seconds is not None, "unloading the model while idle"),
    (lambda s: s.gcp_compat, "Google Cloud's prediction API"),
    (lambda s: s.model_draft or s.spec_type, "a draft model; our twin drafts with "
                                             "`overfill.decode: verify`"),
    (lambda s: s.enable_ctx_shift, "shifting the context: we end with `length`"),
    (lambda s: s.chat_template_file, "Jinja templates: ours are recognised families"),
    (lambda s: s.chat_template not in TEMPLATES, "Jinja templates: ours are recognised families"),
    (lambda s: s.debug, "`__verbose` in answers, for debugging"),
    (lambda s: "," in s.server_host, "several addresses to listen on"),
    (lambda s: s.model_tags or "," in str(s.model_alias), "several names and tags of a model"),
    (lambda s: s.model_hf_repo is None and s.model_file is None, "a router of several models"),
    (is_other_model, MODEL_NOT_AT_HAND),
]

# Node ids (regular expressions), both have it: why ours is otherwise.
NO_TOOLS = "Tools are refused by name (400 `unsupported_parameter`), as all that is known and not done."
NO_GRAMMAR = "Grammars and JSON schemas are refused by name (400), never ignored."
NO_IMAGES = "Images are the client's mistake here: 400. llama-server says 500, which clients repeat."
NO_PAGE = "There is no web page: `/` lists the routes as text."
DIFFERENCES = {
    r"unit/test_chat_completion\.py::test_chat_completion_cached_tokens":
        "The prefix cache counts whole pages of 32 tokens, so that pages can be shared.",
    r"unit/test_chat_completion\.py::test_completion_with_response_format\[response_format[0-3].*": NO_GRAMMAR,
    r"unit/test_chat_completion\.py::test_completion_with_json_schema.*": NO_GRAMMAR,
    r"unit/test_chat_completion\.py::test_completion_with_grammar.*": NO_GRAMMAR,
    r"unit/test_chat_completion\.py::test_invalid_chat_completion_req\[messages7\]":
        "Two assistant messages at the end are taken, as OpenAI takes any order of roles.",
    r"unit/test_chat_completion\.py::test_return_progress.*":
        "`return_progress` is refused by name (400).",
    r"unit/test_chat_completion\.py::test_verbose_debug": "There is no `__verbose`.",
    r"unit/test_compat_anthropic\.py::test_anthropic_tool.*": NO_TOOLS,
    r"unit/test_compat_anthropic\.py::test_anthropic_streaming_content_block_indices": NO_TOOLS,
    r"unit/test_compat_anthropic\.py::test_anthropic_vision_format_accepted": NO_IMAGES,
    r"unit/test_compat_anthropic\.py::test_anthropic_empty_messages":
        "`messages: []` is 400, as Anthropic's own answer.",
    r"unit/test_compat_anthropic\.py::test_anthropic_thinking":
        "`thinking` is refused by name (400): these models do not think aloud.",
    r"unit/test_compat_oai_responses\.py::test_responses_stream_with_llama_telemetry":
        "Events of Responses have no progress and no timings of each token.",
    r"unit/test_ctx_shift\.py::test_ctx_shift_disabled_stream":
        "`n_predict` on `/v1/completions` is refused by name (400): `max_tokens` says it.",
    r"unit/test_metrics\.py::test_metrics_disabled": "`/metrics` is always there.",
    r"unit/test_basic\.py::test_no_ui": NO_PAGE,
    r"unit/test_security\.py::test_access_static_assets_without_api_key": NO_PAGE,
}
