"""Pictures are small where a test is about them, and elsewhere there are none: they are most of a report's time."""

import pytest

from nanogpt.tracking import plots
from nanogpt.tracking.plots import DARK, LIGHT

DRAWN = (  # tests of what is odd in a picture
    "test_whatever_runs_say_is_text",
    "test_half_a_study_says_so",
    "test_every_axis_of_the_curves[flops]",
    "test_every_axis_of_the_curves[time]",
    "test_many_settings_of_many_keys",
    "test_other_texts_and_other_precisions_are_ranked_apart",
    "test_the_page_and_the_terminal",
    "test_a_study_of_run_directories",
    "test_each_format_has_its_files",
    "test_the_same_runs_give_the_same_plots",
    "test_a_report_of_one_run_is_its_loss_curve",
)


@pytest.fixture(autouse=True)
def pictures_drawn(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Draw on light and dark paper in tests of grids, on light paper in those of DRAWN, and nothing in others."""
    if "test_coordinates" not in request.node.nodeid:  # where the size of the picture is checked
        monkeypatch.setattr(plots, "DPI", 30)
    looks = (LIGHT, DARK) if "grid" in request.node.name else (LIGHT,) if request.node.name in DRAWN else ()
    whole = plots.render
    monkeypatch.setattr(plots, "render", lambda size, look, *how: whole(size, look, *how) if look in looks else b"")
