"""The demo page: name a mesh or scan, watch PointDAE rebuild it, attack it."""

import html
from typing import Any

import gradio as gr

from dual_denoising.data import ASSETS
from dual_denoising.data.files import READERS
from dual_denoising.demo.handlers import SEEDS, START, Handlers
from dual_denoising.demo.reader import Reader
from dual_denoising.evaluation.systems import System
from dual_denoising.reports.pictures import VIEWER

SAMPLES = sorted((ASSETS / "base_meshes" / "samples").glob("*.glb"))
NAMES = "chair, bench, desk, door, bottle, vase"
STALE = 600  # seconds after which an upload is removed
STYLE = """
canvas { display: block; width: 100%; max-width: 24rem; aspect-ratio: 1; margin: auto;
  cursor: grab; touch-action: pan-y; }
"""
SCRIPT = """
const redraw = showClouds([element.querySelector("canvas")], () => props.value || null);
watch("value", redraw);
"""


def layout(system: System) -> gr.Blocks:
    """The page's widgets, and what each of them calls."""
    read = Reader()
    read(SAMPLES[0], 8)  # starts the process that the others come from
    handlers = Handlers(system, read)
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
                shape = _view("Shape: drag to turn")
                best = gr.Markdown(START, elem_id="answer")
                headers = ["name", "probability", "least", "most"]
                spread = f"Least and most over {len(SEEDS)} other noise seeds"
                table = gr.Dataframe(headers=headers, interactive=False, label=spread)
        with gr.Tab("Denoise"):
            gr.Markdown("The shape with the noise of timestep t, and what the decoder rebuilds.")
            with gr.Row():
                noised, clean = _view("Noised"), _view("Rebuilt")
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
                original = _view("Clean")
                moved = _view("Adversarial: the warmer, the further moved")
        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        last: Any = {"trigger_mode": "always_last"}
        named = ([cloud, words, paths, t], [best, table])
        shown = [cloud, shape, original, best, table, noised, clean, moved, before, after, note]
        opened = gr.on([file.change, up.change], handlers.open_file, [file, up], shown, **private)
        opened.success(handlers.name, *named, **private)
        opened.success(handlers.denoise, [cloud, t], [noised, clean], **private)
        changed = [words.submit, words.blur, paths.change, t.change]
        gr.on(changed, handlers.name, *named, **private, **last)
        t.change(handlers.denoise, [cloud, t], [noised, clean], **private, **last)
        attacked = [cloud, words, paths, t, kind, eps, steps], [moved, before, after, note]
        go.click(handlers.attack, *attacked, api_visibility="private")
    return page


def _view(label: str) -> gr.HTML:
    """A cloud that turns with the mouse."""
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
