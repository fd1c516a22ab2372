"""Axes that are one, their parts, and contradictions."""

import pytest

from mutransfer.growth.layout import Axis, divide, join, pieces, product, split_any, unify
from mutransfer.growth.maps import Matching, Unreadable


def sizes(axis: Axis) -> list[int]:
    return [leaf.size for leaf in axis.leaves()]


def test_a_view_of_one_use_refines_every_other() -> None:
    a, b = Axis(12), Axis(12)
    unify(a, b)
    assert divide([a], [3, 4]) is not None and sizes(b) == [3, 4]


def test_two_views_have_common_factors() -> None:
    a, b = Axis(24), Axis(24)
    divide([a], [2, 12])
    divide([b], [6, 4])
    unify(a, b)
    assert sizes(a) == sizes(b) == [2, 3, 4]
    c = Axis(24)
    divide([c], [3, 8])
    unify(c, a)
    assert a.find().trouble and c.find().trouble, "3·8 and 2·3·4 have no common refinement"


def test_cut_and_viewed_the_same_way() -> None:
    """Three equal parts by slices and three by a view are the same; what is known of one part then holds for all."""
    cut, viewed = Axis(24), Axis(24)
    query, *_ = pieces(cut, (8, 16))
    divide([viewed], [3, 8])
    unify(cut, viewed)
    divide([query], [2, 4])
    assert sizes(viewed) == [3, 2, 4] and not cut.find().trouble


def test_unequal_parts_of_whole_heads() -> None:
    """Query, key and value of 4, 2 and 2 heads of 8, seen first as (8 heads, 8) and then cut."""
    fused = Axis(64)
    parts = divide([fused], [8, 8])
    assert parts is not None
    pieces(parts[0], (4, 6))
    cut = pieces(fused, (32, 48))
    assert [p.size for p in cut] == [32, 16, 16] and sizes(cut[0]) == [4, 8]
    assert all(p.leaves()[-1] is cut[0].leaves()[-1] for p in cut), "one head size"


def test_halves_that_change_places_are_alike() -> None:
    """Rotary positions: x·cos + [−x₂, x₁]·sin makes the two halves one axis."""
    x = Axis(8)
    first, second = pieces(x, (4,))
    unify(x, join([second, first]))
    assert first.find() is second.find()


def test_pairs_are_the_inner_factor() -> None:
    halves = split_any(Axis(8), 2)
    assert halves is not None and [h.size for h in halves] == [4, 2]


def test_sizes_that_differ_are_a_mismatch() -> None:
    a, b = Axis(4), Axis(6)
    unify(a, b)
    assert a.mismatch and "6" in a.trouble


def test_a_factor_of_one_is_placed_where_other_tensors_say() -> None:
    """Base (groups, 2), target (groups, 2, 2): whichever of the two is new, an axis seen alone decides it."""
    for new_is_outer in (True, False):
        g, i = Axis(2), Axis(2)
        G, new, inner = Axis(2), Axis(2), Axis(2)
        matching = Matching()
        matching.learn(i, inner)
        small = product([g, i])
        big = product([G, new, inner] if new_is_outer else [G, inner, new])
        expected = [0, 1, 0, 1, 2, 3, 2, 3] if new_is_outer else [0, 0, 1, 1, 2, 2, 3, 3]
        assert matching.map(small, big).index().tolist() == expected


def test_different_structures_are_unreadable() -> None:
    cut, whole = Axis(6), Axis(12)
    pieces(cut, (2,))
    with pytest.raises(Unreadable, match=r"\[2, 4\]"):
        Matching().map(cut, whole)
    with pytest.raises(Unreadable, match="shrinks"):
        Matching().map(Axis(8), Axis(4))
    with pytest.raises(Unreadable, match="no whole multiple: take 4 or 8"):
        Matching().map(Axis(4), Axis(6))
    assert Matching(uneven=True).map(Axis(4), Axis(6)).index().tolist() == [0, 0, 1, 2, 2, 3]
