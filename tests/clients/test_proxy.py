"""LiteLLM's proxy in front of the server, with eight of its providers, and a client in front of the proxy."""

import json
import subprocess
import sys

import cohere
import httpx
import pytest
from conftest import DOCUMENTS, QUERY, TOO_MANY, check
from instance import free_port, get, wait_until

# The path of the base URL of each provider.
PROVIDERS = {
    "cohere": "",
    "deepinfra": "/v1",
    "hosted_vllm": "",
    "huggingface": "",
    "infinity": "/infinity",
    "jina_ai": "",
    "nvidia_nim": "",
    "voyage": "/voyage/v1",
}
# The servers of these return scores in document order, and the proxy leaves them so.
IN_ORDER = {"deepinfra"}
LOGITS = {"nvidia_nim"}


@pytest.fixture(scope="module")
def proxy(url, tmp_path_factory):
    models = [
        {
            "model_name": provider,
            "litellm_params": {
                "model": f"{provider}/any",
                "api_base": url + path,
                "api_key": "no-key",
                "num_retries": 0,
            },
        }
        for provider, path in PROVIDERS.items()
    ]
    folder = tmp_path_factory.mktemp("proxy")
    config = folder / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({"model_list": models}))
    port = free_port()
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "litellm.proxy.proxy_server:app", "--host", "127.0.0.1"]
            + ["--port", str(port), "--log-level", "warning"],
            # Without the first, it downloads a list of prices.
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "CONFIG_FILE_PATH": str(config)},
            stdout=log,
            stderr=log,
        )
        base = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"the proxy ended: {log.read()}")
            return get(f"{base}/health/liveliness")[0] == 200

        try:
            wait_until(answers, 120, "the proxy")
            yield base
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_proxy(proxy, expected, logits, provider):
    def ask(documents, **options):
        body = {"model": provider, "query": QUERY, "documents": documents, **options}
        return httpx.post(f"{proxy}/v1/rerank", json=body, timeout=60)

    answer = ask(DOCUMENTS)
    assert answer.status_code == 200, answer.text
    found = [(item["index"], item["relevance_score"]) for item in answer.json()["results"]]
    if provider in IN_ORDER:
        assert [index for index, _ in found] == list(range(len(DOCUMENTS)))
        found.sort(key=lambda item: -item[1])
    assert len(found) == len(DOCUMENTS)
    check(logits if provider in LOGITS else expected, found)
    refused = ask(TOO_MANY)
    assert 400 <= refused.status_code < 500 and "the limit is 8" in refused.text


def test_cohere_through_the_proxy(proxy, expected):
    client = cohere.ClientV2(api_key="no-key", base_url=proxy)
    answer = client.rerank(model="cohere", query=QUERY, documents=DOCUMENTS, top_n=3)
    assert len(answer.results) == 3
    check(expected, [(result.index, result.relevance_score) for result in answer.results])
