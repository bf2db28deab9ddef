"""The promises of reliability, R1 to R10, and where each is tested; bad disks, journals and clocks.

Kills have a file of their own (test_kill_storm), and so have hostile files and secrets
(test_hostile).
"""

from __future__ import annotations

import ast
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import TESTS, TOY, deterministic, finished, folders, harness

PROMISES = {
    "R1 a kill at any instant loses no finished image and corrupts nothing": [
        "test_kill_storm.test_a_breeze_of_kills_changes_nothing",
        "test_kill_storm.test_a_storm_of_kills_changes_nothing",
        "test_resume.test_a_killed_sweep_ends_in_the_same_bytes",
        "test_resume.test_a_torn_line_and_a_lost_image_are_made_good",
        "test_cli.test_a_second_writer_and_a_foreign_folder_are_refused",
        "test_reliability.test_a_full_disk_is_one_line_and_nothing_is_lost",
        "test_reliability.test_a_disk_that_fails_in_any_write_is_one_line_and_nothing_is_lost",
        "test_reliability.test_a_read_only_folder_is_one_line",
        "test_reliability.test_a_line_that_is_there_twice_counts_once",
    ],
    "R2 resumed is uninterrupted, for any kills and any shares": [
        "test_shards.test_two_shares_are_one_run",
        "test_shards.test_another_number_of_shares_draws_nothing_twice",
        "test_kill_storm.test_a_storm_of_kills_changes_nothing",
        "test_resume.test_generating_and_scoring_apart_gives_the_same",
        "test_reproducibility.test_every_kind_of_method_keeps_the_promise_of_constant_numerics",
        "test_reliability.test_a_clock_that_goes_backwards_changes_nothing",
    ],
    "R3 a finished sweep does not sample; one more point computes one point": [
        "test_resume.test_a_finished_sweep_draws_nothing_again",
        "test_sweeps.test_a_finished_sweep_builds_nothing_and_a_new_point_only_itself",
    ],
    "R4 planned = done + failed; a missing image is wrong": [
        "test_leaderboard.test_what_is_not_there_is_wrong_and_costs_are_per_delivered_image",
        "test_leaderboard.test_nothing_delivered_is_a_row_too",
        "test_cli.test_an_audit_passes_a_good_folder_and_finds_what_was_changed",
    ],
    "R5 a signal leaves a clean state within seconds; requeued runs end in the same bytes": [
        "test_sweeps.test_a_preempted_sweep_goes_on_until_it_is_the_same",
        "test_launchers.test_twenty_preemptions_in_a_row_change_nothing",
    ],
    "R6 out of memory: fewer slots, the same images": [
        "test_memory.test_where_memory_runs_out_the_run_goes_on_with_fewer_slots",
        "test_memory.test_where_one_job_is_too_much_the_run_stops",
        "test_memory.test_the_halved_sampler_is_alone",
        "test_memory.test_a_capture_without_memory_is_a_lack_of_memory",
        "test_memory.test_fewer_slots_need_invariant_rows_or_fast_numerics",
        "test_timings.test_memory_that_runs_out_is_told_from_other_errors",
    ],
    "R7 a failed job is recorded with its error and tried again; the sweep goes on and says so": [
        "test_resume.test_failed_jobs_are_recorded_and_retried_and_the_sweep_goes_on",
        "test_vlm.test_failures_are_tried_again_and_then_said",
        "test_vlm.test_a_time_out_is_a_failure",
        "test_judges.test_what_a_run_gets_from_an_endpoint",
        "test_judges.test_failed_images_are_drawn_again_and_equal_an_undisturbed_run",
        "test_tiif_judge.test_a_slow_judge_is_asked_in_parallel_and_answers_in_order",
        "test_tiif_judge.test_a_dead_judge_stops_the_run_which_then_goes_on",
        "test_tiif_judge.test_images_without_a_reply_are_asked_about_again",
    ],
    "R8 published numbers follow from their journals": [
        "test_board.test_the_bundled_tables_follow_from_their_journals",
        "test_board.test_the_command_of_its_readme_makes_the_bundled_board",
    ],
    "R9 bad input is refused with the value and the remedy": [
        "test_cli.test_bad_input_is_refused_in_one_line",
        "test_reproducibility.test_bad_options_are_one_line",
        "test_llamagen.test_a_bad_checkpoint_is_one_line",
        "test_janus.test_a_checkpoint_of_another_size_is_refused",
        "test_language_loading.test_bad_files_are_one_line",
        "test_language_loading.test_sizes_that_no_model_has_are_one_line",
        "test_geneval_files.test_a_bad_line_is_named_by_number_and_problem",
        "test_tiif_files.test_other_files_are_refused_or_marked",
        "test_tiif_files.test_malformed_rows_are_named",
    ],
    "R10 data only, pinned; names stay inside; keys stay outside": [
        "test_hostile",
        "test_janus.test_damaged_and_dangerous_files_are_refused",
        "test_image_decoders.test_an_archive_that_would_run_code_is_refused",
        "test_image_decoders.test_a_bad_vqgan_is_one_line",
        "test_geneval_detector.test_a_clip_checkpoint_is_read_as_weights_only",
        "test_download.test_what_is_not_the_file_is_not_kept",
        "test_download.test_a_changed_file_of_the_cache_is_refused",
        "test_cli.test_a_file_name_from_data_cannot_leave_the_run_folder",
        "test_report.test_names_in_journals_cannot_reach_outside",
        "test_report.test_data_files_are_ascii_and_cannot_end_a_script",
        "test_vlm.test_the_key_does_not_follow_a_redirection_and_does_not_come_back",
    ],
}


def list_tests(file: str) -> list[str]:
    """List the functions of a test file."""
    tree = ast.parse((TESTS / f"{file}.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.split()[0])
def test_every_promise_has_its_tests(promise: str) -> None:
    for test in PROMISES[promise]:
        file, _, name = test.partition(".")
        functions = list_tests(file)
        is_there = name in functions if name else bool(functions)
        assert is_there, f"{promise}: {test} is gone"


# ------------------------------------------------------------------ disks

RUN = (*TOY, "benchmark.prompts=3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return finished(tmp_path_factory.mktemp("undisturbed"), *RUN)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own, of 4 MB, with the options given."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size=4m,{options}", "none", str(disk)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(
                "no file system may be mounted here; the disk that fails in any write stands for it"
            )
        return disk

    yield mount
    if shutil.which("umount"):
        subprocess.run(["umount", str(disk)], capture_output=True)


def list_errors(output: str) -> list[str]:
    """List the errors that a command printed, in a line each."""
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error: ")]


def fill_disk(file: Path) -> None:
    """Write into a file until the disk is full."""
    with pytest.raises(OSError), file.open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
            ballast.flush()


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    small_disk: Callable[[str], Path], undisturbed: dict[str, object]
) -> None:
    disk = small_disk("rw")
    code, output = harness(disk, *RUN, "stages=[generate,score]")
    assert code == 0, output
    (folder,) = folders(disk)
    journal = folder / "records-0.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    kept = "".join(lines[:2])
    journal.write_text(kept)

    fill_disk(disk / "ballast")
    for stages in ("generate,score", "report"):
        code, output = harness(disk, *RUN, f"stages=[{stages}]")
        (error,) = list_errors(output)
        assert code == 2
        assert "No space left on device" in error and "make room" in error
    assert journal.read_text().startswith(kept)

    # The report's page needs more than this disk has.
    (disk / "ballast").unlink()
    shutil.copytree(disk / "results", disk.parent / "results")
    code, output = harness(disk.parent, *RUN)
    assert code == 0, output
    assert deterministic(disk.parent) == undisturbed


def test_a_disk_that_fails_in_any_write_is_one_line_and_nothing_is_lost(
    tmp_path: Path, undisturbed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of which the first, the fourth and the seventh durable step fails, and then one of which
    none does.
    """
    fsync = os.fsync
    left = 0
    number = 0

    def fail_in_time(fd: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_in_time)
    for left, number in ((0, errno.EROFS), (3, errno.ENOSPC), (6, errno.EIO)):  # noqa: B007
        code, output = harness(tmp_path, *RUN, "stages=[generate,score]")
        (error,) = list_errors(output)
        assert code == 2
        for words in (os.strerror(number), "results", "the same command"):
            assert words in error
        assert not list(tmp_path.rglob(".*.png.*"))
    monkeypatch.setattr(os, "fsync", fsync)

    found = finished(tmp_path, *RUN)
    expected = dict(undisturbed)
    (records,) = [name for name in found if name.endswith("/records")]
    assert set(found.pop(records)) == set(expected.pop(records))  # type: ignore[call-overload]
    assert found == expected


def test_a_read_only_folder_is_one_line(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk = small_disk("ro")
    for command in ([*RUN], [*RUN, "stages=[report]"]):
        code, output = harness(tmp_path, *command, f"results={disk}/results")
        (error,) = list_errors(output)
        assert code == 2
        assert str(disk) in error
        assert "Read-only" in error or "no such results folder" in error


def test_a_line_that_is_there_twice_counts_once(
    tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    harness(tmp_path, *RUN)
    (folder,) = folders(tmp_path)
    for journal in ("records-0.jsonl", "scores.jsonl"):
        lines = (folder / journal).read_text().splitlines(keepends=True)
        (folder / journal).write_text("".join([*lines, lines[0]]))
    code, output = harness(tmp_path, *RUN)
    assert code == 0
    assert "6 done, 0 to draw" in output
    assert deterministic(tmp_path)["csv"] == undisturbed["csv"]


# ------------------------------------------------------------------ clocks


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, undisturbed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day may change under a run; what lasts is measured with clocks that only go forward."""
    now = 2e9

    def go_backwards() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr("time.time", go_backwards)
    assert finished(tmp_path, *RUN) == undisturbed
    (folder,) = folders(tmp_path)
    assert '_s":-' not in (folder / "records-0.jsonl").read_text()
