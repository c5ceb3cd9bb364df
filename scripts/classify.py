"""Names meshes and scans: python scripts/classify.py FILES_OR_FOLDER --labels "chair,table,lamp"

Reads .ply .obj .off .stl .glb .gltf .npy .npz .pcd .xyz .txt. Exit code 0: every file was
classified; 1: some were not (they are named and skipped), or nothing could start.
"""

import sys

from dual_denoising.evaluation.arguments import classify_arguments
from dual_denoising.run import Run, guarded


def classify():
    args = classify_arguments(__doc__)
    from dual_denoising.evaluation import files
    from dual_denoising.evaluation.classifier import ZeroShotClassifier
    from dual_denoising.evaluation.systems import ours
    from dual_denoising.reports.tables import write_names
    from dual_denoising.training.checkpoint import TrainingRecord

    run = Run({**vars(args), "files": [str(path) for path in args.files]})
    paths, labels = files.find_files(args.files), files.read_labels(args.labels)
    teacher = TrainingRecord.load(args.checkpoint).teacher
    text = files.text_of(teacher, args.text, args.open_clip, args.weights, args.prompts)
    system = ours(args.checkpoint, text)
    setting, weights = (args.num_noise, args.timestep, args.seed), text.class_weights(labels)
    classifier = ZeroShotClassifier(system.model, weights, *setting).eval().to(run.device)
    outcome = files.classify(classifier, paths, labels, system.num_points, args.up, run.device)
    results = [{"file": n.file, "probabilities": n.probabilities} for n in outcome.named]
    run.save_config()
    run.save_summary(results=results, failed=outcome.failed, labels=labels)
    write_names(run.folder, outcome, args.top)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(guarded(classify))
