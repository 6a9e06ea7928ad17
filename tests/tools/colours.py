"""The colours of a page, and whether one can be read on another."""

from __future__ import annotations

import re

import numpy as np

from sparse_evidence.hpo.pages.html import stylesheet


def palettes(verb: str) -> list[dict[str, str]]:
    """The colours of a verb's page by name: light, dark by the system's setting, dark by the page's own."""
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", stylesheet(verb))
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted([_luminance(first), _luminance(second)])
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
