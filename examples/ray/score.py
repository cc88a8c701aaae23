"""Scores a file of pairs on a Ray cluster: JSON lines or Parquet in, a folder of Parquet files out.

    python score.py --input pairs.jsonl --output scores/ --program /usr/local/bin/rerankd --workers 8
"""

import argparse

import ray

from scorer import Rerankd


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="a file or folder of .jsonl or .parquet")
    parser.add_argument("--output", required=True, help="a folder for Parquet files")
    parser.add_argument("--program", default="rerankd", help="`rerankd`, at the same path on every node")
    parser.add_argument("--model", help="directory of the model on every node; default: the embedded one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="cores of each worker")
    parser.add_argument("--batch", type=int, default=1000, help="rows that a worker is sent at a time")
    parser.add_argument("--address", default="auto", help="the cluster; `local` starts one here")
    return parser.parse_args()


def scored(rows, options):
    """The data set with scores; workers that are lost are started anew and their batches done again."""
    return rows.map_batches(
        Rerankd,
        fn_constructor_kwargs={
            "program": options.program,
            "model": options.model,
            "threads": options.threads,
        },
        batch_size=options.batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=options.threads,
    )


def main():
    options = arguments()
    ray.init(address=options.address)
    read = ray.data.read_parquet if options.input.endswith(".parquet") else ray.data.read_json
    scored(read(options.input), options).write_parquet(options.output)


if __name__ == "__main__":
    main()
