"""Names meshes and scans: python scripts/classify.py FILES_OR_FOLDER --labels "chair,table,lamp"

Reads .ply .obj .off .stl .glb .gltf .npy .npz .pcd .xyz .txt. Exit code 0: every file was
classified, but for those of a folder that hold no shape (a licence.txt), which are named as left
out; 1: some could not be read (they are named as skipped), or nothing could start.
"""

import sys

from dual_denoising.evaluation.arguments import classify_arguments
from dual_denoising.run import Run, check_targets, guarded


def classify():
    args = classify_arguments(__doc__)
    from dual_denoising.evaluation import files, systems
    from dual_denoising.reports.tables import write_names
    from dual_denoising.training.record import TrainingRecord

    run = Run({**vars(args), "files": [str(path) for path in args.files]})
    run.check_folder()
    paths, record = files.find_files(args.files), TrainingRecord.load(args.checkpoint)
    setting = args.num_noise, args.timestep, args.seed
    words = args.text, args.open_clip, args.weights, args.prompts
    text = files.text_of(record, lambda node: run.build(check_targets(node)), *words)
    labels = files.read_labels(args.labels, text, record.class_names)
    system = systems.ours(args.checkpoint, text)
    system.device = run.device
    classifier = system.classifier(labels, *setting)
    outcome = files.classify(classifier, paths, labels, system, args.up, args.files)
    run.save_summary(**outcome.record(), labels=labels)
    write_names(run.folder, outcome, args.top)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(guarded(classify))
