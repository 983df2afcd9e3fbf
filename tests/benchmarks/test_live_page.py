"""benchmarks/live_page.py: what a viewer who stays sees and what the server takes, told without a browser and with."""

import json

import pytest

from benchmarks import live_page
from tests.serving.browser import needs_chromium


def test_memory_that_grows_at_the_end_is_told_and_that_which_only_begins_is_not():
    begins, grows = [0.5, 0.9, *[1.0] * 10], [*[1.0] * 8, 1.0, 1.01, 1.02, 1.04]
    assert live_page.memory(begins)["spread_of_last_third"] == 0
    assert live_page.memory(grows)["spread_of_last_third"] == pytest.approx(0.04, rel=0.02)
    assert live_page.memory(grows) | {"spread_of_last_third": 0} == {
        "third": 1.0, "end": 1.04, "most": 1.04, "spread_of_last_third": 0}  # fmt: skip


def test_times_that_never_came_count_for_themselves():
    found = live_page.quantiles([3.0, None, 1.0, 2.0])
    assert found == {"count": 3, "missed": 1, "p50": 2.0, "p99": 3.0, "most": 3.0, "soon": 0.25}
    assert live_page.quantiles([None]) == {"count": 0, "missed": 1}


def test_time_for_less_than_three_clicks_and_a_wrong_model_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(live_page, "FOUND", "chromium")
    with pytest.raises(SystemExit):
        live_page.main(["--minutes", "0.1"])
    assert "give at least 0.5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did not begin"), live_page.serving("/nowhere"):
        pass


@pytest.mark.slow
@pytest.mark.browser
@needs_chromium
def test_a_viewer_who_stays_for_half_a_minute(tmp_path, capsys):
    from tests.given import tiny

    tiny().save(tmp_path / "export")
    live_page.main(["--model-ckpt", str(tmp_path / "export"), "--minutes", "0.5", "--every", "8", "--out",
                    str(tmp_path / "x.json")])  # fmt: skip
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["clicked"] == 3 and found["clicks"]["count"] == 3 and found["restarts"] == 0
    assert found["played_s"] == pytest.approx(found["watched_s"], rel=0.1) and found["memory"]["server"]["end"] > 0.1
    assert "picture to sound" in capsys.readouterr().out
