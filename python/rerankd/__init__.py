"""Starts the reranking server `rerankd`, and asks it.

    import rerankd

    with rerankd.Server() as server:
        for result in server.rerank("A man is eating food.", ["He plays chess.", "He eats pasta."]):
            print(result.index, result.score)
"""

from rerankd.client import Client, Error, Result
from rerankd.server import Server

__all__ = ["Client", "Error", "Result", "Server"]
