"""A client of one server, on the standard library alone."""

import dataclasses
import email.utils
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

# Answers that a later attempt may better: too many requests, and not ready or shutting down.
RETRIED = (429, 503)
FIRST_WAIT_SECONDS = 0.5


class Error(Exception):
    """The server refused a request, or could not be reached.

    `status` is that of the response; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Result:
    """A document in its rank: its position in the request, and its score."""

    index: int
    score: float


class Client:
    """Asks the server at `url`.

    A request that is refused with 429 or 503, or finds no server, is sent again up to `retries` times: after
    the seconds that the server's `Retry-After` names, else after half a second, one, two, and so on. Scoring
    has no effects, so nothing is done twice. An attempt may take `timeout` seconds, and so may each wait: a
    longer one is an error at once.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60,
        retries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        opener: urllib.request.OpenerDirector | None = None,
    ):
        self.url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._retries = retries
        self._sleep = sleep
        # Without one of the caller's own, proxies of the environment count.
        self._opener = opener or urllib.request.build_opener()

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, model: str | None = None
    ) -> list[Result]:
        """The documents by relevance to `query`, best first; only the first `top_n` if given."""
        answer = self._post("/rerank", query=query, documents=list(documents), top_n=top_n, model=model)
        return [Result(result["index"], result["relevance_score"]) for result in answer["results"]]

    def predict(
        self, pairs: Sequence[tuple[str, str]], *, model: str | None = None
    ) -> list[float] | list[list[float]]:
        """The score of each pair of texts, in the order of `pairs`; a list each if the model has several labels."""
        answer = self._post("/predict", pairs=[list(pair) for pair in pairs], model=model)
        scores: list[float] | list[list[float]] = answer["scores"]
        return scores

    def _post(self, path: str, **fields: object) -> Any:
        body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
        request = urllib.request.Request(self.url + path, body, self._headers)
        for attempt in range(self._retries + 1):
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as failure:
                error, wait = refused(failure), retry_after(failure)
                if failure.code not in RETRIED:
                    raise error from None
            except OSError as failure:
                error, wait = Error(f"`{self.url}` cannot be reached: {failure}"), None
            wait = FIRST_WAIT_SECONDS * 2**attempt if wait is None else wait
            if attempt == self._retries or wait > self._timeout:
                raise error
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def refused(failure: urllib.error.HTTPError) -> Error:
    text = failure.read().decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    return Error(f"status {failure.code}: {message}", failure.code)


def retry_after(failure: urllib.error.HTTPError) -> float | None:
    """Seconds to wait as the response names them, as a number or as a date."""
    value = failure.headers.get("retry-after")
    if value is None:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
