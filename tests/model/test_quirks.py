"""What is odd about models and libraries, each with the tests that hold us to it.

No quirk may lose its test: this file fails where one that it names is gone or skipped.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_FORMULA = "tests/data/test_token_formula.py::"
_LABELS = "tests/data/test_labels.py::"
_PACKING = "tests/data/test_packing.py::"
_ROWS = "tests/model/test_packed_attention.py::"
_FAMILIES = "tests/data/test_families_media.py::"
_ODD = "tests/data/test_odd_images.py::"
_PREFIX = "tests/data/test_prefix.py::"

QUIRKS: dict[str, tuple[str, ...]] = {
    # How many tokens an image takes
    "Most processors know an image's tokens from its size; what they know is used once proven": (
        f"{_FORMULA}test_every_size_becomes_what_the_processor_makes_of_it",
        "tests/data/test_encode.py::test_ids_from_sizes_equal_the_processors_call_on_real_images",
    ),
    "llava_onevision's own count is wrong for several images, which it does not cut into tiles": (
        f"{_FORMULA}test_own_count_of_llava_onevision_is_wrong_for_several_images_and_ours_is_right",
    ),
    "smolvlm and mllama cannot count their tokens": (
        f"{_FORMULA}test_processor_without_a_count_of_its_own_is_counted_all_the_same",
    ),
    "gemma3 counts its soft tokens without their frame, pixtral breaks and ends too": (
        f"{_FORMULA}test_own_count_of_gemma3_has_its_soft_tokens_alone",
        f"{_FORMULA}test_own_count_has_the_tokens_around_and_within_images",
    ),
    "A blank image of the header's size becomes what the real one will, once for each size": (
        f"{_FORMULA}test_size_goes_through_the_processor_once",
        f"{_ODD}test_picture_of_odd_size_is_what_the_processor_makes_of_it_or_refused",
        f"{_ODD}test_none_to_eight_pictures_are_what_the_processor_makes_of_them",
        "tests/data/test_own_ids.py::test_cached_ids_are_those_of_every_familys_own_processor",
    ),
    "A header's size knows no EXIF orientation, which readers of pixels apply": (
        "tests/data/test_images.py::"
        "test_size_that_pillow_reads_knows_no_orientation_while_readers_apply_it",
        "tests/data/test_images.py::test_open_and_size_follow_exif_orientation",
        f"{_ODD}test_picture_of_every_kind_is_its_first_frame_upright",
    ),
    "A strip of an image can be too long for a family, or less than it can read": (
        f"{_FAMILIES}test_picture_of_any_shape_reaches_the_model_or_is_refused",
        f"{_ODD}test_picture_of_odd_size_is_what_the_processor_makes_of_it_or_refused",
    ),
    # Which tokens are trained
    "Each family has ids of its own that are never trained, molmo2 eight of them": (
        "tests/model/test_families.py::test_untrained_token_ids_are_the_media_tokens",
        f"{_FAMILIES}test_trained_are_the_words_of_the_answer_and_its_end_alone",
    ),
    "mllama's image token lies one beyond the vocabulary that it predicts": (
        "tests/model/test_families.py::test_vocabulary_of_mllama_ends_before_its_image_token",
        "tests/data/test_collator.py::"
        "test_labels_of_trl_are_beyond_the_vocabulary_of_mllama_and_ours_within",
    ),
    "TRL's collator masks padding alone: it trains on image tokens": (
        "tests/data/test_collator.py::"
        "test_labels_of_trl_are_image_tokens_for_a_good_part_and_ours_never",
    ),
    "Masks of marked templates are shifted where the processor puts a token before the text": (
        f"{_LABELS}test_masks_of_marked_templates_are_right_unless_the_processor_adds_words",
        f"{_FAMILIES}test_prompt_is_that_of_the_processor_to_the_token",
    ),
    "TRL knows templates by their exact text, and none of Llama 3.2": (
        f"{_LABELS}test_training_templates_of_trl_are_found_by_their_exact_text_alone",
    ),
    "Some of TRL's training templates train the header of the role too": (
        f"{_LABELS}test_markers_around_the_role_header_train_the_words_alone",
    ),
    "Some of them train what the prompt goes on with as well": (
        f"{_LABELS}test_header_whose_prompt_goes_on_to_think_is_not_trained",
    ),
    "Others render other words than the template that they stand for": (
        f"{_LABELS}test_reasoning_template_trains_the_last_answer_with_its_empty_thoughts",
    ),
    "The prompt of a turn is no prefix of the whole conversation in some templates": (
        f"{_LABELS}test_template_whose_prompts_are_no_prefixes_trains_the_words_of_answers_alone",
        f"{_LABELS}test_template_that_moves_the_system_text_trains_the_last_answer",
    ),
    "Markers, else prefixes, else the last turn: the first that holds": (
        f"{_LABELS}test_method_is_the_first_that_holds",
    ),
    "llava's template ends no turn": (
        f"{_LABELS}test_llava_trains_an_end_of_turn_that_its_template_lacks",
    ),
    "llava's template writes no BOS, so that it is missing where none is added": (
        f"{_LABELS}test_template_of_llava_writes_no_bos_and_its_rows_begin_with_one",
    ),
    "Llama's templates print today's date": (
        f"{_LABELS}test_template_of_llama_prints_the_day_and_ours_the_same_every_day",
        f"{_LABELS}test_date_in_a_template_is_pinned_in_every_form",
    ),
    "The end of a turn may be the padding as well": (
        "tests/data/test_collator.py::test_padding_that_is_eos_hides_no_end_of_turn",
    ),
    # PaliGemma's prompt
    "paligemma's processor puts BOS behind the images and a line break behind the prompt": (
        f"{_PREFIX}test_batch_is_that_of_the_processor_with_eos_trained",
        f"{_PREFIX}test_prompt_and_answer_stand_where_the_processor_puts_them",
    ),
    "paligemma's prompt is seen both ways, and its answer too unless token types tell it apart": (
        f"{_PREFIX}test_token_sees_the_whole_prompt_and_no_later_token_of_the_answer",
        f"{_PREFIX}test_padded_batch_has_the_loss_and_gradients_of_its_samples",
    ),
    "paligemma counts positions from 1": (
        f"{_PREFIX}test_positions_begin_with_1_and_are_left_to_the_model",
    ),
    "paligemma's processor takes no text without an image": (
        f"{_PREFIX}test_text_without_an_image_is_refused",
    ),
    # Samples in one row
    "A mask of all ones, a cache or plain positions let the samples of a row see each other": (
        f"{_ROWS}test_row_under_stock_attention_is_its_samples_without_mask_and_cache_alone",
        f"{_PACKING}test_packed_row_has_the_loss_and_gradients_of_its_samples",
        f"{_PACKING}test_change_of_a_sample_changes_no_other",
        "tests/train/guards/test_packing.py::"
        "test_difference_is_found_in_each_condition_that_packing_rests_on",
    ),
    "Nothing is cached in evaluation either": (
        "tests/evaluate/test_losses.py::test_rows_packed_into_one_have_the_loss_of_padded_ones",
        "tests/train/test_evaluation.py::test_held_out_loss_is_that_of_a_plain_loop_over_tokens",
    ),
    "Qwen's three rows of positions need a fourth before them": (
        "tests/model/test_positions.py::"
        "test_positions_of_other_shapes_let_samples_touch_or_lose_their_dimensions",
        "tests/model/test_positions.py::"
        "test_images_have_the_positions_that_the_model_gives_each_sample",
    ),
    "mllama, gemma3, molmo2 and paligemma cannot share rows: they are padded": (
        f"{_PACKING}test_molmo2_which_is_padded_has_other_logits_in_a_packed_row",
        "tests/model/test_batching.py::test_family_that_cannot_be_packed_is_padded_and_says_why",
        "tests/model/test_batching.py::test_family_whose_images_are_read_both_ways_is_padded",
        "tests/data/test_sampler.py::test_padded_micro_batches_hold_samples_of_like_length",
    ),
    "Stock attention makes a mask of tokens × tokens of a packed row": (
        f"{_ROWS}test_stock_attention_makes_a_mask_of_the_whole_row_and_ours_none",
        f"{_ROWS}test_row_of_a_vision_family_that_is_named_nowhere_is_its_samples",
    ),
    "flex_attention has no backward on a CPU": (
        "tests/model/test_attention.py::test_flex_attention_has_no_backward_on_a_cpu",
    ),
    "The first token of a sample is predicted by nothing": (
        f"{_PACKING}test_rows_without_labels_have_no_loss",
        "tests/data/test_loss_inputs.py::test_last_token_of_a_row_predicts_nothing_of_the_next",
    ),
    "Every family divides its loss by what the trainer counts": (
        "tests/model/test_num_items.py::test_loss_is_divided_by_the_items_that_the_trainer_counts",
    ),
    "Some image processors want images by sample, and all of a packed row as one sample": (
        f"{_PACKING}test_packed_row_has_the_loss_and_gradients_of_its_samples",
        f"{_ODD}test_none_to_eight_pictures_are_what_the_processor_makes_of_them",
    ),
    # Ranks
    "One rank with images and one without wait for each other for ever": (
        "tests/distributed/test_packing.py::"
        "test_run_with_images_on_one_rank_alone_has_the_curve_of_one_process",
        "tests/distributed/test_fsdp.py::"
        "test_step_with_images_on_one_rank_alone_is_that_of_one_process",
    ),
    "A small image behind the text changes no loss": (
        "tests/data/test_collator.py::test_dummy_image_changes_no_loss_and_reaches_the_vision_tower",
        f"{_PACKING}test_row_without_an_image_gets_one_that_changes_no_loss",
    ),
    "All ranks need as many micro batches": (
        f"{_PACKING}test_rank_without_a_sample_reaches_what_others_train_and_trains_nothing",
        "tests/data/test_sampler.py::"
        "test_every_sample_is_trained_once_an_epoch_whatever_is_left_for_its_last_step",
    ),
    "A bare Accelerator sees one rank where the trainer sees all": (
        "tests/distributed/test_accelerator.py::"
        "test_bare_accelerator_on_cpus_under_deepspeed_sees_one_rank_and_the_trainer_all",
        "tests/preflight/test_doctor.py::"
        "test_doctor_of_a_run_proves_its_strategy_through_its_own_launch",
    ),
}
"""A quirk, and the functions that test it."""


@cache
def functions(file: str) -> dict[str, str]:
    """The functions of a file, each with its decorators as text."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: " ".join(map(ast.unparse, node.decorator_list)) for node in found}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirk_has_its_tests(quirk: str) -> None:
    for test in QUIRKS[quirk]:
        file, _, name = test.partition("::")
        decorators = functions(file).get(name)
        assert decorators is not None, f"{test} is gone"
        assert "skip" not in decorators, test
        assert "xfail" not in decorators, test
