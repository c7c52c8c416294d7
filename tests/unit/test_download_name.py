"""The name of a downloaded clip: from any prompt, a harmless one."""

from __future__ import annotations

import re
from email.message import Message
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltxq.download_name import content_disposition, download_name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red fox, in the snow!", "A-red-fox-in-the-snow-42.mp4"),
        ("../../etc/passwd", "etc-passwd-42.mp4"),
        ("a\r\nSet-Cookie: x=1", "a-Set-Cookie-x-1-42.mp4"),
        ('"; rm -rf ~ #', "rm-rf-42.mp4"),
        (".hidden", "hidden-42.mp4"),
        ("une forêt d'été", "une-forêt-d-été-42.mp4"),
        ("雪の中の狐", "雪の中の狐-42.mp4"),
        ("बर्फ में लोमड़ी", "बर्फ-में-लोमड़ी-42.mp4"),
        ("\u202etxt.exe", "txt-exe-42.mp4"),
        ("\ud800 🦊 \x00", "clip-42.mp4"),
        ("word " * 100, "-".join(["word"] * 12) + "-42.mp4"),
        ("x" * 500, "x" * 60 + "-42.mp4"),
        (f"a fox{' ' * 4000}in the snow", "a-fox-42.mp4"),  # reading it costs little
    ],
)
def test_a_name_is_the_first_words_and_the_seed(prompt: str, name: str) -> None:
    assert download_name(prompt, 42) == name


@given(st.text(), st.integers(0, 2**53 - 1) | st.none())
def test_no_prompt_makes_a_path_or_breaks_a_header(prompt: str, seed: int | None) -> None:
    name = download_name(prompt, seed)
    assert len(name.encode()) < 200
    assert name.isprintable()
    assert not re.search(r'[/\\:*?"<>|\s]', name)
    assert not name.startswith((".", "-", "~"))
    header = content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    message = Message()
    message["content-disposition"] = header
    star = re.search(r"filename\*=UTF-8''(\S+)$", header)
    plain = re.search(r'filename="([A-Za-z0-9._-]+)"', header)
    assert plain
    assert (unquote(star[1]) if star else plain[1]) == name
