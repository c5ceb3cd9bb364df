"""The command line of scripts/classify.py; it imports nothing that takes time."""

import argparse
from pathlib import Path

from dual_denoising.errors import check, check_number


def classify_arguments(description: str) -> argparse.Namespace:
    """Parses the command line; raises InputError for a --seed below 0 or a --top below 1."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", help="meshes, clouds, or folders of them")
    names = 'names, "chair,table,lamp", a file with one a line, or all: every name of the bank'
    add("--labels", required=True, help=names)
    of = "a model of data/models, folder 'model' of a run, user/name of the Hub (%(default)s)"
    add("--checkpoint", default="shapes_clip", help=of)
    add("--up", choices=("y", "z"), default="y", help="axis that points up in the files")
    add("--num-noise", type=int, default=8, help="noise paths S")
    add("--timestep", type=int, default=500, help="their timestep t")
    add("--seed", type=int, default=0, help="of the noise and of sampling points")
    add("--top", type=int, default=5, help="names per file in the table and pictures")
    add("--text", help="a file of text features of names (.h5); if not given, the model's own")
    add("--open-clip", action="store_true", help="encode any names with CLIP, downloaded once")
    add("--weights", help="with --open-clip: a local file of CLIP's weights")
    add("--prompts", help="recon60, ulip64, pointclip, name, or a file with a prompt a line")
    add("--name", default="classify", help="results go to runs/<name>")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    args = parser.parse_intermixed_args()
    check("FILES", args.files, all(args.files), "one is empty; name a file or a folder")
    args.files = [Path(file) for file in args.files]
    check_number("--seed", args.seed)
    check_number("--top", args.top, 1)
    return args
