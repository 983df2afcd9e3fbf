"""Files of prompts: lines of text or JSON, and a broken line named by number."""

import pytest

from data.prompts import Prompt, read_prompts


def test_text_is_a_prompt_a_line_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\n\n  {not json \n", encoding="utf-8-sig")
    assert read_prompts(path) == [Prompt("a red ball"), Prompt("{not json")]


def test_json_lines_say_seed_and_negative(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "seed": 3}\n{"prompt": "", "negative": "b"}\n')
    assert read_prompts(path) == [Prompt("a", 3), Prompt("", None, "b")]


@pytest.mark.parametrize(
    "line",
    ["a red ball", '{"seed": 1}', '{"prompt": 1}', '{"prompt": "a", "seed": "1"}', '{"prompt": "a", "seed": -1}', "[]",
     '{"prompt": "a", "sed": 1}', '{"prompt": "a", "seed": true}', "[" * 100_000],
)  # fmt: skip
def test_broken_line_is_named_by_number(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 3 is n.*mend that line"):
        read_prompts(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_file_without_a_prompt_is_refused(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts.txt (has no prompt|cannot be read)"):
        read_prompts(path)
