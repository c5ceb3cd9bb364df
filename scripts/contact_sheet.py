"""Draws a row of clouds for every class of a dataset's test splits."""

from dual_denoising.run import main


def contact_sheet(run, cfg):
    from dual_denoising.data.datasets import open_tests
    from dual_denoising.errors import InputError, check
    from dual_denoising.reports.pictures import class_sheet

    classes = run.config["classes"]
    check(
        "classes", classes, classes is None or (classes and isinstance(classes, list)), "as [chair]"
    )
    tests, _ = open_tests(cfg.data.tests, run.build, cfg.num_points)
    if not tests:
        raise InputError("data has no test split to draw; choose another with data=NAME")
    paths = []
    for test in tests:
        path = run.folder / "pictures" / f"{test.source.name}_{test.source.split}.png"
        for page in class_sheet(test, classes, cfg.columns, path):
            print(f"{page}: {cfg.columns} clouds of each class at most")
            paths.append(str(page))
    run.save_summary(pictures=paths)


if __name__ == "__main__":
    main(contact_sheet, "contact_sheet")
