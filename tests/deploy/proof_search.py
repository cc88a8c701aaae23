#!/usr/bin/env python3
"""The search of docker/compose.yaml without containers, measured.

    proof_search.py [--data FOLDER] [--queries N] [-- FLAGS OF rerankd serve]

Starts PostgreSQL and rerankd, loads the documents, and prints NDCG@10 of the queries in PostgreSQL's
order and in rerankd's. FOLDER holds `docs.jsonl` (id, title, text), `queries.jsonl` (id, text) and
`qrels.tsv` (query, document, relevance), as the Cranfield collection is laid out elsewhere.
"""

import argparse
import contextlib
import glob
import json
import math
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse

import psycopg
from stack import ROOT, get, servers, wait_until

SEARCH = ROOT / "docker" / "search" / "search.py"
sys.path.insert(0, str(SEARCH.parent))
import search  # noqa: E402


def postgres_programs() -> pathlib.Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        sys.exit("NOT RUN: PostgreSQL is not installed (apt-get install postgresql)")
    return pathlib.Path(found[-1]).parent


@contextlib.contextmanager
def postgres():
    """PostgreSQL on a Unix socket in a folder of its own, which it yields."""
    programs = postgres_programs()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rerankd-search-"))
    # PostgreSQL does not run as root.
    as_user = []
    if os.geteuid() == 0:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        as_user = ["runuser", "-u", "postgres", "--"]
    try:
        data = folder / "data"
        create = ["initdb", "--auth=trust", "--username=search", "--encoding=UTF8", "--locale=C", "--no-sync", "-D", data]
        subprocess.run([*as_user, programs / create[0], *create[1:]], check=True, stdout=subprocess.DEVNULL, cwd="/")
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "log_min_messages=error"]
        options = [part for setting in settings for part in ("-c", setting)]
        process = subprocess.Popen([*as_user, programs / "postgres", "-D", data, *options], cwd="/", stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: process.poll() is not None or answers(folder), 60, "PostgreSQL")
            yield folder
        finally:
            process.terminate()
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answers(folder: pathlib.Path) -> bool:
    try:
        psycopg.connect(host=str(folder), user="search", dbname="postgres").close()
        return True
    except psycopg.OperationalError:
        return False


def ndcg(ranked: list[str], relevance: dict[str, int], depth: int = 10) -> float:
    """How much of the gain that the best order would have is in the first `depth` of `ranked`."""
    gain = lambda values: sum(value / math.log2(place + 2) for place, value in enumerate(values[:depth]))
    best = gain(sorted(relevance.values(), reverse=True))
    return gain([relevance.get(document, 0) for document in ranked]) / best if best else 0.0


def read(folder: pathlib.Path, count: int) -> tuple[list[dict], dict[str, dict[str, int]]]:
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines():
        query, document, relevance = line.split("\t")
        judged.setdefault(query, {})[document] = int(relevance)
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    return [query for query in queries if any(judged.get(query["id"], {}).values())][:count], judged


def page_works(environment: dict[str, str], query: str) -> None:
    """The page, asked as a browser would."""
    command = [sys.executable, SEARCH, "serve"]
    environment = {**os.environ, **environment, "LISTEN": "127.0.0.1:0"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        status, page = get(f"{url}/?{urllib.parse.urlencode({'q': query})}", timeout=120)
        assert status == 200 and page.count("<li>") == search.SHOWN and "reranked in" in page, page
        assert "Nothing has any of these words" in get(f"{url}/?q=xyzzyplugh")[1]
    finally:
        process.terminate()
        process.wait(30)
    # Without its reranker the page still answers, and says what it lacks.
    with psycopg.connect(**connection(environment)) as database:
        search.RERANK_URL = "http://127.0.0.1:9"
        assert "Not reranked" in search.answer(database, query)
    print("the page shows the ten best, and says so when they are not reranked")


def connection(environment: dict[str, str]) -> dict[str, str]:
    return {"host": environment["PGHOST"], "user": environment["PGUSER"], "dbname": environment["PGDATABASE"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--queries", type=int, default=60, help="how many of the queries are asked")
    parser.add_argument("flags", nargs="*", help="more flags for `rerankd serve`, after `--`")
    arguments = parser.parse_args()
    if not (arguments.data / "docs.jsonl").exists():
        sys.exit(f"NOT RUN: no docs.jsonl in {arguments.data}")
    queries, judged = read(arguments.data, arguments.queries)
    cores = str(len(os.sched_getaffinity(0)))

    with postgres() as socket, servers(1, "--threads", cores, *arguments.flags) as (server,):
        environment = {
            **{"PGHOST": str(socket), "PGUSER": "search", "PGDATABASE": "postgres"},
            **{"RERANK_URL": server.url, "RERANK_SECONDS": "600"},
        }
        search.RERANK_URL, search.RERANK_SECONDS = server.url, 600
        with psycopg.connect(**connection(environment)) as database:
            print(f"{search.load(database, arguments.data)} documents, {len(queries)} queries")
            before, after, seconds = [], [], []
            for query in queries:
                found = search.retrieve(database, query["text"])
                begun = time.monotonic()
                order = search.rerank(query["text"], found)
                seconds.append(time.monotonic() - begun)
                relevance = judged[query["id"]]
                before.append(ndcg([document.id for document in found], relevance))
                after.append(ndcg([found[place].id for place, _ in order], relevance))
        page_works(environment, queries[0]["text"])
        model = json.loads(get(f"{server.url}/info")[1])
    mean = lambda values: sum(values) / len(values)
    print(f"model {model['served_model_name']}, {model['precision']}, {cores} threads")
    print(f"NDCG@10 {mean(before):.3f} in PostgreSQL's order, {mean(after):.3f} reranked")
    print(f"reranking {search.CANDIDATES}: median {sorted(seconds)[len(seconds) // 2]:.2f} s")


if __name__ == "__main__":
    main()
