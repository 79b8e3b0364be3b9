"""Capital letters and digits of 3 x 5 points, so that a picture can be labelled without a library for fonts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GLYPHS: dict[str, str] = {
    " ": "... ... ... ... ...", "0": "### #.# #.# #.# ###", "1": ".#. ##. .#. .#. ###", "2": "### ..# ### #.. ###",
    "3": "### ..# .## ..# ###", "4": "#.# #.# ### ..# ..#", "5": "### #.. ### ..# ###", "6": "### #.. ### #.# ###",
    "7": "### ..# .#. .#. .#.", "8": "### #.# ### #.# ###", "9": "### #.# ### ..# ###", "A": ".#. #.# ### #.# #.#",
    "B": "##. #.# ##. #.# ##.", "C": ".## #.. #.. #.. .##", "D": "##. #.# #.# #.# ##.", "E": "### #.. ##. #.. ###",
    "F": "### #.. ##. #.. #..", "G": ".## #.. #.# #.# .##", "H": "#.# #.# ### #.# #.#", "I": "### .#. .#. .#. ###",
    "J": "..# ..# ..# #.# .#.", "K": "#.# #.# ##. #.# #.#", "L": "#.. #.. #.. #.. ###", "M": "#.# ### ### #.# #.#",
    "N": "##. #.# #.# #.# #.#", "O": ".#. #.# #.# #.# .#.", "P": "##. #.# ##. #.. #..", "Q": ".#. #.# #.# ### .##",
    "R": "##. #.# ##. #.# #.#", "S": ".## #.. .#. ..# ##.", "T": "### .#. .#. .#. .#.", "U": "#.# #.# #.# #.# ###",
    "V": "#.# #.# #.# #.# .#.", "W": "#.# #.# ### ### #.#", "X": "#.# #.# .#. #.# #.#", "Y": "#.# #.# .#. .#. .#.",
    "Z": "### ..# .#. #.. ###", ".": "... ... ... ... .#.", "/": "..# ..# .#. #.. #..", "%": "#.# ..# .#. #.. #.#",
    "-": "... ... ### ... ...", ":": "... .#. ... .#. ...", "+": "... .#. ### .#. ...",
}  # fmt: skip


def draw_text(
    canvas: NDArray[np.uint8], x: int, y: int, words: str, colour: tuple[int, int, int], *, scale: int = 1
) -> None:
    """Write `words` on `canvas` with the upper left corner at (x, y); what has no room is cut off.

    Args:
        canvas: ``[height, width, 3]``, changed in place.
        x, y: in points of the canvas.
        words: letters are written as capitals, unknown characters as spaces.
        colour: red, green, blue.
        scale: how large a point is.
    """
    for at, character in enumerate(words.upper()):
        dots = _dots(character).repeat(scale, axis=0).repeat(scale, axis=1)
        left = x + at * 4 * scale
        part = canvas[y : y + dots.shape[0], left : left + dots.shape[1]]
        part[dots[: part.shape[0], : part.shape[1]]] = colour


def _dots(character: str) -> NDArray[np.bool_]:
    rows = GLYPHS.get(character, GLYPHS[" "]).split()
    return np.array([[point == "#" for point in row] for row in rows])
