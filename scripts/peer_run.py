"""One round of a peer that is a Python package, run with that package's own interpreter by scripts/bench_peers.py:
prints a JSON object of tokens a second; or, as peer `folder`, writes a GGUF model as a Hugging Face folder. Every prompt is new random tokens, since peers cache prefixes too.

A speed of decode is that of the tokens behind the first: the time for N less the time for one."""
import argparse
import json
import os
import random
import time

PREFILL_TOKENS = 512
SHORT_PROMPT = 31
ANSWER = 32


def prompts(n: int, length: int) -> list:
    return [[random.randrange(1000, 40000) for _ in range(length)] for _ in range(n)]


class OpenVino:
    def __init__(self, model: str, threads: int):
        import openvino_genai
        self.genai = openvino_genai
        self.pipe = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    def version(self) -> str:
        return self.genai.__version__

    def generate(self, ids: list, n_tokens: int) -> None:
        import numpy as np
        import openvino
        config = self.genai.GenerationConfig(max_new_tokens=n_tokens, min_new_tokens=n_tokens, ignore_eos=True, do_sample=False)
        tensor = openvino.Tensor(np.array(ids, np.int64))
        mask = openvino.Tensor(np.ones((len(ids), len(ids[0])), np.int64))
        self.pipe.generate(self.genai.TokenizedInputs(tensor, mask), config)


class Vllm:
    def __init__(self, model: str, threads: int):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
        import vllm
        self.vllm = vllm
        self.llm = vllm.LLM(model=model, max_model_len=1024, max_num_seqs=16, enforce_eager=True,
                            gpu_memory_utilization=0.5)  # of the CPU's memory, in that backend

    def version(self) -> str:
        return self.vllm.__version__

    def generate(self, ids: list, n_tokens: int) -> None:
        params = self.vllm.SamplingParams(max_tokens=n_tokens, min_tokens=n_tokens, ignore_eos=True, temperature=0)
        self.llm.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=False)


def seconds(peer, n: int, length: int, n_tokens: int) -> float:
    ids = prompts(n, length)
    begin = time.monotonic()
    peer.generate(ids, n_tokens)
    return time.monotonic() - begin


def write_folder(model: str, out: str) -> None:
    import torch
    import transformers
    folder, name = os.path.split(os.path.abspath(model))
    read = dict(pretrained_model_name_or_path=folder, gguf_file=name)
    weights = transformers.AutoModelForCausalLM.from_pretrained(**read, dtype=torch.bfloat16).state_dict()
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(**read), dtype=torch.bfloat16)
    model.load_state_dict(weights)
    model.save_pretrained(out + ".part")
    transformers.AutoTokenizer.from_pretrained(**read).save_pretrained(out + ".part")
    os.rename(out + ".part", out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=("openvino", "vllm", "folder"))
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.peer == "folder":
        write_folder(args.model, args.out)
        return
    peer = (OpenVino if args.peer == "openvino" else Vllm)(args.model, args.threads)
    seconds(peer, 1, SHORT_PROMPT, 4)
    found = {"version": peer.version(), "prefill": PREFILL_TOKENS / min(seconds(peer, 1, PREFILL_TOKENS, 1) for _ in range(2))}
    for n in (1, 16):
        first = min(seconds(peer, n, SHORT_PROMPT, 1) for _ in range(2))
        found[f"decode-{n}"] = n * (ANSWER - 1) / (seconds(peer, n, SHORT_PROMPT, ANSWER) - first)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
