"""Which test injects which fault. ``scripts/faults.py`` runs them all and writes what was injected, fired and survived.

A row names tests as ``file`` or ``file::function`` below ``tests/``; a test that notes no counts of its own counts as
one fault for each of its cases.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    title: str
    tests: tuple[str, ...] = ()
    missing: str = ""
    """Why there is no test yet, where there is none."""


CHECKPOINT, DDP, CONDUCTOR = "test_checkpoint.py::test_", "test_ddp.py::test_", "test_conductor.py::test_"
ENGINE, SCORES = "test_engine.py::test_", "test_evaluation.py::test_"
KILLS, DISK, SIGNALS = "faults/test_kills.py::test_", "faults/test_disk.py::test_", "faults/test_signals.py::test_"
IMAGES, ATTACKS, FUZZ = "faults/test_images.py", "faults/test_attacks.py", "faults/test_fuzz.py"
AROUND = "faults/test_surroundings.py::test_"
SWEEPS, RANKS = "faults/test_sweeps.py", "faults/test_ranks.py"

ROWS: dict[int, Row] = {
    # Writing checkpoints
    1: Row(
        "SIGKILL at a random moment while saving",
        (f"{KILLS}random_kills_while_saving_lose_nothing", f"{CHECKPOINT}a_kill_at_any_moment_leaves_only_whole_files"),
    ),
    2: Row(
        "the same with the run folder on another file system than TMPDIR",
        (f"{KILLS}random_kills_while_saving_lose_nothing",),
    ),
    3: Row("killed between write and rename", (f"{KILLS}a_run_killed_at_a_certain_point_ends_as_one_that_was_not",)),
    4: Row(
        "disk full in the middle of a write",
        (
            f"{CHECKPOINT}a_full_disk_is_one_line_and_leaves_nothing",
            f"{DISK}a_limit_on_file_sizes_ends_the_run_in_one_line_and_leaves_no_half_file",
        ),
    ),
    5: Row("TMPDIR full or read-only", (f"{DISK}an_unusable_tmpdir_does_not_matter",)),
    6: Row(
        "permission denied on save",
        (
            f"{DISK}a_disk_that_refuses_is_one_line_and_costs_no_older_file",
            f"{DISK}a_disk_that_hiccups_once_costs_nothing",
        ),
    ),
    7: Row(
        "checkpoint cut, flipped or empty",
        (
            f"{CHECKPOINT}every_cut_and_every_flipped_bit_is_seen",
            f"{DISK}damaged_checkpoints_are_named_passed_over_and_kept",
            f"{DISK}only_damaged_checkpoints_are_no_new_start",
        ),
    ),
    8: Row("another run's file under this run's name", (f"{DISK}damaged_checkpoints_are_named_passed_over_and_kept",)),
    9: Row("last.ckpt missing, dangling or a loop", (f"{DISK}a_lost_last_is_the_newest_whole_step",)),
    10: Row("two runs in one folder", ("test_lock.py",)),
    11: Row(
        "final state where the interval does not divide the run",
        (f"{ENGINE}run_folder_counts_iterations_with_two_optimisers",),
    ),
    12: Row(
        "killed while old files are deleted", (f"{KILLS}a_run_killed_at_a_certain_point_ends_as_one_that_was_not",)
    ),
    13: Row(
        "order of fsync and rename",
        (f"{CHECKPOINT}bytes_are_on_disk_before_the_name_and_the_name_before_going_on",),
    ),
    # Resume
    14: Row(
        "SIGKILL in the middle of an epoch, each model",
        (
            f"{KILLS}a_run_killed_at_random_steps_ends_as_one_that_was_not",
            f"{RANKS}::test_every_model_resumes_exactly_with_workers_and_with_ranks",
        ),
    ),
    15: Row(
        "killed at an epoch's end, first or last batch, in validation, scores or pictures",
        (f"{KILLS}a_run_killed_at_a_certain_point_ends_as_one_that_was_not",),
    ),
    16: Row("two runs of one seed", ("test_contract.py::test_one_seed_is_one_run",)),
    17: Row("killed three times in a row", (f"{KILLS}every_iteration_sees_the_same_samples_however_often_it_is_done",)),
    18: Row(
        "samples after a resume: none twice, none missing",
        (f"{KILLS}every_iteration_sees_the_same_samples_however_often_it_is_done",),
    ),
    19: Row(
        "killed between the critic's steps and the generator's",
        (f"{KILLS}a_run_killed_at_a_certain_point_ends_as_one_that_was_not",),
    ),
    20: Row(
        "random numbers drawn by scores and pictures",
        (f"{ENGINE}pictures_scores_and_logs_change_no_weight",),
    ),
    21: Row("average absent or made anew on load", (f"{DISK}an_average_that_is_missing_is_not_made_anew",)),
    22: Row("state outside of the networks", ("test_kept.py",)),
    23: Row("killed while a network grows", missing="no growing network yet"),
    24: Row("resumed with a changed config", (f"{DISK}a_changed_config_is_refused_and_its_keys_named",)),
    25: Row(
        "resumed with another number of ranks",
        (f"{DDP}ranks_agree_on_weights_share_the_data_draw_their_own_noise_and_resume_bit_for_bit",),
    ),
    26: Row("a checkpoint of an older or newer format", (f"{CHECKPOINT}a_newer_format_says_so",)),
    27: Row("learning rates after a resume", (f"{DISK}learning_rates_go_on_where_they_were",)),
    28: Row(
        "steps are iterations, not optimiser steps",
        (f"{ENGINE}run_folder_counts_iterations_with_two_optimisers",),
    ),
    # Processes
    29: Row(
        "SIGTERM or SIGUSR1 in training, validation, scores, data",
        (
            f"{SIGNALS}a_signal_at_any_moment_loses_no_iteration",
            f"{SIGNALS}signals_while_workers_decode_lose_nothing_and_the_end_is_the_same",
            f"{CONDUCTOR}a_signal_where_scores_are_due_leaves_them_owed_and_resume_makes_up_for_them",
            f"{CONDUCTOR}a_signal_ends_an_evaluation_at_once_and_its_iteration_is_saved_already",
        ),
    ),
    30: Row(
        "SIGTERM twice, SIGKILL right after SIGTERM",
        (
            f"{SIGNALS}a_kill_right_after_a_signal_leaves_only_whole_files",
            f"{SIGNALS}ctrl_c_twice_ends_at_once_and_breaks_nothing",
        ),
    ),
    31: Row("SIGINT", (f"{SIGNALS}a_signal_at_any_moment_loses_no_iteration",)),
    32: Row(
        "a rank killed",
        (f"{DDP}a_rank_that_dies_while_training_ends_the_job", f"{RANKS}::test_one_bad_rank_ends_the_job"),
    ),
    33: Row("a rank that raises", (RANKS,)),
    34: Row(
        "a rank that hangs",
        (
            f"{DDP}a_first_rank_that_works_is_waited_for_and_one_that_hangs_is_not",
            f"{RANKS}::test_one_bad_rank_ends_the_job",
        ),
    ),
    35: Row("counts that the ranks cannot share evenly", (f"{CONDUCTOR}check_refuses_what_train_refuses",)),
    36: Row("a data worker killed", (f"{AROUND}a_worker_that_is_killed_is_one_line_and_costs_no_checkpoint",)),
    37: Row("port in use", (f"{RANKS}::test_a_port_in_use_is_not_chosen",)),
    # Numbers
    38: Row("a loss, gradient or weight that is NaN", ("test_rollback.py",)),
    39: Row(
        "NaN in a statistic or an average",
        ("test_rollback.py::test_what_is_lost_where_no_loss_shows_it_is_found_before_it_is_saved",),
    ),
    40: Row(
        "rollbacks without end",
        ("test_rollback.py::test_three_rollbacks_at_most_and_no_file_ever_holds_what_is_not_finite",),
    ),
    # Data
    41: Row(
        "files that are no images",
        (
            f"{IMAGES}::test_broken_files_are_named_by_check",
            f"{IMAGES}::test_check_lists_all_bad_files_and_train_stops_at_the_first",
            f"{IMAGES}::test_check_lists_with_several_processes",
            f"{IMAGES}::test_check_lists_bad_images_of_celeba",
        ),
    ),
    42: Row(
        "images of unusual modes",
        (f"{IMAGES}::test_odd_images_are_converted_and_trained_on",),
    ),
    43: Row(
        "images of too many pixels",
        (
            f"{IMAGES}::test_what_cannot_be_meant_is_refused",
            f"{IMAGES}::test_a_picture_just_below_the_limit_is_taken",
        ),
    ),
    44: Row(
        "empty, missing or unreadable folders",
        (
            f"{IMAGES}::test_folders_that_are_none",
            f"{IMAGES}::test_folders_and_files_without_permission",
            f"{IMAGES}::test_names_behind_which_no_file_can_be_read",
        ),
    ),
    45: Row("data smaller than a batch", (f"{CONDUCTOR}check_refuses_what_train_refuses",)),
    46: Row(
        "pairs that do not match, labels out of range",
        (f"{IMAGES}::test_lists_that_do_not_fit_the_images", f"{IMAGES}::test_labels_that_do_not_fit_the_images"),
    ),
    47: Row("data changed between start and resume", (f"{IMAGES}::test_data_that_changed_are_refused_by_resume",)),
    48: Row(
        "names with spaces, line ends, other alphabets; loops of links",
        (
            f"{IMAGES}::test_odd_names_work_or_stay_on_one_line",
            f"{IMAGES}::test_folder_names_and_loops_of_links",
        ),
    ),
    # Scores
    49: Row("samples of another range or type", (f"{SCORES}samples_unlike_the_data_are_refused",)),
    50: Row("too few samples", (f"{SCORES}few_samples_are_refused_with_both_numbers",)),
    51: Row("Frechet distance against float64", ("test_distances.py",)),
    52: Row("singular and broken covariances", ("test_distances.py::test_broken_features_are_refused",)),
    53: Row(
        "one rank or two, any batch size", ("test_extractors.py::test_batch_size_and_callers_settings_change_nothing",)
    ),
    54: Row("protocol in each result", (f"{SCORES}the_protocol_says_what_was_done",)),
    55: Row("stored statistics cut or foreign", missing="no statistics are stored on disk yet"),
    56: Row("a score that fails", (f"{CONDUCTOR}an_evaluation_that_breaks_costs_no_iteration",)),
    # Security
    57: Row(
        "pickles that would run code",
        (f"{ATTACKS}::test_pickles_run_nothing",),
    ),
    58: Row(
        "targets outside of the allowed packages",
        (f"{ATTACKS}::test_targets_outside_of_the_allowed_packages_are_not_imported",),
    ),
    59: Row(
        "archives that escape or swell",
        (
            f"{ATTACKS}::test_tars_put_nothing_anywhere",
            f"{ATTACKS}::test_tars_do_not_swell",
            f"{ATTACKS}::test_zips_put_nothing_anywhere",
        ),
    ),
    60: Row(
        "downloads that are not what was published",
        (
            f"{ATTACKS}::test_downloads_that_are_not_what_was_published",
            f"{ATTACKS}::test_downloads_that_are",
            f"{ATTACKS}::test_only_the_same_host_may_send_on",
        ),
    ),
    61: Row(
        "run names that leave the output folder",
        (f"{ATTACKS}::test_run_names_stay_in_the_output_folder",),
    ),
    62: Row(
        "secrets in the files of a run",
        (
            f"{ATTACKS}::test_secrets_stand_in_no_file_of_a_run",
            f"{ATTACKS}::test_what_is_no_secret_stands_in_the_files_of_a_run",
        ),
    ),
    63: Row(
        "YAML bombs and tags",
        (
            f"{ATTACKS}::test_yaml_that_swells_or_calls",
            f"{ATTACKS}::test_a_stored_config_without_a_fault_is_read",
        ),
    ),
    64: Row(
        "resolvers that run code",
        (f"{ATTACKS}::test_no_resolver_runs_code_or_reads_the_machine",),
    ),
    65: Row("dependencies with known bad releases", ("test_architecture.py::test_pins_keep_known_bad_releases_out",)),
    # Sweeps and loggers
    66: Row("jobs that die in five ways", (SWEEPS,)),
    67: Row("a sweep killed and started again", (SWEEPS,)),
    68: Row(
        "misspelt keys, wrong types, wrong pairs",
        (
            f"{FUZZ}::test_random_words",
            f"{FUZZ}::test_random_words_of_a_training_leave_no_folder_when_they_are_refused",
            f"{FUZZ}::test_mistakes_are_one_line_and_leave_no_folder",
            f"{FUZZ}::test_numbers_that_nothing_counts_to",
            f"{FUZZ}::test_damaged_configs",
        ),
    ),
    69: Row("W&B missing, without key, slow or dying", ("test_wandb.py", "faults/test_services.py")),
    70: Row(
        "full log disk, closed output, no terminal",
        ("test_progress.py", "test_loggers.py::test_rows_wait_for_a_disk_that_refuses_and_one_line_says_so"),
    ),
    71: Row(
        "clock jumps, no home, strict umask",
        (
            f"{AROUND}no_home_no_name_and_a_strict_mask",
            f"{AROUND}a_clock_that_jumps_changes_no_weight_and_no_order",
        ),
    ),
}
