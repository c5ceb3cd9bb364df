"""The demo page: name a mesh or scan, watch PointDAE rebuild it, attack it."""

import html
import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dual_denoising.data import ASSETS
from dual_denoising.data.files import READERS
from dual_denoising.demo import answers
from dual_denoising.demo.reader import Reader
from dual_denoising.errors import InputError, brief, check_number
from dual_denoising.evaluation.files import prepare_points, read_labels
from dual_denoising.evaluation.systems import System
from dual_denoising.reports.pictures import VIEWER, for_canvas

SAMPLES = sorted((ASSETS / "base_meshes" / "samples").glob("*.glb"))
NAMES = "chair, bench, desk, door, bottle, vase"
START = "Choose a sample or a file."
MOST_NAMES = 500
STALE = 600  # seconds after which an upload is removed
STYLE = """
canvas { display: block; width: 100%; max-width: 24rem; aspect-ratio: 1; margin: auto;
  cursor: grab; touch-action: pan-y; }
"""
SCRIPT = """
const redraw = showClouds([element.querySelector("canvas")], () => props.value || null);
watch("value", redraw);
"""


def serve(system: System, uploads: Path, host: str, port: int, megabytes: int) -> None:
    """Serves the page until it is interrupted.

    uploads: an empty folder for what users send. megabytes: the largest file that they may.
    """
    text: Any = system.text
    model: Any = system.model
    check_number("port", port, 1)
    check_number("megabytes", megabytes, 1)
    os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False"}
    try:
        import gradio as gr  # reads both
    except ImportError as error:
        raise InputError('the page needs gradio: pip install -e ".[demo]"') from error

    read = Reader()
    read(SAMPLES[0], 8)  # starts the process that the others come from

    def words_of(error: InputError) -> str:
        return html.escape(str(error).replace("--labels", "names").replace("--open-clip", "CLIP"))

    def told(job: Callable) -> Callable:
        """Errors in the user's input as a sentence on the page."""

        @wraps(job)
        def call(*arguments):
            try:
                return job(*arguments)
            except InputError as error:
                words = words_of(error)
                raise gr.Error(words, title="Not possible", print_exception=False) from error

        return call

    def names_of(words: str) -> list[str]:
        names = read_labels(words.replace("\n", ",") + ",", text, ())
        if len(names) > MOST_NAMES or len(words) > 50 * MOST_NAMES:
            raise InputError(f"names are {len(names)}: give at most {MOST_NAMES} short ones")
        text.class_weights(names)  # raises for names without a feature
        return names

    def open_file(path: str | None, up: str):
        """A cloud in place of the last one, whose answers and attacks are cleared."""
        cleared = [START, *[None] * 7]
        try:
            if path is None:
                return [None, None, None, *cleared]
            points = read(Path(path), system.num_points)
            cloud = prepare_points(points, system.num_points, up, seed=0)
        except InputError as error:
            gr.Warning(words_of(error), title="Not possible")
            return [None, None, None, *cleared]
        return [cloud, for_canvas(cloud), for_canvas(cloud), *cleared]

    @told
    def name(cloud: np.ndarray | None, words: str, paths: int, t: int):
        names = names_of(words)
        if cloud is None:
            return START, None
        best, rows = answers.answer(system, cloud, names, paths, t)
        return f"## {best}", rows

    def denoise(cloud: np.ndarray | None, t: int):
        if cloud is None:
            return None, None
        rebuilt = model.rebuild(torch.from_numpy(cloud)[None], t)
        return tuple(for_canvas(points[0].numpy()) for points in rebuilt)

    @told
    def attack(cloud, words, paths, t, kind, eps, steps, progress=gr.Progress()):  # noqa: B008
        if cloud is None:
            raise InputError("there is no shape yet: choose a sample or a file")

        def tell(step: int, _) -> None:
            progress((step, steps), desc=kind)

        names, setting = names_of(words), (paths, t)
        found, before, after = answers.attack(system, cloud, names, setting, kind, eps, steps, tell)
        moved = np.linalg.norm(found - cloud, axis=1)
        shades = moved / max(float(moved.max()), 1e-9)
        words = f"The points moved by at most {moved.max():.3f} (the unit sphere has radius 1)."
        return for_canvas(found, shades), before, after, words

    def view(label: str):
        return gr.HTML(
            None,
            label=label,
            show_label=True,
            html_template="<canvas></canvas>",
            css_template=STYLE,
            container=True,
            js_on_load=VIEWER.read_text() + SCRIPT,
            min_width=240,
        )

    with gr.Blocks(title="Dual Denoising", delete_cache=(60, STALE)) as page:
        gr.Markdown(
            "# Dual Denoising\nNames a mesh or scan among words that you type, from its points "
            f"alone. Model: {html.escape(system.origin)}."
        )
        cloud = gr.State(None)
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Mesh or scan", file_types=list(READERS), elem_id="file")
                gr.Examples([[str(path)] for path in SAMPLES], [file], label="Samples")
                up = gr.Radio(["y", "z"], value="y", label="Axis that points up in the file")
                asked = "Names, with commas between them; then Enter"
                words = gr.Textbox(NAMES, label=asked, max_lines=1, elem_id="names")
                paths = gr.Slider(1, 16, 8, step=1, label="Noise paths S")
                t = gr.Slider(0, 999, 500, step=1, label="Timestep t of the noise", elem_id="t")
            with gr.Column():
                shape = view("Shape: drag to turn")
                best = gr.Markdown(START, elem_id="answer")
                headers = ["name", "probability", "least", "most"]
                spread = f"Least and most over {len(answers.SEEDS)} other noise seeds"
                table = gr.Dataframe(headers=headers, interactive=False, label=spread)
        with gr.Tab("Denoise"):
            gr.Markdown("The shape with the noise of timestep t, and what the decoder rebuilds.")
            with gr.Row():
                noised, clean = view("Noised"), view("Rebuilt")
        with gr.Tab("Attack"):
            with gr.Row():
                with gr.Column():
                    kinds = "PGD as in the paper; APGD knows that the model is random"
                    kind = gr.Radio(["PGD", "APGD"], value="PGD", label=kinds)
                    far = "ε: how far a point may move along an axis"
                    eps = gr.Slider(0.005, 0.1, 0.025, step=0.005, label=far)
                    steps = gr.Slider(1, 100, 20, step=1, label="Steps")
                    go = gr.Button("Attack", variant="primary", elem_id="go")
                before = gr.Label(label="Answers before, on fresh noise", elem_id="before")
                after = gr.Label(label="Answers after, on fresh noise", elem_id="after")
            note = gr.Markdown(elem_id="moved")
            with gr.Row():
                original, moved = view("Clean"), view("Adversarial: the warmer, the further moved")
        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        last: Any = {"trigger_mode": "always_last"}
        named = ([cloud, words, paths, t], [best, table])
        shown = [cloud, shape, original, best, table, noised, clean, moved, before, after, note]
        opened = gr.on([file.change, up.change], open_file, [file, up], shown, **private)
        opened.success(name, *named, **private)
        opened.success(denoise, [cloud, t], [noised, clean], **private)
        changed = [words.submit, words.blur, paths.change, t.change]
        gr.on(changed, name, *named, **private, **last)
        t.change(denoise, [cloud, t], [noised, clean], **private, **last)
        attacked = [cloud, words, paths, t, kind, eps, steps], [moved, before, after, note]
        go.click(attack, *attacked, api_visibility="private")
    page.queue(default_concurrency_limit=2, max_size=50)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=f"{megabytes}mb",
            ssr_mode=False,
            share=False,
            quiet=True,
            footer_links=[],
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:
        raise InputError(f"host is {host}, port {port}: {brief(error)}; choose others") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the uploads are removed
    print(f"http://{host}:{port}", flush=True)
    page.block_thread()
