"""Axis maps: what each unit copies, how maps compose, and how they are written."""

import pytest
import torch

from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.maps import declared, parse

HEADS = AxisMap.product(AxisMap(2, 4), AxisMap(3, 3))
QKV = AxisMap.join(HEADS, AxisMap.product(AxisMap(1, 2), AxisMap(3, 3)))


def test_copies_stand_side_by_side() -> None:
    assert AxisMap(3, 6).index().tolist() == [0, 0, 1, 1, 2, 2]
    assert AxisMap(3, 5).index().tolist() == [0, 0, 1, 1, 2]  # no whole multiple: as even as can be
    assert AxisMap(3, 5).copies().tolist() == [2, 2, 2, 2, 1]


def test_heads_are_copied_whole_and_parts_one_after_another() -> None:
    assert HEADS.index().tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert QKV.index().tolist() == [*HEADS.index().tolist(), 6, 7, 8, 6, 7, 8]
    assert AxisMap.product(AxisMap(2, 2), AxisMap(2, 4)).index().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("axis", [AxisMap(3, 6), AxisMap(3, 5), HEADS, QKV, AxisMap.join(AxisMap(2, 2), AxisMap(2, 6))])
def test_the_first_copy_of_every_unit_is_found(axis: AxisMap) -> None:
    assert torch.equal(axis.index()[axis.first()], torch.arange(axis.base))
    assert all(axis.index()[: axis.first()[unit]].ne(unit).all() for unit in range(axis.base))
    assert int((1 / axis.copies()).sum().round()) == axis.base


def test_growing_twice_is_growing_once() -> None:
    """Copies of copies: `(i // k₂) // k₁ = i // (k₁k₂)`, in every form."""
    for once, first, then in (
        (AxisMap(3, 18), AxisMap(3, 6), AxisMap(6, 18)),
        (
            AxisMap.product(AxisMap(2, 8), AxisMap(3, 3)),
            HEADS,
            AxisMap.product(AxisMap(4, 8), AxisMap(3, 3)),
        ),
    ):
        assert torch.equal(once.index(), first.index()[then.index()])


def test_only_equal_numbers_of_copies_are_whole() -> None:
    assert HEADS.whole and QKV.whole and AxisMap(3, 6).whole
    assert not AxisMap(3, 5).whole and not AxisMap(3, 5).divides
    uneven = AxisMap.join(AxisMap(4, 8), AxisMap(2, 2))  # queries are copied, the keys they share are not
    assert uneven.divides and not uneven.whole


@pytest.mark.parametrize("axis", [AxisMap(7, 7), AxisMap(3, 6), HEADS, QKV, AxisMap.join(HEADS, HEADS, HEADS)])
def test_what_is_printed_can_be_declared(axis: AxisMap) -> None:
    assert parse(str(axis)) == axis
    assert parse(str(axis).replace("→", "->").replace("·", "*").replace("×", "x")) == axis
    assert AxisMap.from_dict(axis.to_dict()) == axis


@pytest.mark.parametrize("text", ["", "a", "3→", "3→2", "0→4", "2→4·", "2→4 |", "3×[2→4", "(2→4", "2→4)", "2 4"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"write 4→8 for copied units"):
        parse(text)


def test_declared_maps_must_fit() -> None:
    maps = {"*.qkv.weight": {0: "2→4·3", -1: "4→8"}}
    assert declared(maps, "a.qkv.weight", (6, 4), (12, 8)) == {0: HEADS, 1: AxisMap(4, 8)}
    assert declared(maps, "a.other", (6, 4), (12, 8)) == {}
    with pytest.raises(InputError, match=r"axis 0 of 'a.qkv.weight' goes from 8 to 16, but '2→4·3' from 6 to 12"):
        declared(maps, "a.qkv.weight", (8, 4), (16, 8))
    with pytest.raises(InputError, match="has no axis 2"):
        declared({"*": {2: "4→8"}}, "w", (4,), (8,))
    for broken in ({"base": 2, "target": 4, "form": "product"}, {"base": 2}, {"base": 0, "target": 4, "form": "copy"}):
        with pytest.raises(InputError, match="not an axis map"):
            AxisMap.from_dict(broken)
