"""Check that the tests of the guarantees in docs/reliability.md fail when the code that holds a guarantee is removed.

The tracked files are copied to a temporary folder. There, one mutation at a time is applied, and its tests must fail:

    python scripts/mutations.py                 all mutations, some minutes
    python scripts/mutations.py -k lock         those with "lock" in the promise, the file or a test

A test that does not pass without any mutation shows nothing, nor does a module that can no longer be imported: both are
reported, too. The exit code is 1 if any mutation is not caught.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILED = "bids_app/model/_scan*.so"
"""The native kernel: not tracked, but needed by tests."""
SECONDS = 120
"""Time limit of a test, s; a mutated program may wait forever."""
NOT_IMPORTED = re.compile(
    r"^E +(ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError)\b", re.MULTILINE
)
"""Errors of a mutation that breaks the program as a whole, instead of removing one guarantee."""
CAUGHT, SURVIVED = "failed as it should", "SURVIVED"
NOT_GREEN, BROKEN = "test was not green without the mutation", "the mutated module cannot be imported"


@dataclass(frozen=True)
class Mutation:
    """A change of the code that breaks one promise.

    Attributes
    ----------
    promise : str
    file : str
        Relative to the repository.
    code, replacement : str
        Text that occurs once in the file, and what replaces it.
    tests : tuple of str
        Tests that must fail, relative to ``tests/``; each of them.
    """

    promise: str
    file: str
    code: str
    replacement: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Change the file below a folder, and return its original text."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.code) != 1:
            raise ValueError(f"{self.file}: {self.code!r} occurs {text.count(self.code)} times.")
        path.write_text(text.replace(self.code, self.replacement), encoding="utf-8")
        return text


MUTATIONS: tuple[Mutation, ...] = (
    # 1. Results of an earlier run are no success of this one.
    Mutation(
        "results of other options do not count",
        "bids_app/workflow/engine.py",
        'return content if content.pop("stamp", None) == step.stamp else None',
        'return content if content.pop("stamp", None) else None',
        ("workflow/test_engine.py::test_results_of_an_earlier_run_do_not_hide_a_killed_step",),
    ),
    Mutation(
        "a step that always runs needs a result of this invocation",
        "bids_app/workflow/graph.py",
        'self.invocation if always else "",',
        '"",',
        (
            "workflow/test_graph.py::test_the_stamp_of_a_step_that_always_runs_depends_on_the_invocation",
            "workflow/test_engine.py::test_a_step_that_always_runs_needs_a_result_of_this_invocation",
        ),
    ),
    Mutation(
        "results that depend on a repeated step are deleted first",
        "bids_app/workflow/engine.py",
        "if needs_outdated or not self._is_done(step):",
        "if not self._is_done(step):",
        ("workflow/test_engine.py::test_what_depends_on_a_repeated_step_is_deleted_before_it_starts",),
    ),
    Mutation(
        "a folder that is deleted in part is no result",
        "bids_app/workflow/engine.py",
        "        (folder / DONE_FILE).unlink(missing_ok=True)  # first, ",
        "        # first, ",
        ("workflow/test_engine.py::test_a_folder_that_is_deleted_in_part_is_no_result",),
    ),
    Mutation(
        "a step whose program is killed ends in the same way",
        "bids_app/preprocess/registration/ants_program.py",
        "        os.kill(os.getpid(), -done.returncode)\n",
        "        return\n",
        ("preprocess/registration/test_ants_program.py::test_a_killed_program_ends_its_step_in_the_same_way",),
    ),
    Mutation(
        "threads of ANTs stay within the processors given",
        "bids_app/preprocess/registration/ants_program.py",
        '"shared" if threads > processors() else "own"',
        '"own"',
        ("preprocess/registration/test_ants_program.py::test_more_threads_than_processors_share_one",),
    ),
    Mutation(
        "linear registrations run on one thread, so that they have the same bits each time",
        "bids_app/preprocess/registration/ants.py",
        "SYN_THREADS if all(stage.is_syn for stage in stages) else 1",
        "SYN_THREADS",
        (
            "preprocess/registration/test_ants.py::test_syn_runs_on_two_threads_with_the_same_bits_and_linear_stages_on_one",
        ),
    ),
    Mutation(
        "volumes that were read do not stay in memory",
        "bids_app/preprocess/io/volumes.py",
        "self._mapped.madvise(mmap.MADV_DONTNEED)",
        "pass",
        ("preprocess/io/test_volumes.py::test_volumes_that_were_read_do_not_stay_in_memory",),
    ),
    Mutation(
        "finished steps are not looked at again",
        "bids_app/workflow/engine.py",
        "if name not in reused}",
        "}",
        ("workflow/test_engine.py::test_steps_that_are_reused_are_not_looked_at_by_nipype",),
    ),
    Mutation(
        "workers end with the run",
        "bids_app/workflow/pool.py",
        "    end_with_main_process()\n",
        "",
        ("workflow/test_engine.py::test_workers_exit_when_the_run_is_killed",),
    ),
    Mutation(
        "the step of a killed worker is repeated once",
        "bids_app/workflow/pool.py",
        "elif taskid in self._retries:",
        "elif False:",
        ("workflow/test_pool.py::test_a_step_whose_worker_was_killed_is_repeated_once",),
    ),
    Mutation(
        "a step whose process crashes says by which signal",
        "bids_app/workflow/pool.py",
        "return signal.Signals(numbers[0]) if numbers else signal.SIGKILL",
        "return signal.SIGKILL",
        ("workflow/test_pool.py::test_a_step_whose_workers_crash_says_by_which_signal",),
    ),
    # 2. Outputs of several invocations are not mixed.
    Mutation(
        "files that the next invocation does not make are removed",
        "bids_app/outputs/publish.py",
        "                path.unlink()\n",
        "",
        ("outputs/test_publish.py::test_files_that_the_next_invocation_does_not_make_are_removed",),
    ),
    Mutation(
        "files that the user changed are kept",
        "bids_app/outputs/publish.py",
        "if (used_by_others is not None or not is_shared) and _has_content(path, stamp):",
        "if (used_by_others is not None or not is_shared) and path.exists():",
        ("outputs/test_publish.py::test_a_file_that_the_user_changed_is_kept_and_is_no_output",),
    ),
    Mutation(
        "no file is written before the manifest names it",
        "bids_app/outputs/publish.py",
        "    write_manifest(target, publication.stem, part, manifest)\n",
        "",
        ("outputs/test_publish.py::test_a_publication_that_is_killed_leaves_no_unknown_file",),
    ),
    Mutation(
        "the anatomy is kept as long as a run uses it",
        "bids_app/outputs/publish.py",
        "used_by_others = _files_of_others(target, stem)",
        "used_by_others: set[str] | None = set()",
        ("outputs/test_publish.py::test_files_of_the_anatomy_are_kept_until_the_last_run_that_uses_them",),
    ),
    Mutation(
        "predictions of another preprocessing are removed",
        "bids_app/outputs/publish.py",
        "if base and model and base.complete and base.source != model.source:",
        "if False:",
        ("outputs/test_publish.py::test_predictions_are_removed_if_the_model_fails_after_another_preprocessing",),
    ),
    Mutation(
        "the hash of the configuration is in the sidecars",
        "bids_app/outputs/publish.py",
        " | {CONFIGURATION_KEY: configuration}",
        "",
        ("outputs/test_publish.py::test_sidecars_have_the_hash_of_the_configuration",),
    ),
    Mutation(
        "every option that decides numbers is hashed",
        "bids_app/workflow/configuration.py",
        "for section in (settings.preprocess, settings.model):",
        "for section in (settings.preprocess,):",
        ("workflow/test_configuration.py::test_every_option_counts_unless_it_changes_no_number",),
    ),
    Mutation(
        "the group level leaves out tables that the last invocation did not make",
        "bids_app/group/reading.py",
        "if not known.get(run.stem, RunFiles()).includes(name, outcomes.get(run.stem)):",
        "if False:",
        (
            "group/test_reading.py::test_tables_that_the_last_invocation_did_not_make_are_left_out",
            "group/test_reading.py::test_outputs_of_an_invocation_before_a_failure_are_left_out",
        ),
    ),
    Mutation(
        "a failed run has no outputs of before its failure",
        "bids_app/outputs/schema/manifest.py",
        "if outcome is not None and outcome.status != OK and name not in outcome.outputs:",
        "if False:",
        ("group/test_reading.py::test_outputs_of_an_invocation_before_a_failure_are_left_out",),
    ),
    # 3. Runs end one by one.
    Mutation(
        "the first run is finished before the last is begun",
        "bids_app/workflow/pool.py",
        'key=lambda i: self.plugin_args["order"][self.procs[i].name])',
        "key=lambda i: i)",
        ("workflow/test_engine.py::test_the_first_run_is_finished_before_the_last_is_begun",),
    ),
    Mutation(
        "--clean-workdir frees the scratch of a published run",
        "bids_app/workflow/participant.py",
        "if settings.clean_workdir and ends.is_ok(stem):",
        "if False:",
        ("workflow/test_ends.py::test_scratch_of_a_published_run_is_deleted_and_the_anatomy_stays_until_the_last_run",),
    ),
    Mutation(
        "--clean-workdir keeps the scratch of a failed run",
        "bids_app/workflow/participant.py",
        "            left = [steps[run.stem] for run in runs if run.stem in steps and not ends.is_ok(run.stem)]\n",
        "            left = []\n",
        ("workflow/test_ends.py::test_scratch_of_a_failed_run_stays",),
    ),
    Mutation(
        "a report that cannot be written does not stop other runs",
        "bids_app/workflow/ends.py",
        "            self._not_written[outcome.stem] = None\n",
        "            raise\n",
        ("workflow/test_ends.py::test_an_error_of_writing_a_report_does_not_stop_the_other_runs",),
    ),
    Mutation(
        "a report that could not be written is written at the end",
        "bids_app/workflow/participant.py",
        "            ends.repeat_failed_writing()\n",
        "",
        ("workflow/test_ends.py::test_a_report_that_could_not_be_written_is_written_at_the_end",),
    ),
    # 4. No code from the working folder.
    Mutation(
        "libraries read no settings from the working folder",
        "bids_app/cli/neurostorm.py",
        'with contextlib.chdir("/"), terminal_log(settings.verbosity):',
        "with terminal_log(settings.verbosity):",
        ("integration/test_working_folder.py::test_nothing_of_the_working_folder_is_executed_or_read",),
    ),
    # 5. No code from scratch.
    Mutation(
        "a pickle of another user is not executed",
        "bids_app/workflow/engine.py",
        "                    check_owner(path)\n",
        "                    pass\n",
        ("workflow/test_engine.py::test_a_pickle_that_another_user_planted_is_not_executed",),
    ),
    Mutation(
        "subfolders of scratch that others can write are refused",
        "bids_app/workflow/scratch.py",
        "if mode & (stat.S_IWGRP | stat.S_IWOTH):",
        "if False:",
        (
            "workflow/test_scratch.py::test_a_subfolder_that_is_not_private_is_refused",
            "integration/test_security.py::test_a_result_planted_in_scratch_that_others_can_write_is_not_unpickled",
        ),
    ),
    Mutation(
        "a parent in which all users can exchange folders is refused",
        "bids_app/workflow/scratch.py",
        "if folder.exists() and (mode := folder.stat().st_mode) & stat.S_IWOTH and not mode & stat.S_ISVTX:",
        "if False:",
        ("workflow/test_scratch.py::test_a_parent_in_which_all_users_can_exchange_folders_is_refused",),
    ),
    Mutation(
        "results and caches are accessible to their owner only",
        "bids_app/workflow/scratch.py",
        "            folder.chmod(0o700)\n",
        "",
        ("workflow/test_scratch.py::test_a_folder_that_others_could_only_read_is_closed_to_them",),
    ),
    # 6. Signals and locks.
    Mutation(
        "SIGTERM ends a run with its own exit code",
        "bids_app/cli/outcome.py",
        "code = EXIT_TERMINATED if isinstance(interruption, Terminated) else EXIT_INTERRUPTED",
        "code = EXIT_INTERRUPTED",
        ("integration/test_terminated.py::test_a_terminated_run_releases_its_locks_and_ends_its_workers",),
    ),
    Mutation(
        "a run that is blocked is killed after SIGTERM",
        "bids_app/workflow/supervisor.py",
        "            os.kill(run, signal.SIGKILL)\n",
        "            pass\n",
        ("workflow/test_supervisor.py::test_a_blocked_run_is_ended_and_its_lock_is_released",),
    ),
    Mutation(
        "locks of a killed run are released",
        "bids_app/workflow/supervisor.py",
        "        release(listed_locks(board))\n",
        "        pass\n",
        (
            "workflow/test_supervisor.py::test_a_blocked_run_is_ended_and_its_lock_is_released",
            "workflow/test_supervisor.py::test_a_run_that_the_system_kills_is_reported_and_its_lock_is_released",
        ),
    ),
    Mutation(
        "the lock of a blocked run is touched",
        "bids_app/workflow/supervisor.py",
        "            touch(listed_locks(board))\n",
        "",
        ("workflow/test_supervisor.py::test_the_lock_of_a_blocked_run_is_touched",),
    ),
    Mutation(
        "the lock of a requeued job is replaced at once",
        "bids_app/workflow/locks.py",
        "    if _is_requeued(holder):\n",
        "    if False:\n",
        ("workflow/test_locks.py::test_the_lock_of_a_requeued_job_is_replaced_at_once",),
    ),
    Mutation(
        "the lock of a killed process is replaced at once",
        "bids_app/workflow/locks.py",
        'if holder.get("place") == process_scope() and isinstance(pid, int):',
        "if False:",
        ("workflow/test_locks.py::test_the_lock_of_a_killed_process_is_replaced_at_once",),
    ),
    Mutation(
        "containers with the same host name keep each other's temporary files",
        "bids_app/bids/processes.py",
        "return f\"{boot}:{os.readlink('/proc/self/ns/pid')}\"",
        "return socket.gethostname()",
        ("bids/test_processes.py::test_a_pid_namespace_is_a_scope_of_its_own",),
    ),
    Mutation(
        "a participant that another process works on is refused",
        "bids_app/workflow/locks.py",
        "if seen and not _is_dead(path,",
        "if seen and _is_dead(path,",
        (
            "workflow/test_locks.py::test_a_second_process_is_refused_with_the_owner",
            "integration/test_at_once.py::test_a_locked_participant_is_skipped_and_the_others_are_processed",
        ),
    ),
    Mutation(
        "sockets of a killed run are removed",
        "bids_app/workflow/supervisor.py",
        "        sockets.remove_abandoned()\n",
        "",
        ("workflow/test_sockets.py::test_the_folder_of_a_killed_run_is_removed",),
    ),
    Mutation(
        "sockets of a run that still runs are kept",
        "bids_app/workflow/sockets.py",
        'return owner["place"] == process_scope() and start_time(int(owner["pid"])) != owner["started"]',
        "return bool(owner)",
        (
            "workflow/test_sockets.py::test_the_folder_of_a_run_that_still_runs_is_kept",
            "workflow/test_sockets.py::test_the_folder_of_a_container_is_kept",
        ),
    ),
    Mutation(
        "sockets of another user are kept",
        "bids_app/workflow/sockets.py",
        "        if not private or found.st_uid != os.geteuid():\n",
        "        if False:\n",
        (
            "workflow/test_sockets.py::test_the_folder_of_another_user_and_a_link_are_kept",
            "workflow/test_sockets.py::test_a_folder_that_others_can_write_is_kept",
        ),
    ),
    # 7. Full disks.
    Mutation(
        "a crash on a full disk is reported as a full disk",
        "bids_app/workflow/supervisor.py",
        "    if full is not None:\n",
        "    if False:\n",
        ("workflow/test_supervisor.py::test_a_crash_on_a_full_disk_is_reported_as_a_full_disk",),
    ),
    Mutation(
        "a failure of ANTs on a full disk is no registration error",
        "bids_app/preprocess/registration/ants.py",
        "if is_full(out_dir):  # before the scratch files are deleted",
        "if False:",
        ("preprocess/registration/test_ants.py::test_a_failure_of_ants_on_a_full_disk_is_no_registration_error",),
    ),
    Mutation(
        "a vague error on a full disk is reported as a full disk",
        "bids_app/workflow/engine.py",
        "if not isinstance(known, InputOutputError) and is_full(out_dir):",
        "if False:",
        ("workflow/test_engine.py::test_a_vague_error_on_a_full_disk_is_reported_as_such",),
    ),
    Mutation(
        "the disk space of arrays is reserved",
        "bids_app/preprocess/io/arrays.py",
        "os.posix_fallocate(file.fileno(), 0, path.stat().st_size)",
        "pass",
        ("preprocess/io/test_arrays.py::test_on_a_full_disk_an_error_is_raised_and_the_process_lives",),
    ),
    Mutation(
        "too little disk space is reported before the start",
        "bids_app/workflow/disk.py",
        "if needed > free and needed > free + sum(_bytes_in(folder) for folder, _ in folders):",
        "if False:",
        (
            "workflow/test_disk.py::test_runs_that_do_not_fit_are_refused_with_the_space_they_need",
            "integration/test_bad_input.py::test_too_little_disk_is_refused_before_anything_is_written",
        ),
    ),
    Mutation(
        "readers never see a partial file",
        "bids_app/bids/writer.py",
        "        yield temporary\n        _flush(temporary)\n        os.replace(temporary, path)\n",
        "        yield path\n",
        ("bids/test_writer.py::test_readers_never_see_half_a_file",),
    ),
    Mutation(
        "a killed writer of a folder leaves the old folder",
        "bids_app/bids/writer.py",
        "        temporary.mkdir(parents=True)\n        yield temporary\n",
        "        temporary.mkdir(parents=True)\n        yield path\n",
        ("bids/test_writer.py::test_a_killed_writer_of_a_folder_leaves_the_old_one",),
    ),
    Mutation(
        "an export replaces no folder that is no export",
        "bids_app/training/export/command.py",
        "    if not _is_export(output, name) or output.is_symlink():\n",
        "    if False:\n",
        ("training/export/test_command.py::test_a_folder_that_is_no_export_is_never_replaced",),
    ),
    Mutation(
        "an export replaces no file that is no export",
        "bids_app/training/export/command.py",
        "    return path.is_file() and tables.has_provenance(path, name)\n",
        "    return path.is_file()\n",
        ("training/export/test_command.py::test_a_file_that_is_no_export_is_never_replaced",),
    ),
    Mutation(
        "long identifiers are exported as they are",
        "bids_app/training/export/tables.py",
        "(0\\d|\\d{16})",
        "(0\\d)",
        ("training/export/test_tables.py::test_long_identifiers_stay_as_they_are",),
    ),
    Mutation(
        "an export replaces nothing without --overwrite",
        "bids_app/training/export/command.py",
        "    if not overwrite:\n",
        "    if False:\n",
        ("training/export/test_command.py::test_an_existing_output_is_kept_unless_it_is_to_be_overwritten",),
    ),
    Mutation(
        "embeddings of different weights are not exported together",
        "bids_app/training/export/runs.py",
        "        if len(names) > 1:\n",
        "        if False:\n",
        ("training/export/test_runs.py::test_embeddings_of_other_weights_of_the_same_name_are_refused",),
    ),
    Mutation(
        "encoders without weights are told apart by their options",
        "bids_app/training/export/runs.py",
        '("options", encoders), ',
        "",
        ("training/export/test_runs.py::test_encoders_without_weights_differ_by_their_options",),
    ),
    Mutation(
        "a family column without values is refused",
        "bids_app/training/data/splits.py",
        "    if families.keys().isdisjoint(participants):\n",
        "    if False:\n",
        ("training/data/test_splits.py::test_a_column_without_families_of_the_participants_is_refused",),
    ),
    Mutation(
        "the sets of an export are the folds of evaluate",
        "bids_app/training/export/sets.py",
        "    made = make_folds(task, examples, n_folds, seed)\n",
        "    made = make_folds(task, examples, n_folds, seed + 1)\n",
        ("training/export/test_sets.py::test_the_folds_are_those_of_evaluate_for_each_seed",),
    ),
    Mutation(
        "an export has no paths of the machine",
        "bids_app/training/export/provenance.py",
        'if source.startswith("bids:"))',
        "if source)",
        ("training/export/test_provenance.py::test_paths_of_this_machine_are_left_out",),
    ),
    Mutation(
        "each set of a dataset of Brainmarks has all classes",
        "bids_app/training/export/brainmarks.py",
        "        if missing := sorted(set(task.labels) - present):\n",
        "        if missing := []:\n",
        ("training/export/test_brainmarks.py::test_each_set_must_have_all_classes_and_numbers_are_refused",),
    ),
    # 8. Claims of small files.
    Mutation(
        "a file cannot claim more blocks than it has tensors",
        "bids_app/model/checkpoint.py",
        "    if n_blocks > n_tensors:\n",
        "    if False:\n",
        (
            "integration/test_hostile_weights.py::test_the_largest_valid_configuration_allocates_nothing_without_weights",
        ),
    ),
    Mutation(
        "a tensor is not larger than its data",
        "bids_app/model/checkpoint.py",
        "if any(not _fits(tensor, file_bytes) for tensor in tensors):",
        "if False:",
        ("model/test_checkpoint.py::test_a_tensor_that_repeats_its_data_is_rejected",),
    ),
    Mutation(
        "weights are compared with the configuration before memory is allocated",
        "bids_app/model/heads.py",
        '        with torch.device("meta"):\n',
        "        if True:\n",
        ("integration/test_hostile_weights.py::test_an_encoder_that_claims_anything_is_refused_at_once",),
    ),
    Mutation(
        "weights that are no moderate numbers are refused",
        "bids_app/model/heads.py",
        "return weight.numel() == 0 or float(weight.float().abs().max()) <= MAX_WEIGHT",
        "return True",
        ("integration/test_hostile_weights.py::test_an_encoder_with_weights_of_1e38_is_refused",),
    ),
    Mutation(
        "names of 300 letters are refused",
        "bids_app/model/checkpoint.py",
        "if not checkpoint.name.isprintable() or not 1 <= ",
        "if False and not 1 <= ",
        ("integration/test_hostile_weights.py::test_a_name_without_letters_or_of_300_letters_is_refused",),
    ),
    Mutation(
        "weights with code are refused",
        "bids_app/model/checkpoint.py",
        '        claimed = torch.load(path, map_location="meta", weights_only=True)\n',
        '        claimed = torch.load(path, map_location="meta", weights_only=False)\n',
        ("integration/test_security.py::test_the_package_has_no_code_that_executes_or_unpickles_files",),
    ),
    Mutation(
        "an adapter belongs to its encoder",
        "bids_app/adapters/file.py",
        "if card.encoder_sha256 != model.weights_sha256:",
        "if False:",
        ("adapters/test_file.py::test_an_adapter_of_another_encoder_is_rejected",),
    ),
    Mutation(
        "an adapter is not continued with other participants",
        "bids_app/training/adapt.py",
        """            facts["training"] = describe_data(training.scans, training.values)\n""",
        "",
        ("training/test_commands.py::test_an_adapter_is_not_continued_with_other_training_participants",),
    ),
    Mutation(
        "a run is not continued with a scan that was prepared again",
        "bids_app/training/state.py",
        "scan.n_vols, scan.stamp)",
        "scan.n_vols)",
        ("training/test_commands.py::test_a_run_is_not_continued_with_a_scan_that_was_prepared_again",),
    ),
    Mutation(
        "the state is saved before held-out clips are measured",
        "bids_app/training/loop.py",
        "            self.save_state()  # the job may end while they are measured, which can take long\n",
        "            pass\n",
        ("training/test_loop.py::test_no_step_is_lost_while_held_out_clips_are_measured",),
    ),
    Mutation(
        "a worker that trains folds ends with the command",
        "bids_app/training/evaluation/workers.py",
        "        while os.getppid() == parent:\n",
        "        while True:\n",
        ("training/evaluation/test_workers.py::test_a_worker_ends_when_the_command_is_killed",),
    ),
    Mutation(
        "reading processes leave signals to the run",
        "bids_app/training/data/loader.py",
        "            worker_init_fn=_leave_signals_to_the_run,\n",
        "",
        ("training/data/test_loader.py::test_a_signal_to_all_processes_of_a_run_does_not_end_its_reading_processes",),
    ),
    Mutation(
        "SIGTERM outside of the training loop releases the lock",
        "bids_app/cli/train.py",
        "            raise_when_terminated()\n",
        "            pass\n",
        ("cli/test_train.py::test_a_signal_outside_of_the_training_loop_releases_the_lock",),
    ),
    Mutation(
        "a terminated build ends its processes",
        "bids_app/training/data/sources.py",
        "                _end_workers(pool)\n",
        "",
        ("training/data/test_sources.py::test_a_terminated_build_ends_its_processes_and_keeps_their_complete_scans",),
    ),
    Mutation(
        "what is left of an incomplete scan is removed from its shard",
        "bids_app/training/data/shards.py",
        "            self.file.cut(start, whole)\n",
        "",
        ("training/data/test_store.py::test_scans_before_an_incomplete_one_are_kept",),
    ),
    Mutation(
        "a changed index of a clip store is not used",
        "bids_app/training/data/shards.py",
        """        if digest != hashlib.sha256(head + b"}").hexdigest().encode() + b'"}':""",
        "        if False:",
        ("training/test_store_commands.py::test_a_changed_digit_in_an_index_is_found_before_it_is_used",),
    ),
    Mutation(
        "a damaged scan is not copied with a new checksum",
        "bids_app/training/store_commands.py",
        "                check(scan.name)\n",
        "",
        ("training/test_store_commands.py::test_a_damaged_scan_is_not_copied",),
    ),
    Mutation(
        "a changed bit of a clip store names its scan",
        "bids_app/training/data/shards.py",
        "        if own.hexdigest() != stored.sha256:\n",
        "        if False:\n",
        ("training/test_store_commands.py::test_a_changed_bit_names_the_scan_and_its_shard",),
    ),
    Mutation(
        "reading processes leave the random numbers of the training as they are",
        "bids_app/training/data/loader.py",
        "            generator=torch.Generator(),  # the random numbers of the training are not used\n",
        "",
        ("training/data/test_loader.py::test_reading_processes_change_neither_clips_nor_their_order",),
    ),
    Mutation(
        "training of low-rank updates changes no other weights",
        "bids_app/training/adapt.py",
        "return FACTOR.fullmatch(name) is not None",
        "return True",
        ("training/test_low_rank.py::test_training_reduces_the_loss_and_changes_updates_and_head_only",),
    ),
    Mutation(
        "fused layers do not leave out low-rank updates that are not merged",
        "bids_app/model/fused.py",
        "    if any(hasattr(part, WRAPPED) for part in module.modules()):\n",
        "    if False:\n",
        ("training/test_low_rank.py::test_merged_weights_equal_the_unmerged_forward_on_the_fast_path_too",),
    ),
    Mutation(
        "an adapter has the rank of its card",
        "bids_app/adapters/file.py",
        "    if ranks != ({card.rank} if card.rank else set()):\n",
        "    if False:\n",
        ("adapters/test_file.py::test_low_rank_updates_that_do_not_fit_the_card_or_the_encoder_are_refused",),
    ),
    # 9. Odd files.
    Mutation(
        "pipes, sockets, devices and folders are named by every reader",
        "bids_app/files.py",
        "    if not stat.S_ISREG(found.st_mode):\n",
        "    if False:\n",
        ("test_files.py::test_an_odd_file_is_named_by_every_reader",),
    ),
    Mutation(
        "a file that becomes a pipe while it is opened is refused",
        "bids_app/files.py",
        "if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # replaced since it was checked",
        "if False:",
        ("test_files.py::test_a_file_that_becomes_a_pipe_while_it_is_opened_is_refused",),
    ),
    Mutation(
        "a file that grows while it is read is refused",
        "bids_app/files.py",
        "            size = len(content)\n",
        "",
        ("test_files.py::test_a_file_that_grows_while_it_is_read_is_refused",),
    ),
    Mutation(
        "reading reserves memory for the file only",
        "bids_app/files.py",
        "file.read(size + 1)",
        "file.read(max_bytes + 1)",
        ("test_files.py::test_reading_takes_the_memory_of_the_file_and_not_of_its_limit",),
    ),
    Mutation(
        "fields do not fold",
        "bids_app/preprocess/registration/diffeomorphic.py",
        "        if not folded.any():",
        "        if True:",
        ("preprocess/registration/test_diffeomorphic.py::test_a_field_that_folds_is_smoothed_there_only",),
    ),
    Mutation(
        "steep fields are inverted by half steps",
        "bids_app/preprocess/registration/diffeomorphic.py",
        "compose(inverse, field) / 2",
        "compose(inverse, field)",
        ("preprocess/registration/test_diffeomorphic.py::test_steep_fields_are_inverted",),
    ),
    Mutation(
        "voxels outside the masks do not deform their surroundings",
        "bids_app/preprocess/registration/diffeomorphic.py",
        "mask = (seen[0][1] > 0.5) & (seen[1][1] > 0.5)",
        "mask = seen[0][1] > 0.5",
        (
            "preprocess/registration/test_diffeomorphic.py::"
            "test_what_is_outside_the_masks_does_not_deform_its_surroundings",
        ),
    ),
    Mutation(
        "JSON is limited in depth",
        "bids_app/files.py",
        "        if depth > MAX_DEPTH:\n",
        "        if False:\n",
        ("test_files.py::test_a_giant_or_deep_file_is_refused_by_name",),
    ),
    Mutation(
        "JSON is limited in its number of values",
        "bids_app/files.py",
        "            if n_values + len(inner) > max_values:\n",
        "            if False:\n",
        ("test_files.py::test_values_that_are_not_plain_are_refused",),
    ),
    Mutation(
        "tables are limited in rows and columns",
        "bids_app/files.py",
        "    if n_rows > MAX_ROWS or n_columns > MAX_COLUMNS:\n",
        "    if False:\n",
        ("test_files.py::test_tables_have_a_limited_number_of_rows_and_columns",),
    ),
    Mutation(
        "decompression is limited to the size in the header",
        "bids_app/preprocess/io/images.py",
        "while remaining and (block := source.read(min(remaining, 2**22))):",
        "while block := source.read(2**22):",
        ("integration/test_corruptions.py::test_decompression_is_limited_to_the_size_in_the_header",),
    ),
    Mutation(
        "files of options of neurostorm-train are checked before the data are read",
        "bids_app/cli/train.py",
        "        check_inputs(arguments)\n",
        "",
        ("cli/test_train.py::test_an_odd_file_is_named_before_the_data_are_read",),
    ),
    Mutation(
        "pipes among the outputs are named by the group level and in the report",
        "bids_app/files.py",
        "    if kind or found.st_size > MAX_OUTPUT_BYTES:\n",
        "    if found.st_size > MAX_OUTPUT_BYTES:\n",
        (
            "group/test_reading.py::test_an_odd_file_among_outputs_is_named_and_others_are_read",
            "reports/test_participant.py::test_an_odd_file_among_outputs_is_listed",
        ),
    ),
    Mutation(
        "reports that are written at once lose no participant of the index",
        "bids_app/bids/writer.py",
        "            wait_for_lock(descriptor, WAIT_SECONDS)\n",
        "            pass\n",
        ("reports/test_index.py::test_two_writers_at_once_lose_no_participant",),
    ),
    Mutation(
        "a difference without practical size is no outlier",
        "bids_app/group/quality.py",
        "(deviation > threshold) & large & (len",
        "(deviation > threshold) & (len",
        ("group/test_page.py::test_a_difference_without_practical_size_is_no_outlier",),
    ),
    Mutation(
        "an image that is shortened while it is read is named",
        "bids_app/preprocess/io/volumes.py",
        "        check_size(image, path)\n",
        "",
        ("workflow/test_pool.py::test_an_image_that_is_shortened_while_it_is_read_is_named",),
    ),
    # 10. Clocks and times of files.
    Mutation(
        "new content of the same size and time is read again",
        "bids_app/workflow/graph.py",
        ":{stat.st_mtime_ns}:{stat.st_ctime_ns}",
        ":{stat.st_mtime_ns}",
        ("workflow/test_graph.py::test_new_content_of_the_same_size_and_time_changes_the_stamp",),
    ),
    Mutation(
        "weights count by their bytes",
        "bids_app/workflow/context.py",
        'stamp=";".join((hashes[str(weights)], *(adapter.stamp for adapter in adapters))),',
        'stamp=";".join(map(file_stamp, (weights, *(adapter.path for adapter in adapters)))),',
        ("workflow/test_method.py::test_weights_with_other_bytes_repeat_the_steps_of_the_model_whatever_their_times",),
    ),
    Mutation(
        "a stale lock is replaced by one process at a time",
        "bids_app/workflow/locks.py",
        "        if _state(path) != seen:\n            return False\n",
        "",
        ("workflow/test_locks.py::test_a_lock_that_replaced_a_stale_one_is_not_replaced_by_a_slower_process",),
    ),
    Mutation(
        "the age of a lock is in the clock of the file system",
        "bids_app/workflow/locks.py",
        "now=own.stat().st_mtime)",
        "now=time.time())",
        ("workflow/test_locks.py::test_an_old_lock_of_another_machine_is_stale",),
    ),
    # 11. --check tells what will happen.
    Mutation(
        "--check writes no database",
        "bids_app/workflow/plan.py",
        "    return replace(query, database_dir=None)",
        "    return query",
        ("workflow/test_plan.py::test_the_pybids_database_is_used_but_never_written",),
    ),
    Mutation(
        "--check leaves the folders of libraries untouched",
        "bids_app/cli/neurostorm.py",
        "        if settings.check:\n            os.environ[name] = NO_CACHE",
        "        if False:\n            os.environ[name] = NO_CACHE",
        ("workflow/test_plan.py::test_a_check_leaves_the_temporary_folder_and_home_empty",),
    ),
    Mutation(
        "a device that does not exist is refused",
        "bids_app/model/device.py",
        'if device.type == "cuda" and (device.index or 0) >= n_gpus:',
        "if False:",
        ("workflow/test_preflight.py::test_a_device_that_does_not_exist_is_refused",),
    ),
    Mutation(
        "dummy scans beyond the length of a run are named",
        "bids_app/workflow/faults.py",
        "check_n_dummies(bold.name, n_volumes, tr, n_dummies)",
        "pass",
        ("workflow/test_plan.py::test_dummy_scans_beyond_the_length_of_a_run_are_named",),
    ),
    Mutation(
        "all faults of a run are named, not the first one",
        "bids_app/workflow/faults.py",
        "        faults += known[path]\n",
        "        faults += known[path] if not faults else ()\n",
        ("workflow/test_faults.py::test_all_faults_of_a_run_are_found",),
    ),
    Mutation(
        "truncated images are found",
        "bids_app/preprocess/io/completeness.py",
        'if path.suffix != ".gz" or stated_size(path) == n_bytes % 2**32:',
        "if True:",
        ("preprocess/io/test_completeness.py::test_a_truncated_file_is_named",),
    ),
    Mutation(
        "runs with equal lines are printed together",
        "bids_app/workflow/plan.py",
        "alike.setdefault(report.kind, []).append(report)",
        "alike.setdefault((*report.kind, report.run.stem), []).append(report)",
        ("workflow/test_plan.py::test_runs_with_equal_lines_are_printed_together",),
    ),
    Mutation(
        "a reader that ends is no defect",
        "bids_app/cli/outcome.py",
        "        if not _reader_has_ended(sys.stdout):\n            raise\n",
        "        raise\n",
        ("workflow/test_plan.py::test_a_reader_that_ends_is_no_defect",),
    ),
    # 12. Threads are no input.
    Mutation(
        "threads repeat no step",
        "bids_app/workflow/graph.py",
        'NOT_HASHED = ("threads",)',
        "NOT_HASHED = ()",
        (
            "workflow/test_graph.py::test_threads_do_not_change_the_stamp",
            "workflow/test_method.py::test_other_resources_repeat_no_step",
        ),
    ),
    # 13. Ranges are rounded outwards.
    Mutation(
        "the lower end of a range is rounded down",
        "bids_app/training/reference.py",
        "low.quantize(step, ROUND_FLOOR, EXACT)",
        "low.quantize(step, None, EXACT)",
        ("training/test_reference.py::test_every_value_is_within_its_stored_range",),
    ),
    Mutation(
        "the upper end of a range is rounded up",
        "bids_app/training/reference.py",
        "high.quantize(step, ROUND_CEILING, EXACT)",
        "high.quantize(step, ROUND_FLOOR, EXACT)",
        (
            "training/test_reference.py::test_every_value_is_within_its_stored_range",
            "training/test_reference.py::test_a_training_scan_passes_all_checks_of_its_own_cohort",
        ),
    ),
    Mutation(
        "distances that are limits are stored rounded upwards",
        "bids_app/adapters/domain.py",
        "distances < self.distances, np.nextafter(distances, np.float32(np.inf)), distances",
        "distances < self.distances, distances, distances",
        ("adapters/test_domain.py::test_stored_distances_are_rounded_upwards",),
    ),
    # 14. Logs.
    Mutation(
        "control characters are escaped on terminals",
        "bids_app/terminal.py",
        'return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)',
        "return text",
        (
            "test_terminal.py::test_errors_name_values_with_control_characters_escaped",
            "workflow/test_log.py::test_control_characters_are_escaped_and_lines_stay_apart",
        ),
    ),
    Mutation(
        "a terminal without a size shows progress",
        "bids_app/workflow/progress.py",
        "                nrows=20,  # as if the terminal had rows: with none, nothing would be shown\n",
        "",
        ("workflow/test_progress.py::test_a_terminal_without_a_size_shows_progress",),
    ),
    Mutation(
        "the time left does not jump",
        "bids_app/workflow/time_left.py",
        "MIN_MEASURED = 0.4",
        "MIN_MEASURED = 0.0",
        ("workflow/test_time_left.py::test_there_is_no_estimate_before_anything_of_weight_was_measured",),
    ),
    Mutation(
        "messages of steps are in the log of their participant",
        "bids_app/workflow/engine.py",
        "        with messages_of_step(out_dir):\n",
        "        if True:\n",
        ("workflow/test_engine.py::test_messages_of_steps_are_kept_for_the_log",),
    ),
    Mutation(
        "the first line is printed before the imports that take seconds",
        "bids_app/cli/neurostorm.py",
        '            LOGGER.info("%s", first_line(settings))  # the imports take seconds\n',
        "            pass\n",
        ("cli/test_neurostorm.py::test_the_first_line_is_printed_before_the_imports_that_take_seconds",),
    ),
    Mutation(
        "Ctrl-C prints no traceback",
        "bids_app/cli/outcome.py",
        "    except (KeyboardInterrupt, Terminated) as interruption:\n",
        "    except Terminated as interruption:\n",
        ("integration/test_terminated.py::test_ctrl_c_prints_no_traceback",),
    ),
    # 15. Options of other pipelines.
    Mutation(
        "options of other pipelines are refused with the reason",
        "bids_app/cli/neurostorm.py",
        "    refuse_foreign_options(words, parser.spellings)\n",
        "",
        (
            "cli/test_other_pipelines.py::"
            "test_an_option_of_other_pipelines_is_refused_with_its_reason_and_an_option_of_ours",
        ),
    ),
    Mutation(
        "the remedy belongs to the option",
        "bids_app/cli/other_pipelines.py",
        'remedy = f"use {self.use}"',
        'remedy = "leave it out"',
        (
            "cli/test_other_pipelines.py::"
            "test_an_option_of_other_pipelines_is_refused_with_its_reason_and_an_option_of_ours",
        ),
    ),
    # 16. First contact.
    Mutation(
        "plain PyTorch is announced at the start",
        "bids_app/workflow/participant.py",
        "        if context.scan_is_slow:\n",
        "        if False:\n",
        ("integration/test_bad_input.py::test_the_slow_scan_and_the_scratch_folder_are_announced",),
    ),
    Mutation(
        "the scratch folder is named at the end",
        "bids_app/workflow/participant.py",
        "        announce_scratch(settings.work_dir)\n",
        "        pass\n",
        ("integration/test_bad_input.py::test_the_slow_scan_and_the_scratch_folder_are_announced",),
    ),
    # 17. Recipes of the images.
    Mutation(
        "releases are built on a base image with a digest",
        "Makefile",
        "--build-arg BASE_IMAGE=$(BASE)@$$digest",
        "--build-arg BASE_IMAGE=$(BASE)",
        ("container/test_recipes.py::test_releases_are_built_on_a_base_image_with_a_digest",),
    ),
    Mutation(
        "torch has a layer of its own",
        "Dockerfile",
        "RUN --mount=type=cache,target=/cache/pip LAYER=/opt/layers/torch sh /src/container/build.sh torch-cpu",
        "RUN LAYER=/opt/layers/torch sh /src/container/build.sh torch-cpu",
        ("container/test_recipes.py::test_steps_that_download_keep_their_downloads_between_builds",),
    ),
    Mutation(
        "the licence label includes that of each baked atlas and model",
        "container/build.sh",
        '  $prefix/bin/python -m bids_app.catalog.licences --check "$LICENSES"\n',
        "",
        ("container/test_recipes.py::test_a_wrong_licence_label_stops_the_build",),
    ),
    Mutation(
        "the script of array jobs passes SIGTERM on",
        "bids_app/cluster/script.py",
        """trap '[ -n "$app" ]""",
        """: '[ -n "$app" ]""",
        ("cluster/test_script.py::test_sigterm_is_passed_on_and_the_script_waits_for_the_app",),
    ),
    Mutation(
        "participants whose jobs are in the queue are not submitted again",
        "bids_app/cluster/tasks.py",
        "queued = ended is None and job is not None and _is_queued(*job, queue)",
        "queued = False",
        ("cluster/test_submit.py::test_participants_in_the_queue_are_not_submitted_again",),
    ),
    Mutation(
        "outputs made with other options are not those of a cohort",
        "bids_app/cluster/states.py",
        "if summary is not None and is_new and not other and summary.status != UNFINISHED:",
        "if summary is not None and is_new and summary.status != UNFINISHED:",
        ("cluster/test_states.py::test_outputs_of_other_options_or_of_some_sessions_do_not_count",),
    ),
    # 18. Weights by hash.
    Mutation(
        "a mirror with other bytes is refused",
        "bids_app/catalog/fetch.py",
        "    elif known is not None and sha256 != known[0].sha256:\n",
        "    elif False:\n",
        ("catalog/test_fetch.py::test_a_mirror_with_other_bytes_is_refused_and_its_file_removed",),
    ),
    Mutation(
        "the first download records its checksum",
        "bids_app/catalog/fetch.py",
        "        if known is None:\n            record_checksum(",
        "        if False:\n            record_checksum(",
        ("catalog/test_fetch.py::test_first_download_records_its_checksum_for_other_machines",),
    ),
    Mutation(
        "a file in the cache that differs is refused",
        "bids_app/catalog/fetch.py",
        "    if found != checksum.sha256:\n",
        "    if False:\n",
        ("catalog/test_fetch.py::test_existing_file_that_differs_from_the_lock_file_is_refused",),
    ),
    Mutation(
        "a damaged lock file is named and kept",
        "bids_app/catalog/lock.py",
        "    if not SHA256.fullmatch(checksum.sha256):\n",
        "    if False:\n",
        ("catalog/test_lock.py::test_a_damaged_lock_file_is_named_and_kept",),
    ),
    Mutation(
        "a reference cannot lead out of its repository",
        "bids_app/catalog/references.py",
        '    if any(part in ("", ".", "..") or',
        "    if any(",
        ("catalog/test_references.py::test_a_reference_to_something_outside_of_its_repository_is_refused",),
    ),
    Mutation(
        "a branch stays at its recorded commit",
        "bids_app/catalog/fetch_reference.py",
        "    return None if update else read_revisions(lock).get(_name(wanted))\n",
        "    return None\n",
        (
            "catalog/test_fetch_reference.py::test_a_branch_stays_at_its_recorded_commit_until_an_update",
            "catalog/test_fetch_reference.py::test_the_lock_file_of_a_study_gives_the_same_file_on_other_machines",
        ),
    ),
    Mutation(
        "bytes that differ from the list of the repository are refused",
        "bids_app/catalog/fetch.py",
        "    return HubFile(hub.url, hub.size or listed.size, hub.sha256 or listed.sha256 or None)\n",
        "    return hub\n",
        (
            "catalog/test_fetch_reference.py"
            "::test_bytes_that_differ_from_the_checksum_of_the_hub_are_refused_at_the_first_fetch",
        ),
    ),
    Mutation(
        "what a head lacks is asked for",
        "bids_app/adapters/head_facts.py",
        "    if task == CLASSIFICATION and not meaning.labels:\n",
        "    if False:\n",
        ("cli/test_hub.py::test_what_a_head_lacks_is_asked_for_and_stored_when_given",),
    ),
    Mutation(
        "labels of participants and paths are not published",
        "bids_app/adapters/privacy.py",
        "    if private:\n",
        "    if False:\n",
        ("cli/test_hub.py::test_what_may_not_be_published_is_refused_before_any_request",),
    ),
    Mutation(
        "an adapter without intended use or licence is not published",
        "bids_app/adapters/privacy.py",
        "    if missing:\n",
        "    if False:\n",
        ("adapters/test_privacy.py::test_a_card_without_intended_use_or_licence_is_not_published",),
    ),
    Mutation(
        "metadata besides the card are not published",
        "bids_app/outputs/hub_card.py",
        '    published = save_adapter(folder / f"{card.name}.safetensors", adapter)\n',
        '    published = folder / f"{card.name}.safetensors"\n'
        "    folder.mkdir(parents=True, exist_ok=True)\n"
        "    published.write_bytes(path.read_bytes())\n",
        (
            "outputs/test_hub_card.py::test_metadata_besides_the_card_are_not_published",
            "outputs/test_hub_card.py::test_given_texts_become_part_of_the_uploaded_file",
        ),
    ),
    Mutation(
        "nothing private is uploaded to a public repository",
        "bids_app/catalog/push.py",
        "        if private and not api.model_info(repo, timeout=TIMEOUT_S).private:\n",
        "        if False:\n",
        ("catalog/test_push.py::test_nothing_is_uploaded_to_a_public_repository_that_should_be_private",),
    ),
    Mutation(
        "intervals of an evaluation count participants",
        "bids_app/training/evaluation/comparison.py",
        "    names = np.array(owners)\n",
        "    names = owners = np.arange(len(owners))\n",
        ("training/test_external.py::test_intervals_count_participants_and_not_scans",),
    ),
    # 19. Nightly.
    Mutation(
        "skipped tests of the night are failures",
        "tests/helpers/no_skips.py",
        'if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(NO_SKIPS):',
        "if False:",
        ("test_skips.py::test_skips_are_failures_on_request",),
    ),
    Mutation(
        "the night runs without skips",
        ".github/workflows/nightly.yml",
        '    timeout-minutes: 350\n    env:\n      NEUROSTORM_NO_SKIPS: "1"\n',
        "    timeout-minutes: 350\n",
        ("test_repository.py::test_every_night_slow_tests_fuzzing_containers_and_audit_run_without_skips",),
    ),
    # Memory.
    Mutation(
        "a run that does not fit into memory is not started",
        "bids_app/workflow/memory.py",
        "    if needed > allowed:\n",
        "    if False:\n",
        ("workflow/test_memory.py::test_a_run_that_does_not_fit_is_not_started",),
    ),
    # Coverage of intervals and label sets.
    Mutation(
        "people are counted, not scans",
        "bids_app/adapters/conformal.py",
        "return 1 / (pair_sizes[pairs] * n_members[group_of])",
        "return np.full(len(members), (group_of.max() + 1) / len(members))",
        ("adapters/test_conformal.py::test_a_person_with_many_scans_weighs_as_much_as_any_other",),
    ),
    Mutation(
        "fewer than ten people promise nothing",
        "bids_app/adapters/calibration.py",
        "        if self.n_participants < MIN_GROUPS:\n            return Promise(\n",
        "        if False:\n            return Promise(\n",
        ("adapters/test_calibration.py::test_no_coverage_is_promised_for_few_or_unknown_participants",),
    ),
    Mutation(
        "limits are those of the site of the scan",
        "bids_app/adapters/calibration.py",
        "        if site in self.site_limits:\n",
        "        if False:\n",
        ("adapters/test_calibration.py::test_limits_are_those_of_the_site_of_the_scan",),
    ),
    Mutation(
        "a new site includes the differences between sites",
        "bids_app/adapters/calibration.py",
        "        if self.new_site_limits and site not in self.sites:\n",
        "        if False:\n",
        ("adapters/test_calibration.py::test_limits_at_a_new_or_unknown_site_include_the_differences_between_sites",),
    ),
    Mutation(
        "an empty label set is shown as empty",
        "bids_app/group/reading.py",
        'return None if labels is None else ", ".join(labels) or "empty"',
        'return None if labels is None else ", ".join(labels)',
        ("group/test_reading.py::test_an_empty_prediction_set_is_not_a_missing_one",),
    ),
    # Evaluations.
    Mutation(
        "intervals count the overlap of training sets",
        "bids_app/training/evaluation/comparison.py",
        "np.sqrt((1 / len(known) + test_share) * known.var(ddof=1))",
        "np.sqrt(1 / len(known) * known.var(ddof=1))",
        ("training/evaluation/test_comparison.py::test_intervals_count_the_overlap_of_training_sets",),
    ),
    Mutation(
        "comparisons are corrected for their number",
        "bids_app/training/evaluation/comparison.py",
        "holm(two_sided), strict=True):\n        difference =",
        "two_sided, strict=True):\n        difference =",
        ("training/evaluation/test_comparison.py::test_differences_are_corrected_for_the_number_of_baselines",),
    ),
    Mutation(
        "a baseline is beaten only above chance",
        "bids_app/training/evaluation/evaluate.py",
        'return "is better than" if self.exceeds_chance else unclear',
        'return "is better than"',
        ("training/evaluation/test_evaluate.py::test_a_baseline_is_beaten_only_if_the_encoder_exceeds_chance",),
    ),
    Mutation(
        "confounds that predict the target are flagged",
        "bids_app/training/evaluation/evaluate.py",
        "for (name, method), p in zip(found.items(), adjusted, strict=True) if p < ALPHA}",
        "for (name, method), p in zip(found.items(), adjusted, strict=True) if p < 0}",
        (
            "training/evaluation/test_evaluate.py::"
            "test_confounds_that_predict_the_target_are_flagged_with_the_score_without_them",
            "training/evaluation/test_evaluate.py::test_a_site_that_predicts_the_target_is_flagged",
        ),
    ),
    Mutation(
        "samples of the training participants are nested",
        "bids_app/training/evaluation/shares.py",
        "kept = set(order[:n])",
        "kept = set(order[:: len(order) // n][:n])",
        ("training/evaluation/test_shares.py::test_samples_are_nested_and_never_hold_a_tested_participant",),
    ),
    Mutation(
        "scans of the same session are not compared",
        "bids_app/training/evaluation/metrics.py",
        "similarity[labels[:, None] == labels[None]] = -np.inf",
        "del labels",
        ("training/evaluation/test_retrieval.py::test_scans_of_the_same_session_are_not_compared",),
    ),
    # Verdicts.
    Mutation(
        "a scan that fails both tests of its signal is refused",
        "bids_app/adapters/verdict.py",
        "    if len(failed) == len(SIGNAL_TESTS):\n",
        "    if False:\n",
        ("adapters/test_verdict.py::test_a_scan_that_fails_both_tests_of_its_signal_is_refused",),
    ),
    Mutation(
        "adapters of simulated scans refuse real ones",
        "bids_app/adapters/verdict.py",
        "    if bool(scan) == cohort:\n",
        "    if True:\n",
        ("adapters/test_verdict.py::test_simulated_and_real_scans_are_told_apart",),
    ),
    Mutation(
        "an unchecked left and right is warned of",
        "bids_app/adapters/verdict.py",
        'if "orientation" in unknown and names_sides(card.labels):',
        "if False:",
        (
            "adapters/test_verdict.py::"
            "test_an_unchecked_left_and_right_is_warned_of_where_it_could_reverse_the_prediction",
        ),
    ),
    Mutation(
        "out of distribution, probabilities move to the proportions of the cohort",
        "bids_app/adapters/predict.py",
        "return weight * self.calibrated + (1 - weight) * label_shares(self.card)",
        "return self.calibrated",
        (
            "outputs/test_reliability.py::"
            "test_out_of_distribution_the_probabilities_go_to_the_proportions_of_the_cohort",
        ),
    ),
    Mutation(
        "outside a range of the cohort, the weight of a prediction falls",
        "bids_app/adapters/predict.py",
        "return min([self.range_evidence, *(distance",
        "return min([1.0, *(distance",
        ("workflow/test_nodes.py::test_a_scan_outside_the_ranges_of_the_cohort_has_the_proportions_of_the_cohort",),
    ),
    Mutation(
        "a region with few voxels with data has no series",
        "bids_app/preprocess/regions.py",
        "values[:, ~found.is_covered] = np.nan",
        "pass",
        ("preprocess/test_regions.py::test_a_region_that_is_for_the_most_part_outside_has_no_series",),
    ),
    Mutation(
        "a region without variance has no correlations, also after denoising",
        "bids_app/preprocess/regions.py",
        "self.values.astype(np.float32)",
        "self.values",
        ("preprocess/test_regions.py::test_a_region_without_variance_has_no_correlations_also_after_denoising",),
    ),
    Mutation(
        "tables of series have all digits of their values",
        "bids_app/outputs/regions.py",
        'FLOAT32 = "%.9g"',
        'FLOAT32 = "%.7g"',
        ("outputs/test_regions.py::test_the_matrix_names_its_rows_and_its_source",),
    ),
    Mutation(
        "series of regions are read in blocks of volumes",
        "bids_app/preprocess/regions.py",
        "for first in range(0, series.n_vols, VOLUMES):\n        block = series.rows(first, first + VOLUMES)",
        "for first in (0,):\n        block = series.rows(first, series.n_vols)",
        ("preprocess/test_regions.py::test_the_whole_series_is_never_in_memory",),
    ),
    Mutation(
        "volumes with head motion are left out of denoised series of regions",
        "bids_app/preprocess/denoise.py",
        "volumes = volumes if kept is None else np.intersect1d(volumes, np.asarray(kept, dtype=int))",
        "volumes = volumes",
        ("preprocess/test_regions.py::test_denoised_means_are_the_means_of_denoised_voxels",),
    ),
    Mutation(
        "the report says why there are no series of regions",
        "bids_app/reports/contents.py",
        "warnings = [*(metrics.warnings or ()), *self._region_warnings(by_region)]",
        "warnings = [*(metrics.warnings or ())]",
        ("reports/test_participant.py::test_why_there_are_no_series_of_regions_is_a_warning_once",),
    ),
    Mutation(
        "two atlases never have the same files",
        "bids_app/workflow/preflight.py",
        "if label in found:",
        "if False:",
        ("workflow/test_preflight.py::test_two_atlases_with_the_same_label_are_refused",),
    ),
    Mutation(
        "the strategy of denoising counts for the configuration of series of regions",
        "bids_app/workflow/configuration.py",
        "if settings.preprocess.timeseries and settings.preprocess.denoise:",
        "if False:",
        (
            "workflow/test_configuration.py::"
            "test_the_strategy_counts_for_series_of_regions_whose_files_have_the_same_names",
        ),
    ),
    Mutation(
        "a series that another pipeline denoised is not called plain",
        "bids_app/outputs/regions.py",
        "return bool(found.confounds) or bool(run.origin and run.origin.denoised)",
        "return bool(found.confounds)",
        ("outputs/test_regions.py::test_a_series_that_another_pipeline_denoised_is_not_called_plain",),
    ),
    Mutation(
        "names of regions are found in a table for all resolutions",
        "bids_app/catalog/atlases.py",
        'stems = (_stem(image), RESOLUTION.sub("", _stem(image)))',
        "stems = (_stem(image),)",
        ("catalog/test_atlases.py::test_one_table_is_for_all_resolutions_as_in_templateflow",),
    ),
    Mutation(
        "an atlas in another space by its name is refused",
        "bids_app/catalog/atlases.py",
        'if entity in ("tpl", "space") and label != MODEL_SPACE:',
        "if False:",
        ("catalog/test_atlases.py::test_an_atlas_whose_name_has_another_space_is_refused",),
    ),
    Mutation(
        "a label has one name only",
        "bids_app/catalog/atlases.py",
        "if index in names:",
        "if False:",
        ("catalog/test_atlases.py::test_an_invalid_table_of_regions_is_named",),
    ),
    Mutation(
        "names of regions stay unique when labels are appended",
        "bids_app/preprocess/regions.py",
        "while shared:",
        "if shared:",
        ("preprocess/test_regions.py::test_names_are_unique",),
    ),
    Mutation(
        "the template is recorded for a run without a T1w image",
        "bids_app/workflow/bids_prov.py",
        '"preprocessing": [] if run.t1w or run.derived else template,',
        "",
        ("workflow/test_bids_prov.py::test_the_template_is_used_by_what_is_registered_to_it",),
    ),
    Mutation(
        "the sidecars of a run are those of all of its echoes",
        "bids_app/bids/query.py",
        "described = (*(echoes.echoes or (bold,)),",
        "described = (bold,",
        ("bids/test_query.py::test_a_run_has_the_sidecars_whose_values_it_has",),
    ),
    Mutation(
        "identifiers of activities differ for other environments",
        "bids_app/workflow/bids_prov.py",
        'common = shlex.join(sys.argv), versions(), describe_environment()["Id"]',
        "common = shlex.join(sys.argv), versions()",
        ("workflow/test_bids_prov.py::test_identifiers_differ_for_other_commands_inputs_and_environments",),
    ),
    Mutation(
        "what an earlier invocation published keeps its record",
        "bids_app/workflow/bids_prov.py",
        "if found.run_id == run_id and found.complete]",
        "if found.complete]",
        ("workflow/test_bids_prov.py::test_what_an_earlier_invocation_published_keeps_its_record",),
    ),
    Mutation(
        "rows of other models stay in descriptions.tsv",
        "bids_app/bids/descriptions.py",
        "for label, text in {**found, **kept}.items()]",
        "for label, text in found.items()]",
        ("bids/test_descriptions.py::test_rows_of_other_models_and_people_are_kept",),
    ),
    Mutation(
        "a region without a token has no p value",
        "bids_app/adapters/attribution.py",
        "tested = seen & (self.n_tokens > 0)",
        "tested = np.ones(len(seen), bool)",
        ("adapters/test_attribution_control.py::test_the_map_of_a_permuted_head_is_that_of_its_own_prediction",),
    ),
    Mutation(
        "copies of a series under other labels are named",
        "bids_app/training/data/examples.py",
        "if copies := find_copies(scans):",
        "if copies := []:",
        ("training/data/test_duplicates.py::test_copies_are_reported_when_datasets_are_loaded_also_between_datasets",),
    ),
    Mutation(
        "the shape confirms left and right, and does not refute them",
        "bids_app/preprocess/ingest/orientation.py",
        "(max(float(sums.sum()), 0.0) / spread)",
        "(float(sums.sum()) / spread)",
        (
            "preprocess/ingest/test_orientation.py::"
            "test_the_shape_of_the_brain_confirms_left_and_right_where_the_contrast_contradicts",
        ),
    ),
    Mutation(
        "out of distribution, no label is excluded",
        "bids_app/adapters/predict.py",
        "weight = 0.0 if any(distance.is_far for distance in self.distances.values()) else self.range_evidence",
        "weight = self.range_evidence",
        ("outputs/test_reliability.py::test_out_of_distribution_no_label_is_excluded_and_intervals_widen",),
    ),
    Mutation(
        "a refused prediction is withheld",
        "bids_app/adapters/predict.py",
        "return dict.fromkeys(cells) if self.is_refused else cells",
        "return cells",
        ("outputs/test_reliability.py::test_a_refused_prediction_is_not_in_the_table",),
    ),
    # Brain signal.
    Mutation(
        "volumes in random order are told from a signal",
        "bids_app/preprocess/brain_signal.py",
        '"order_p": _p_value(value, surrogates)}',
        '"order_p": 0.001}',
        ("preprocess/test_brain_signal.py::test_what_is_no_signal_of_a_brain_fails_the_tests_of_what_it_lacks",),
    ),
    Mutation(
        "permuted voxels are told from a brain",
        "bids_app/preprocess/brain_signal.py",
        'found["connectivity_p"] = min(1.0, len(tests) * min(tests))',
        'found["connectivity_p"] = 0.001',
        ("preprocess/test_brain_signal.py::test_what_is_no_signal_of_a_brain_fails_the_tests_of_what_it_lacks",),
    ),
    # Plausibility of registrations.
    Mutation(
        "a T1w that fits mirrored is doubted",
        "bids_app/preprocess/registration/plausibility.py",
        "    if control_ratio(quality) > MAX_CONTROL_RATIO:\n",
        "    if False:\n",
        ("preprocess/registration/test_plausibility.py::test_signs_name_measure_and_value",),
    ),
    Mutation(
        "wrong scales are doubted",
        "bids_app/preprocess/registration/plausibility.py",
        "for axis, scale in found if not SCALES[0] <= scale <= SCALES[1]]",
        "for axis, scale in found if False]",
        (
            "preprocess/registration/test_plausibility.py::test_signs_name_measure_and_value",
            "preprocess/registration/test_plausibility.py::test_the_likely_cause_is_named",
        ),
    ),
    Mutation(
        "slices that cut the brain are named",
        "bids_app/preprocess/registration/boldref.py",
        "if area > CUT_AREA}",
        "if area > 1}",
        ("preprocess/registration/test_bold_to_template.py::test_slices_that_cut_the_brain_are_named",),
    ),
    Mutation(
        "a T2w image is told from a T1w image",
        "bids_app/preprocess/registration/t1w_plausibility.py",
        'return intensities["wm"] < intensities["gm"]',
        "return False",
        ("preprocess/registration/test_t1w_plausibility.py::test_a_t2w_image_is_told_from_a_t1w_image",),
    ),
    Mutation(
        "an image without contrast is not refined",
        "bids_app/preprocess/registration/bbr.py",
        " and after <= MAX_COST",
        "",
        (
            "preprocess/registration/test_bbr.py::"
            "test_an_image_without_contrast_of_grey_and_white_matter_is_not_refined",
        ),
    ),
    Mutation(
        "after a crash, a disk without room for a large file is full",
        "bids_app/workflow/supervisor.py",
        "is_full(folder, CRASH_PROBE_BYTES)",
        "is_full(folder)",
        ("workflow/test_supervisor.py::test_a_crash_on_a_full_disk_is_reported_as_a_full_disk",),
    ),
    Mutation(
        "a signal that arrives while an object is freed is not lost",
        "bids_app/cli/outcome.py",
        "sys.unraisablehook = send_again",
        "pass",
        ("workflow/test_ends.py::test_a_signal_that_python_drops_while_it_frees_an_object_is_sent_again",),
    ),
    Mutation(
        "a full disk is named by its folder",
        "bids_app/workflow/engine.py",
        "if isinstance(error, OSError) and error.errno in NO_SPACE:",
        "if False:",
        ("workflow/test_engine.py::test_a_full_disk_is_named_by_its_folder_if_the_error_does_not",),
    ),
    Mutation(
        "no traceback of HDF5 on a full disk",
        "bids_app/bids/full_disk.py",
        "sys.excepthook, sys.unraisablehook = uncaught, unraisable",
        "sys.unraisablehook = unraisable",
        ("bids/test_full_disk.py::test_tracebacks_of_freed_files_are_not_printed",),
    ),
    Mutation(
        "scales that hardly raise the similarity are no sign of an error",
        "bids_app/preprocess/registration/plausibility.py",
        'if quality.get("coreg_scale_gain", MIN_SCALE_GAIN) < MIN_SCALE_GAIN:',
        "if False:",
        ("preprocess/registration/test_plausibility.py::test_scales_that_hardly_raise_the_similarity_are_no_sign",),
    ),
    Mutation(
        "the deformation of a T1w compares what is within both brain masks",
        "bids_app/preprocess/registration/t1w_to_template.py",
        "near, counted = attempt.within or (attempt.near, None)",
        "near, counted = attempt.near, None",
        ("preprocess/test_anatomical.py::test_brains_are_warped_by_what_is_within_both_masks",),
    ),
    Mutation(
        "a training run stops before a step that is not finite",
        "bids_app/training/loop.py",
        "        if not math.isfinite(value):",
        "        if False:",
        ("training/test_loop.py::test_a_loss_or_gradient_that_is_not_finite_stops_with_the_weights_before_it",),
    ),
    Mutation(
        "a second training run into the same output is refused",
        "bids_app/training/pretrain_command.py",
        "        locks.acquire(folder / LOCK)",
        "        pass",
        ("training/test_commands.py::test_a_second_launch_into_the_same_output_is_refused",),
    ),
    Mutation(
        "a number of processes that the launcher has not started is refused",
        "bids_app/training/processes.py",
        "    if (nodes or started.nodes, devices or started.devices) != (started.nodes, started.devices):",
        "    if False:",
        ("training/test_processes.py::test_a_wrong_combination_is_refused",),
    ),
    Mutation(
        "a disk that becomes full while a state is saved is reported, and keeps the state before",
        "bids_app/training/state.py",
        "        except RuntimeError as error:  # of the stream",
        "        except ZeroDivisionError as error:  # of the stream",
        ("training/test_state.py::test_a_disk_that_becomes_full_keeps_the_state_that_was_saved_before",),
    ),
    Mutation(
        "predicting only hidden patches gives the gradients of predicting all",
        "bids_app/model/patch_loss.py",
        "(grads[0] * 2 / difference.shape[-1] * weights)",
        "(grads[0] / difference.shape[-1] * weights)",
        ("model/test_patch_loss.py::test_losses_and_gradients_are_those_of_all_patches",),
    ),
    Mutation(
        "a scan has the same clips in training and in prediction",
        "bids_app/training/data/facts.py",
        "    grid = resample_to_model_grid(preprocessed, folders[2])",
        "    grid = resample_to_model_grid(replace(preprocessed, n_dummy=0), folders[2])",
        ("integration/test_training_trees.py::test_training_and_prediction_have_the_same_clips",),
    ),
    Mutation(
        "clips of an interrupted publication are not used for training",
        "bids_app/training/data/sources.py",
        "            manifest = run.current(PREPROCESSING)",
        "            manifest = run.parts.get(PREPROCESSING)",
        ("integration/test_training_trees.py::test_entries_that_the_manifest_does_not_vouch_for_are_not_used",),
    ),
    Mutation(
        "a series in the space of the scan is not used without its transform",
        "bids_app/bids/ukb.py",
        "    if warp is None:",
        "    if False:",
        ("bids/test_ukb.py::test_a_series_without_its_transform_is_refused_with_the_reason",),
    ),
    Mutation(
        "FSL's fields are read in FSL's coordinates",
        "bids_app/preprocess/registration/transforms.py",
        "    if np.linalg.det(affine[:3, :3]) > 0:",
        "    if False:",
        ("preprocess/registration/test_fsl.py::test_a_field_maps_points_whatever_the_axes_and_the_convention",),
    ),
    Mutation(
        "a low brain that no slices cut has a wrong voxel size",
        "bids_app/preprocess/registration/bold_to_template.py",
        'if not cut and "norm_height" in quality:',
        "if False:",
        (
            "preprocess/registration/test_bold_to_template.py"
            "::test_a_brain_that_is_cut_or_has_an_unlikely_size_is_doubted_with_the_cause",
        ),
    ),
    Mutation(
        "processes that rate at once lose nothing",
        "bids_app/outputs/ratings.py",
        "is_ours = wait_for_lock(file, WAIT_SECONDS)",
        "is_ours = True",
        ("outputs/test_ratings.py::test_processes_that_rate_at_once_lose_nothing",),
    ),
    Mutation(
        "a rating of another window is not replaced unseen",
        "bids_app/outputs/ratings.py",
        'if replaces is not None and replaces != (current.rated_at if current else ""):',
        "if False:",
        ("review/test_server.py::test_a_rating_of_another_window_is_reported_instead_of_replaced",),
    ),
    Mutation(
        "ratings of changed figures do not count",
        "bids_app/outputs/ratings.py",
        "return hash_figure(path) != rating.figure_hash",
        "return False",
        (
            "outputs/test_ratings.py::test_ratings_of_a_figure_that_has_changed_do_not_count",
            "group/test_ratings.py::test_outdated_ratings_are_named_and_do_not_count",
        ),
    ),
    Mutation(
        "no link out of the output folder is served",
        "bids_app/review/server.py",
        "return read_output(path) if path.is_relative_to(self.out_dir) else None",
        "return read_output(path)",
        ("review/test_server.py::test_links_to_files_outside_the_output_folder_are_not_served",),
    ),
    Mutation(
        "notes and names are data of the pages",
        "bids_app/reports/run_table.py",
        r"""return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")""",
        "return text",
        (
            "review/test_page.py::test_notes_and_names_are_data_of_the_page_and_never_part_of_its_code",
            "reports/test_run_table.py::test_hostile_names_cannot_end_the_script_element",
        ),
    ),
    Mutation(
        "failed runs are left out on request",
        "bids_app/group/__init__.py",
        "used = without_failed(cohort, ratings) if settings.exclude_failed else cohort",
        "used = cohort",
        ("group/test_ratings.py::test_failed_runs_are_left_out_of_tables_and_sections_on_request",),
    ),
    Mutation(
        "no more processes are started than there are cores",
        "bids_app/training/processes.py",
        'if kind == "cpu" and layout.launcher == ITSELF and layout.devices > cores:',
        "if False:",
        ("training/test_processes.py::test_more_processes_than_cores_are_not_started",),
    ),
    Mutation(
        "kernels of other packages are tried before they are used",
        "bids_app/model/scan.py",
        'return obstacle or (_trial(self, device, dtype, n_states) if self.on_trial else "")',
        "return obstacle",
        ("model/test_scan.py::test_a_package_whose_trial_scan_fails_is_replaced_with_one_line_in_the_log",),
    ),
    Mutation(
        "a task that contradicts a fine-tuned file is refused",
        "bids_app/adapters/head_facts.py",
        '    if "task" in head and own in (CLASSIFICATION, REGRESSION) and head["task"] != own:',
        "    if False:",
        ("adapters/test_head_facts.py::test_facts_that_do_not_fit_the_head_are_refused",),
    ),
    Mutation(
        "runs of UK Biobank within folders of participants are found",
        "bids_app/bids/ukb.py",
        "elif entry.name.isdecimal() and entry.is_dir():",
        "elif False:",
        ("bids/test_ukb.py::test_folders_within_those_of_participants_are_found_with_their_t1w_images",),
    ),
    # 20. Reports: viewer and group level.
    Mutation(
        "contributions to a withheld prediction are not in the viewer",
        "bids_app/reports/contents.py",
        "overlays=tuple(name for name in viewer if name and name not in hidden),",
        "overlays=tuple(name for name in viewer if name),",
        ("reports/test_viewer.py::test_contributions_to_a_withheld_prediction_are_not_in_the_viewer",),
    ),
    Mutation(
        "the page marks a complete set of files of the group level",
        "bids_app/group/publish.py",
        "names.sort(key=lambda name: name == PAGE)",
        "names.sort()",
        ("group/test_publish.py::test_a_level_that_is_killed_while_files_are_moved_leaves_no_page",),
    ),
    Mutation(
        "reports of participants without outputs are not linked",
        "bids_app/reports/pages.py",
        'return {path.name for path in found if (out_dir / path.stem.partition("_")[0]).is_dir()}',
        "return {path.name for path in found}",
        ("reports/test_index.py::test_a_participant_whose_outputs_are_gone_is_left_out",),
    ),
    Mutation(
        "an extraction of Nipoppy removes the tables of adapters that are no longer used",
        "scripts/write_nipoppy.py",
        "-name 'neurostorm_*' -delete",
        "-name 'neurostorm_*'",
        ("test_nipoppy.py::test_tables_are_copied_and_replace_those_of_an_earlier_run",),
    ),
    Mutation(
        "metadata of all platforms have the licence of the project",
        "CITATION.cff",
        "license: Apache-2.0",
        "license: MIT",
        ("test_metadata.py::test_facts_are_those_of_the_project_and_its_citation",),
    ),
    Mutation(
        "embeddings in Python are those of the participant level",
        "bids_app/adapters/embed.py",
        "yield grid[..., start : start + n_vols].unsqueeze(0)",
        "yield grid[..., :n_vols].unsqueeze(0)",
        ("test_python.py::test_the_lines_of_the_documentation_give_the_embeddings_of_the_participant_level",),
    ),
    Mutation(
        "the function has the checks of the command",
        "bids_app/cli/from_python.py",
        "    parse_settings(words)\n",
        "",
        ("cli/test_from_python.py::test_empty_folders_and_unknown_levels_raise",),
    ),
    Mutation(
        "samples of Brainmarks are read in the order of their voxels",
        "brainmarks/models/neurostorm_bids_app.py",
        "brain = np.asarray(image.dataobj).T > 0",
        "brain = np.asarray(image.dataobj).T[:, :, ::-1] > 0",
        ("test_brainmarks.py::test_transform_equals_to_model_grid_within_an_int8_step",),
    ),
    Mutation(
        "encoders of Brainmarks get voxels in Brainmarks' order",
        "bids_app/preprocess/brainmarks_samples.py",
        "    chosen = values.T > 0\n",
        "    chosen = values.T[:, :, ::-1] > 0\n",
        ("preprocess/test_brainmarks_samples.py::test_voxels_are_those_that_brainmarks_reads_in_its_order",),
    ),
    Mutation(
        "constant voxels of a sample of Brainmarks are 0",
        "bids_app/preprocess/brainmarks_samples.py",
        "        mean[0, part], std[0, part] = average * varies, spread * varies\n",
        "        mean[0, part], std[0, part] = average, spread\n",
        ("preprocess/test_brainmarks_samples.py::test_voxels_outside_the_run_and_constant_ones_are_0_and_counted",),
    ),
    Mutation(
        "parcels of another atlas than Brainmarks' are refused",
        "bids_app/preprocess/brainmarks_samples.py",
        "    if found != wanted or len(np.unique(numbers)) != wanted + 1:\n",
        "    if False:\n",
        (
            "preprocess/test_brainmarks_samples.py::test_cortical_voxels_are_those_of_the_atlas",
            "preprocess/test_brainmarks_samples.py::test_atlases_on_another_grid_or_with_missing_parcels_are_refused",
        ),
    ),
    Mutation(
        "random weights of an encoder of Brainmarks are found",
        "bids_app/model/brainmarks.py",
        "    other = build(name, options, OTHER_SEED).tensors if first.tensors else {}\n",
        "    other = first.tensors\n",
        ("model/test_brainmarks.py::test_random_weights_are_found_and_those_of_a_file_are_not",),
    ),
    Mutation(
        "an untrained encoder of Brainmarks is refused",
        "bids_app/workflow/brainmarks.py",
        "    if found.is_untrained and not wanted.allow_untrained:\n",
        "    if False:\n",
        ("workflow/test_brainmarks.py::test_an_untrained_encoder_runs_only_on_request",),
    ),
    Mutation(
        "the verdict warns of random weights",
        "bids_app/adapters/verdict.py",
        '    if facts.get("random_weights"):\n',
        "    if False:\n",
        ("workflow/test_brainmarks.py::test_the_verdict_warns_of_random_weights_and_applies_no_limit_of_our_encoders",),
    ),
    Mutation(
        "sidecars say that weights are random",
        "bids_app/outputs/predictions.py",
        '        "untrained": encoded.facts.untrained or None,\n',
        '        "untrained": None,\n',
        ("workflow/test_brainmarks.py::test_sidecar_and_group_level_say_that_the_weights_are_random",),
    ),
    Mutation(
        "an encoder of Brainmarks that has to be fitted is refused",
        "bids_app/model/brainmarks.py",
        "    if _has_fit(transform):\n",
        "    if False:\n",
        ("model/test_brainmarks.py::test_a_transform_that_has_to_be_fitted_is_refused",),
    ),
    Mutation(
        "weights of Brainmarks that changed after the start are an error",
        "bids_app/workflow/brainmarks.py",
        "    if model.weights_sha256 != wrapper.weights_sha256:\n",
        "    if False:\n",
        ("workflow/test_brainmarks.py::test_weights_that_changed_after_the_start_are_an_error",),
    ),
    Mutation(
        "an encoder of Brainmarks counts in the configuration",
        "bids_app/workflow/configuration.py",
        "        own = (wrapper.title, wrapper.version, wrapper.source_sha256, wrapper.weights_sha256)\n",
        "        own = (wrapper.title,)\n",
        (
            "workflow/test_configuration.py::test_an_encoder_of_brainmarks_counts_by_weights_code_and_options_but_not_by_the_folder_of_its_file",
        ),
    ),
    Mutation(
        "a figure is drawn once",
        "bids_app/reports/figures/style.py",
        "        _lay_out(figure)\n",
        "",
        ("reports/figures/test_style.py::test_a_figure_is_drawn_once_and_as_matplotlib_lays_it_out",),
    ),
    Mutation(
        "names with $ are no formulas",
        "bids_app/reports/figures/style.py",
        '"text.parse_math": False,',
        '"text.parse_math": True,',
        ("reports/figures/test_style.py::test_any_name_of_a_region_or_label_is_drawn_as_it_is",),
    ),
    Mutation(
        "figures are XML whatever the names of regions have",
        "bids_app/reports/figures/style.py",
        'text = NOT_IN_XML.sub("", buffer.getvalue())',
        "text = buffer.getvalue()",
        ("reports/figures/test_style.py::test_any_name_of_a_region_or_label_is_drawn_as_it_is",),
    ),
    Mutation(
        "the correlation of a region with itself is no figure",
        "bids_app/outputs/regions.py",
        "found.is_covered.sum() > 1",
        "found.is_covered.any()",
        ("outputs/test_regions.py::test_one_region_has_tables_and_no_figure_of_its_correlation_with_itself",),
    ),
    Mutation(
        "names of regions do not reverse the text after them",
        "bids_app/catalog/atlases.py",
        'HIDDEN.sub(" ", name).strip()',
        "name",
        ("catalog/test_atlases.py::test_names_of_regions_have_no_hidden_characters",),
    ),
    Mutation(
        "a note does not reverse the text after it",
        "bids_app/outputs/ratings.py",
        'DIRECTION.sub("", text).strip()',
        "text.strip()",
        ("outputs/test_ratings.py::test_a_note_does_not_reverse_the_text_after_it",),
    ),
    Mutation(
        "a figure that cannot be shown is not rated",
        "bids_app/review/templates/review.js",
        "if (rating && broken.has(present))",
        "if (false)",
        ("review/test_in_browser.py::test_a_figure_that_cannot_be_shown_is_not_rated",),
    ),
    Mutation(
        "one clip has no standard deviation",
        "bids_app/adapters/attribution.py",
        "self.clips.std(axis=0) if len(self.clips) > 1 else np.full(self.clips.shape[1], np.nan)",
        "self.clips.std(axis=0)",
        ("adapters/test_attribution.py::test_one_clip_has_no_standard_deviation",),
    ),
    Mutation(
        "deleted figures and tables are named in the report",
        "bids_app/reports/contents.py",
        "        self._name_lost(self._known.get(stem, RunFiles()), outcome)\n",
        "",
        ("reports/test_invocations.py::test_a_figure_table_or_sidecar_that_was_deleted_is_named",),
    ),
    # Cohorts: what is gone or damaged is not waited for.
    Mutation(
        "a participant without its outputs is not done",
        "bids_app/cluster/states.py",
        "if lost := first_lost_output(runs, out_dir):",
        'if lost := "":',
        ("cluster/test_states.py::test_a_participant_whose_outputs_were_removed_is_not_done",),
    ),
    Mutation(
        "a participant whose images were moved away is not processed again",
        "bids_app/cluster/states.py",
        " if not may_be_gone(name)):",
        "):",
        ("cluster/test_states.py::test_a_participant_whose_images_and_clips_were_moved_away_is_done",),
    ),
    Mutation(
        "a damaged row is not waited for",
        "bids_app/cluster/tasks.py",
        "started = path.stat().st_mtime",
        "pass",
        ("cluster/test_states.py::test_a_task_whose_row_is_damaged_counts_as_started_and_is_not_waited_for",),
    ),
    Mutation(
        "lists with other options are not waited for",
        "bids_app/cluster/states.py",
        "if cohort.decisive != task.submission.decisive:",
        "if False:",
        ("cluster/test_states.py::test_tasks_of_lists_with_other_options_are_not_waited_for",),
    ),
    # Group level and Python: what is lost or wrong is named.
    Mutation(
        "a run without a table that it wrote is missing",
        "bids_app/group/reading.py",
        "run.lost = [name for name in wanted if name not in present]",
        "run.lost = []",
        ("group/test_reading.py::test_a_run_without_a_table_that_it_wrote_is_missing_and_does_not_pass",),
    ),
    Mutation(
        "impossible probabilities are named",
        "bids_app/group/reading.py",
        "    _check_probabilities(cells)",
        "    pass",
        ("group/test_reading.py::test_probabilities_that_are_none_are_named_and_not_shown",),
    ),
    Mutation(
        "reports of participants without outputs are named",
        "bids_app/group/__init__.py",
        "if orphans := pages_without_outputs(out_dir):",
        "if orphans := []:",
        ("group/test_page.py::test_reports_of_participants_without_outputs_are_named",),
    ),
    Mutation(
        "the certainty warns as rarely as the number of participants allows",
        "bids_app/adapters/calibration_fit.py",
        "levels = sorted({*LEVELS, 1 - lowest_rate(len(set(groups)))})",
        "levels = LEVELS",
        (
            "adapters/test_calibration_fit.py::"
            "test_low_certainty_is_as_rare_as_the_number_of_calibration_participants_allows",
        ),
    ),
    Mutation(
        "a repetition time in milliseconds is refused",
        "bids_app/clips/series.py",
        "not 0 < tr <= MAX_TR",
        "not 0 < tr",
        ("test_python.py::test_arguments_of_another_kind_are_refused_with_a_reason",),
    ),
    # The documentation: what is on the site is what the package has.
    Mutation(
        "a class of errors has a cause on the page of errors",
        "bids_app/errors.py",
        '    cause = "The third argument is neither `participant` nor `group`."\n',
        "",
        ("test_site.py::test_every_class_of_errors_has_a_cause_and_a_remedy_on_the_page",),
    ),
    Mutation(
        "the page of errors has all messages",
        "scripts/site_pages/messages.py",
        'rows = [[escape(m.text), escape(m.hint) or "see the message"] for m in own if m.topic == topic]',
        'rows = [[escape(m.text), escape(m.hint) or "see the message"] for m in own[1:] if m.topic == topic]',
        ("test_site.py::test_all_messages_of_the_package_have_a_hint",),
    ),
    Mutation(
        "in tables with entities, the number of a run is not described as its name",
        "bids_app/group/tables.py",
        "        if name in described:\n            continue\n",
        "",
        ("group/test_tables.py::test_the_number_of_a_run_is_not_described_as_its_name",),
    ),
    Mutation(
        "tables of predictions have a data dictionary of all columns",
        "bids_app/outputs/predictions.py",
        '        found |= {f"p_{label}": {"Description": f"Probability of {label}"} for label in card.labels}\n',
        "",
        ("outputs/test_predictions.py::test_all_columns_of_predictions_are_described",),
    ),
    Mutation(
        "the table of outliers has a data dictionary",
        "bids_app/group/quality.py",
        '    write_json(path.with_suffix(".json"), OUTLIER_COLUMNS)\n',
        "",
        ("group/test_tables.py::test_every_column_is_described",),
    ),
    Mutation(
        "complex images are refused in Python",
        "bids_app/clips/series.py",
        'if dtype.kind not in "biuf":',
        "if False:",
        ("clips/test_series.py::test_invalid_images_raise",),
    ),
    Mutation(
        "series that are not real numbers are refused in Python",
        "bids_app/adapters/embed.py",
        "    if not numeric:\n",
        "    if False:\n",
        ("adapters/test_embed.py::test_series_that_are_not_real_numbers_are_refused",),
    ),
    Mutation(
        "size and spacing of the grid are described in the quality table",
        "bids_app/reports/contents.py",
        'known = spec()["quality"] | spec()["grid"]',
        'known = spec()["quality"]',
        ("reports/test_participant.py::test_columns_are_described_with_units_and_limits",),
    ),
    Mutation(
        "a run that cannot be denoised names another strategy",
        "bids_app/preprocess/denoise.py",
        '            "Choose another strategy of --denoise; simple keeps volumes with motion.",\n',
        "",
        (
            "preprocess/test_denoise.py::test_a_run_with_too_few_volumes_without_motion_is_named",
            "test_site.py::test_all_messages_of_the_package_have_a_hint",
        ),
    ),
    Mutation(
        "the site has the options of subcommands",
        "scripts/site_pages/options.py",
        "        yield from _describe(each, level + 1)\n",
        "",
        ("test_site.py::test_every_option_is_on_its_page",),
    ),
    Mutation(
        "keys of objects within sidecars are on the page of outputs",
        "scripts/site_pages/sidecars.py",
        "    for kind in [*files, *nested]:",
        "    for kind in files:",
        ("test_site.py::test_every_key_of_sidecars_and_logs_has_a_meaning",),
    ),
    Mutation(
        "a link to a file outside the documentation is no dead link of the site",
        "scripts/site_pages/links.py",
        "if REPOSITORY else words",
        "if REPOSITORY else found[0]",
        ("test_site.py::test_links_of_the_site_lead_to_pages_copies_or_nowhere",),
    ),
    Mutation(
        "every page is in the navigation",
        "mkdocs.yml",
        "      - Usage: usage.md\n",
        "",
        ("test_site.py::test_the_navigation_has_every_page_once",),
    ),
    Mutation(
        "a dead link stops the build of the documentation",
        "Makefile",
        "$(MKDOCS) build --strict\n",
        "$(MKDOCS) build --strict --quiet\n",
        ("test_site.py::test_a_dead_link_stops_the_build",),
    ),
    Mutation(
        "the site loads its search from no other host",
        "mkdocs.yml",
        "polyfills: [javascripts/iframe-worker.js]",
        "polyfills: []",
        ("test_site.py::test_the_site_loads_nothing_from_other_hosts",),
    ),
)


def chosen(words: str) -> list[Mutation]:
    """Return the mutations with a text in their promise, file or tests."""
    return [m for m in MUTATIONS if any(words.lower() in text.lower() for text in (m.promise, m.file, *m.tests))]


def copy_tree(target: Path) -> None:
    """Copy the tracked files, as they are in the working tree, and the compiled kernel."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in (*names, *(str(path.relative_to(ROOT)) for path in ROOT.glob(COMPILED))):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def run_tests(root: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Run tests of a copy in one process; return pytest's exit code and output."""
    # without files of compiled code, which might be those of the unmodified source
    environment = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", str(SECONDS), *options]
    with tempfile.TemporaryFile(
        "w+", errors="replace"
    ) as output:  # a pipe stays open while a process that is left runs
        done = subprocess.Popen(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=root,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = done.wait()
        with suppress(ProcessLookupError):
            os.killpg(done.pid, signal.SIGKILL)  # processes that a mutated program left
        output.seek(0)
        return code, output.read()


def judge(code: int, output: str) -> str:
    """Return what the exit code and the output of pytest say about a mutation."""
    if code == 0:
        return SURVIVED
    if code != 1 or NOT_IMPORTED.search(output) or not re.search(r"\b\d+ failed\b", output):
        return BROKEN
    return CAUGHT


def not_green(root: Path, tests: Sequence[str]) -> set[str]:
    """Return the tests that do not pass in an unmodified copy."""
    code, output = run_tests(root, tests, "-rfE")
    if code not in (0, 1):
        raise SystemExit(f"The tests cannot be run:\n{output[-3000:]}")
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return {test for test in tests if any(f"tests/{test}" in line for line in lines)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the mutations, print a line for each test, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-k", default="", metavar="TEXT", help="only mutations with this text")
    parser.add_argument("-v", action="store_true", help="show the output of pytest for mutations that are not caught")
    given = parser.parse_args(arguments)
    mutations = chosen(given.k)
    if not mutations:  # pytest without the name of a test would run all of them
        parser.error(f"no mutation has the text {given.k!r}")
    n_caught = n_tests = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        root = Path(folder) / "tree"
        copy_tree(root)
        failing = not_green(root, list(dict.fromkeys(test for m in mutations for test in m.tests)))
        for mutation in mutations:
            original = mutation.apply(root)
            for test in mutation.tests:
                n_tests += 1
                result, output = NOT_GREEN, ""
                if test not in failing:
                    code, output = run_tests(root, [test], "-x")
                    result = judge(code, output)
                n_caught += result == CAUGHT
                print(f"{mutation.promise} | {test} | {result}", flush=True)
                if given.v and result != CAUGHT:
                    print(output)
            (root / mutation.file).write_text(original, encoding="utf-8")
    print(f"{len(mutations)} mutations: {n_caught} of {n_tests} tests failed as they should.")
    return 0 if n_caught == n_tests else 1


if __name__ == "__main__":
    sys.exit(main())
