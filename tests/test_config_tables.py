from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta
from msgspec.inspect import type_info

from edgefed.config_tables import build, describe
from edgefed.errors import ConfigError


class Square(msgspec.Struct, frozen=True, tag="square"):
    side: float


class Circle(msgspec.Struct, frozen=True, tag="circle"):
    radius: float = 1.0


class Drawing(msgspec.Struct, frozen=True):
    shape: Square | Circle = Circle()


class Bare(msgspec.Struct, frozen=True):
    shape: Square | Circle


class TestTaggedTables:
    def test_tag_chooses_the_struct(self) -> None:
        assert build(Drawing, {"shape": {"type": "square", "side": 2}}, "f") == Drawing(Square(2.0))

    def test_default_says_which_where_nothing_does(self) -> None:
        assert build(Drawing, {"shape": {"radius": 2.0}}, "f") == Drawing(Circle(2.0))

    def test_keys_of_the_other_struct_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"f: shape.side is not a known key; allowed in \[shape\]: type, radius"):
            build(Drawing, {"shape": {"type": "circle", "side": 2.0}}, "f")

    def test_missing_keys_of_the_chosen_struct(self) -> None:
        with pytest.raises(ConfigError, match=r"f: shape\.side is missing"):
            build(Drawing, {"shape": {"type": "square"}}, "f")

    @pytest.mark.parametrize("tag", ["triangle", 3, ["square"]])
    def test_unknown_tags(self, tag: object) -> None:
        with pytest.raises(ConfigError, match=r'f: shape\.type is .*; allowed is one of "square", "circle"'):
            build(Drawing, {"shape": {"type": tag}}, "f")

    def test_tag_must_be_given_where_nothing_is_the_default(self) -> None:
        with pytest.raises(ConfigError, match=r'shape\.type is not given; allowed is one of "square", "circle"'):
            build(Bare, {"shape": {"side": 1.0}}, "f")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, Meta(ge=1, le=9)], "a whole number from 1 to 9"),
        (Annotated[int, Meta(gt=0)], "a whole number, above 0"),
        (Annotated[float, Meta(le=2)], "a number, 2 or less"),
        (float | None, "a number"),
        (bool, "true or false"),
        (str, "text"),
        (Literal["a", "b"], 'one of "a", "b"'),
        (list[str], "a list of any number, each text"),
        (dict[str, int], "a table whose values are a whole number"),
        (Square, "a table"),
        (Annotated[str, Meta(pattern="^x", description="text after x")], "text after x"),
        (list[Annotated[str, Meta(description="a span")]], "a list of any number, each a span"),
    ],
)
def test_describe(hint: object, words: str) -> None:
    assert describe(type_info(hint)) == words


def test_kinds_without_words_are_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="no words"):
        describe(type_info(bytes))
