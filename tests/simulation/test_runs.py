"""A long run may be stopped at any time, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from clorefleet.domain.errors import BadInput
from clorefleet.simulation.__main__ import main
from clorefleet.simulation.runs import RunFile, source_hash, tally


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lives.jsonl"


def test_a_run_goes_on_from_its_file_and_the_table_covers_all_of_it(
    file: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--seeds", "2", "--first", "1", "--jobs", "1", "--into", str(file)]) == 0
    assert "2 simulated lives" in capsys.readouterr().out
    assert main(["--seeds", "3", "--first", "1", "--jobs", "1", "--into", str(file)]) == 0
    said = capsys.readouterr().out
    assert "2 lives were lived before; 1 in" in said and "3 simulated lives" in said
    assert [each.seed for each in RunFile(file, source_hash()).lives] == [1, 2, 3]


def test_what_is_read_back_is_what_was_lived(file: Path):
    lived = tally(2)
    RunFile(file, "a").add([lived])
    assert RunFile(file, "a").lives == [lived]


def test_a_chunk_whose_line_is_torn_is_lived_again(file: Path):
    lived = tally(2)
    RunFile(file, "a").add([lived])
    whole = file.read_text()
    RunFile(file, "a").add([lived])
    file.write_text(file.read_text()[:-40])
    again = RunFile(file, "a")
    assert again.lives == [lived]
    again.add([lived])
    assert RunFile(file, "a").lives == [lived, lived] and file.read_text().startswith(whole)


@pytest.mark.parametrize("first_line", ['{"simulated lives of source":"b"}', "seed,outcome", "[1]"])
def test_a_file_of_other_code_is_refused_and_left_as_it_is(file: Path, first_line: str):
    file.write_text(first_line + "\n")
    with pytest.raises(BadInput, match="other code"):
        RunFile(file, "a")
    assert file.read_text() == first_line + "\n"
    assert main(["--seeds", "1", "--into", str(file)]) == BadInput.exit_code


def test_the_source_hash_changes_with_any_byte_and_name_of_the_package(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\n")
    seen = {source_hash(tmp_path)}
    (tmp_path / "a.py").write_text("x = 2\n")
    seen.add(source_hash(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    seen.add(source_hash(tmp_path))
    assert len(seen) == 3
