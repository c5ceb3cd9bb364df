"""Serves the demo page."""

import logging
import os
import signal
from pathlib import Path

from dual_denoising.errors import InputError
from dual_denoising.evaluation.systems import System


def serve(system: System, uploads: Path, host: str, port: int, megabytes: int) -> None:
    """Serves the page until it is interrupted.

    uploads: an empty folder for what users send. megabytes: the largest file that they may send.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is up
    os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False"}
    try:
        from dual_denoising.demo.page import layout  # imports gradio, which reads both
    except ImportError as error:
        raise InputError('the page needs gradio: pip install -e ".[demo]"') from error

    page = layout(system)
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
        words = "it is taken, or there is none; choose others, as port=7861"
        raise InputError(f"host is {host}, port is {port}: {words}") from error
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the uploads are removed
        signal.signal(ending, signal.default_int_handler)
    print(f"http://{host}:{port}", flush=True)
    page.block_thread()
