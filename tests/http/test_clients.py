"""langchain-openai and litellm, which bring hundreds of packages: installed with
`OVERFILL_ALL_CLIENTS=1 scripts/install-deps --tests`, skipped where they are missing."""
import pytest

HINT = "is missing: OVERFILL_ALL_CLIENTS=1 scripts/install-deps --tests installs it"


@pytest.fixture
def chat_model(server):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai " + HINT)
    return langchain.ChatOpenAI(base_url=server.base + "/v1", api_key="k", model=server.model,
                                temperature=0, max_tokens=8, max_retries=0, timeout=120,
                                stream_usage=True)


def test_langchain_whole_and_streamed(server, chat_model):
    answer = chat_model.invoke([("system", "Be short."), ("user", "ab cd ef gh")])
    assert answer.content and answer.usage_metadata["output_tokens"] <= 8
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    chunks = list(chat_model.stream([("system", "Be short."), ("user", "ab cd ef gh")]))
    assert "".join(c.content for c in chunks) == answer.content
    usage = [c.usage_metadata for c in chunks if c.usage_metadata]
    assert usage and usage[-1]["output_tokens"] == answer.usage_metadata["output_tokens"]


def test_langchain_logprobs_and_responses(server, chat_model):
    answer = chat_model.bind(logprobs=True, top_logprobs=2).invoke("ab cd ef gh")
    content = answer.response_metadata["logprobs"]["content"]
    assert content and len(content[0]["top_logprobs"]) == 2
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=server.base + "/v1", api_key="k", model=server.model,
                                 temperature=0, use_responses_api=True, max_retries=0)
    assert model.invoke("ab cd ef gh", max_output_tokens=8).text


def test_langchain_mistake(server, chat_model):
    with pytest.raises(Exception) as caught:
        chat_model.bind(temperature=9).invoke("x")
    assert getattr(caught.value, "status_code", 400) == 400 and "temperature" in str(caught.value)


@pytest.fixture
def litellm():
    return pytest.importorskip("litellm", reason="litellm " + HINT)


def test_litellm_whole_and_streamed(server, litellm):
    request = dict(model="openai/" + server.model, api_base=server.base + "/v1", api_key="k",
                   messages=[{"role": "user", "content": "ab cd ef gh"}], temperature=0, max_tokens=8,
                   num_retries=0)
    answer = litellm.completion(**request)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
    chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content


def test_litellm_anthropic_and_mistakes(server, litellm):
    answer = litellm.completion(model="anthropic/" + server.model, api_base=server.base, api_key="k",
                                messages=[{"role": "user", "content": "ab cd ef gh"}], max_tokens=8,
                                num_retries=0)
    assert answer.choices[0].message.content
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", api_base=server.base + "/v1", api_key="k",
                           messages=[{"role": "user", "content": "x"}], num_retries=0)
