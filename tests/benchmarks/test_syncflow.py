"""benchmarks/syncflow.py: what is trained and swept, without the minutes that it takes; the curves of its logs."""

import json
from pathlib import Path

from benchmarks import syncflow


def test_ablations_sweep_guidance_and_train_what_the_rows_ask_for(monkeypatch):
    """Rows S31 and S32: text alone, and w in {1,2,4,6,8}, each judged as the others are."""
    trained, judged = [], []
    run = object.__new__(syncflow.Run)
    monkeypatch.setattr(run, "trained", lambda *how: trained.append(how) or Path(how[0]), raising=False)
    monkeypatch.setattr(run, "text_to_both", lambda *how: judged.append(how) or {"f1": 1.0}, raising=False)
    monkeypatch.setattr(run, "sound_for_pictures", lambda run: {"f1": 1.0}, raising=False)
    found = run.ablations(Path("video"), Path("audio"))
    swept = {how[-1]: found[f"guidance_{how[-1]}"] for how in judged if "--cfg-scale" in how}
    assert list(swept) == [1, 2, 4, 6, 8] and all(figures == {"f1": 1.0} for figures in swept.values())
    assert ("text-only", "audio", Path("video"), "--variant", "text-only") in trained
    assert ("joint", "joint", Path("audio"), "--lr", 2e-4) in trained


def test_curve_of_a_run_has_the_loss_of_both_sides_at_every_line_of_its_log(tmp_path):
    """Row S30."""
    lines = [
        {"step": step, "held_out_loss_video": 1 / step, "held_out_loss_audio": 2 / step, "loss": 3}
        for step in (50, 100)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert syncflow.curve(tmp_path) == [(50, 0.02, 0.04), (100, 0.01, 0.02)]
