"""The disk: hyperplanes lie where logits vanish, pictures repeat byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypimg.errors import UserError
from hypimg.figures import CLASS_COLOURS, LIGHT, disk, every, read_scores
from hypimg.geometry.hyperplanes import mlr_logits

angles = st.floats(0, 2 * np.pi)


def at(radius: float, angle: float) -> np.ndarray:
    return radius * np.array([np.cos(angle), np.sin(angle)])


@settings(max_examples=50)
@given(st.floats(0, 0.999), angles, st.floats(1e-3, 1e3), angles, st.sampled_from([0.05, 1.0, 10.0]))
def test_the_logit_is_zero_along_the_hyperplane(radius, direction, length, turn, c):
    offset, normal = at(radius / c**0.5, direction), at(length, turn)
    arc = disk.hyperplane(offset, normal, c)[1:-1]
    unit = normal / length  # the logit grows with ‖a‖; a unit normal leaves λ_p times the signed distance
    logits = mlr_logits(*(torch.from_numpy(array) for array in (arc, offset[None], unit[None])), c)
    conformal = 2 / (1 - radius**2)
    assert (logits.abs() <= 1e-5 * conformal).all()


@settings(max_examples=50)
@given(st.floats(0, 0.999), angles, st.floats(1e-3, 1e3), angles, st.sampled_from([0.05, 1.0, 10.0]))
def test_the_hyperplane_lies_in_the_ball_and_ends_on_its_boundary(radius, direction, length, turn, c):
    arc = disk.hyperplane(at(radius / c**0.5, direction), at(length, turn), c)
    norms = c**0.5 * np.linalg.norm(arc, axis=1)
    assert (norms[1:-1] < 1).all()
    np.testing.assert_allclose(norms[[0, -1]], 1, atol=1e-12)


def test_the_hyperplane_through_the_origin_is_a_diameter():
    arc = disk.hyperplane(np.zeros(2), np.array([0.0, 3.0]), c=4.0, count=5)
    np.testing.assert_allclose(arc[[0, 2, 4]], [[-0.5, 0], [0, 0], [0.5, 0]], atol=1e-15)


@pytest.mark.parametrize("c", [0.1, 0.0])
def test_the_picture_repeats_byte_for_byte_whatever_the_readers_settings(stored_scores, tmp_path, c):
    import matplotlib

    scores = stored_scores("run", c=c)
    first = disk.draw(scores, tmp_path / "first")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        second = disk.draw(scores, tmp_path / "second")
    assert [path.name for path in first] == ["disk.png", "disk.pdf", "disk.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_picture_changes_with_the_points(stored_scores, tmp_path):
    pictures = [disk.draw(stored_scores(name), tmp_path / name)[0].read_bytes() for name in ("a", "other")]
    assert pictures[0] != pictures[1]


def test_the_caption_counts_what_was_drawn(stored_scores, tmp_path):
    text = disk.draw(stored_scores("run", count=4000), tmp_path)[2].read_text()
    assert f"{disk.MOST_POINTS:,} of 4,000" in text
    assert f"{disk.MOST_OUTLIERS:,} of 8,000 outliers" in text
    assert "clip sphere" in text


def test_a_head_without_hyperplanes_is_drawn_without_them(stored_scores, tmp_path):
    scores = stored_scores("run")
    kept = {name: array for name, array in read_scores(scores).items() if name not in ("offsets", "normals")}
    np.savez(scores, **kept)
    assert "logit" not in disk.draw(scores, tmp_path)[2].read_text()


def test_only_dimension_two_can_be_drawn(stored_scores, tmp_path):
    with pytest.raises(UserError, match=r"^dim=3: only embeddings of dimension 2"):
        disk.draw(stored_scores("run", dim=3), tmp_path)


def test_damaged_scores_end_in_one_line(tmp_path):
    path = tmp_path / "scores.npz"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="cannot be read"):
        disk.draw(path, tmp_path)


@settings(max_examples=50)
@given(st.lists(st.floats(-np.pi, np.pi), max_size=10))
def test_badges_are_spread_to_the_gap_and_keep_their_order(directions):
    gap = 0.2
    moved = disk.spread(np.array(directions), gap)
    ordered = np.sort(moved)
    assert (np.diff(ordered, append=ordered[:1] + 2 * np.pi) > 0.9 * gap).all() or len(moved) < 2
    assert (np.argsort(moved, kind="stable") == np.argsort(directions, kind="stable")).all()


def test_badges_far_apart_stay_where_they_are():
    directions = np.array([2.0, -1.0, 0.5])
    np.testing.assert_array_equal(disk.spread(directions, gap=0.2), directions)


@pytest.mark.parametrize(("count", "at_most"), [(10, 3), (3, 10), (13180, 600), (0, 5)])
def test_points_shown_are_evenly_spaced(count, at_most):
    shown = every(np.zeros((count, 2)), at_most)
    assert len(shown) == min(count, at_most) == len(set(shown))
    steps = np.diff(shown)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_badge_text_is_legible_on_every_class_colour():
    for index, colour in enumerate(CLASS_COLOURS):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        contrast = (luminance + 0.05) / 0.05 if index in LIGHT else 1.05 / (luminance + 0.05)
        assert contrast > 3, colour  # WCAG 2, large or bold text
