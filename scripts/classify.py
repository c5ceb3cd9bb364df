"""Names for meshes and scans.

python scripts/classify.py FILES_OR_FOLDER --labels "chair,table,lamp"
Reads .ply .obj .off .stl .glb .gltf .npy .npz .pcd .xyz .txt. Exit code 0: every file was
classified; 1: some were not (they are named and skipped), or nothing could start.
"""

import argparse
import time
from pathlib import Path

from dual_denoising.errors import InputError, one_line_errors


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", type=Path, help="meshes, clouds, or folders of them")
    add("--labels", required=True, help='names, "chair,table,lamp", or a file with one a line')
    add("--checkpoint", default="runs/modelnet10/model", help="folder 'model' of a run")
    add("--up", choices=("y", "z"), default="y", help="axis that points up in the files")
    add("--num-noise", type=int, default=8, help="noise paths S")
    add("--timestep", type=int, default=500, help="their timestep t")
    add("--seed", type=int, default=0, help="of the noise and of sampling points")
    add("--top", type=int, default=5, help="names per file in the table and pictures")
    add("--text", help="cached text features of the names (.h5); default: the bank in data_root")
    add("--open-clip", action="store_true", help="encode the names with open_clip's text tower")
    add("--weights", help="with --open-clip: a local file of CLIP's weights")
    add("--prompts", help="recon60, ulip64, pointclip, name, or a file with a prompt a line")
    add("--name", default="classify", help="results go to runs/<name>")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser.parse_args()


def main() -> int:
    args, started = arguments(), time.perf_counter()
    # imported here, so that --help need not wait for torch
    import torch

    from dual_denoising.clip.features import class_weights
    from dual_denoising.evaluation import classifier as zeroshot
    from dual_denoising.evaluation import files as classify
    from dual_denoising.evaluation.classifier import ZeroShotClassifier
    from dual_denoising.model.dual_denoising import DualDenoising
    from dual_denoising.reports import tables as report
    from dual_denoising.training import checkpoint
    from dual_denoising.training import ranks as distributed

    if args.seed < 0 or args.top < 1:
        raise InputError(f"--seed {args.seed}, --top {args.top}: seeds begin at 0, --top at 1")
    torch.set_grad_enabled(False)
    device = distributed.pick_device(args.device)
    files, labels = classify.find_files(args.files), classify.read_labels(args.labels)
    training = checkpoint.load_training(Path(args.checkpoint))
    model = DualDenoising.from_pretrained(args.checkpoint)
    text = classify.text_features(training["teacher"], args)
    zeroshot.check_teacher(training, text, args.checkpoint)
    weights = class_weights(text.lookup(labels))
    classifier = ZeroShotClassifier(model, weights, args.num_noise, args.timestep, args.seed)
    folder = Path("runs", args.name)
    results, failed = classify.classify(
        classifier.eval().to(device), files, labels, training["num_points"], args.up, device,
        folder / "pictures", args.top,
    )  # fmt: skip
    classify.write(folder, results, failed, args.top)
    report.write_config(folder, {k: str(v) for k, v in vars(args).items()})
    seconds = time.perf_counter() - started
    report.write_summary(folder, seconds, device, results=results, failed=failed, labels=labels)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(one_line_errors(main))
