"""Text from templates (Jinja): model cards and reports."""

import re
import shlex
import textwrap
from pathlib import Path

import jinja2

from dual_denoising.reports.tables import markdown, percent


def render(template: Path, **fields) -> str:
    """The text of a template with these fields, which are escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=template.suffix == ".html",
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"fill": fill, "continued": continued}
    environment.filters |= {"markdown": markdown, "percent": percent}
    return environment.get_template(template.name).render(fields)


def fill(text: str) -> str:
    """A paragraph, or each item of a list, in lines of at most 100 columns."""
    wrapper = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    lines = []
    for item in re.split(r"\n(?=- )", text):
        wrapper.subsequent_indent = "  " if item.startswith("- ") else ""
        lines += wrapper.wrap(item)
    return "\n".join(lines)


def continued(command: str) -> str:
    """A shell command in lines of at most 100 columns, broken between its arguments."""
    arguments = (shlex.quote(word).replace(" ", "\0") for word in shlex.split(command))
    wrapper = textwrap.TextWrapper(98, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = "    "
    return " \\\n".join(wrapper.wrap(" ".join(arguments))).replace("\0", " ")
