"""A setting that does nothing is a defect: each of these changes what three steps log or leave behind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amradio import distill as run_distill
from amradio.recipe import Recipe
from runs import metrics, state
from settings_tree import changed_settings, name_of, settings_below

pytestmark = pytest.mark.slow

STEPS = ("stages.0.steps=3", "evaluate.every=null", "engine.checkpoint_every=3", "loss.spatial=match")
"""With the loss that has the most keys."""
ONE = ("teachers.dino=null", "teachers.sam=null")
"""One teacher: quicker."""
ERADIO = (
    "student={type: eradio, size: xxxtiny, dim: 8, stem_dim: 8, depths: [1, 1, 1, 1], num_heads: [2, 2], window_size: 3, cpb_hidden_dim: 8}"
)
RADIO1D = (
    "student={type: radio1d, dim: 32, depth: 3, num_heads: 4, patch_size: 8, max_image_size: 64, merge_before: [1], decoder_depth: 3,"
    " filler_side: 3}"
)
BASES = {
    "three": (),
    "vit": ONE,
    "from_few": (*ONE, "normalize.summary=none", "normalize.spatial=none"),
    "eradio": (*ONE, ERADIO, "stages.0.partitions.0.image_size=64"),
    "radio1d": (*ONE, RADIO1D),
    "timm": (*ONE, "student={type: timm, model: test_efficientnet}"),
    "timm_neck": (*ONE, "student={type: timm, model: test_efficientnet, neck: true}"),
    "without_val": (*ONE, "data.val=null"),
    "measured": (*ONE, "evaluate.every=3"),
    "two_blocks": (*ONE, "student.depth=2"),
    "attention": (*ONE, "heads.spatial={type: attention, num_heads: 2}"),
    "scenes": (*ONE, "data.train={type: scenes, length: 40}"),
    "two_folders": (*ONE, "data.train={type: mixture, sources: {a: {type: scenes}, b: {type: scenes, seed: 5}}, weights: {a: 1, b: 1}}"),
}
"""Words that are put before those of a case; `unchanged` has them alone."""
CASES = {
    "three": (
        "heads.by_teacher.sam={spatial: linear}",
        "balance=adaloss",
        "balance={type: adaloss, decay: 0.5}",
        "balance=uncertainty",
        "balance=teacher_dropping",
        "balance={type: teacher_dropping, probability: 0.9}",
        "teachers.dino.input_size=42",
        "loss.grid=smaller",
        "teachers.sam.spatial_weight=0.5",
        "stages.0.partitions.0.mosaic=[sam]",
    ),
    "vit": (
        "seed=1",
        "data.crop_scale=[0.2, 0.3]",
        "data.crop_ratio=[1.0, 1.1]",
        "data.flip=0.0",
        "optimizer.learning_rate=2e-3",
        "optimizer.final_learning_rate=9e-4",
        "optimizer.milestones=[0.4]",
        "optimizer.weight_decay=0.5",
        "optimizer.betas=[0.5, 0.9]",
        "optimizer.epsilon=1e-2",
        "optimizer.clip=1e-3",
        "optimizer.algorithm=lamb",
        "optimizer.rates.body=0.5",
        "optimizer.rates.heads=0.5",
        "optimizer.rates.norms=0.5",
        "optimizer.layer_decay=0.5",
        "stages.0.rate_factor=2.0",
        "stages.0.frozen_steps=1",
        "regularize.spectral=true",
        "regularize.weight_noise=0.1",
        "loss.summary=cosine",
        "loss.spatial=mse",
        "loss.spatial=smooth_l1",
        "loss.spatial.cosine=0.5",
        "loss.spatial.smooth_l1=0.5",
        "loss.spatial.beta=0.1",
        "loss.summary=angle",
        "loss.summary=tangent_sphere",
        "loss.summary=rkd",
        "loss.summary=asymmetric_rkd",
        "loss.spatial=hybrid",
        "loss.spatial={type: hybrid, cosine: 0.5}",
        "loss.spatial=dampened_mse",
        "loss.spatial=token_similarity",
        "loss.spatial={type: token_similarity, temperature: 0.5}",
        "loss.spatial={type: sum, terms: [{loss: match, weight: 2.0}]}",
        "normalize.summary=none",
        "normalize.spatial=global",
        "normalize.spatial=phi_s",
        "normalize.spatial=pca",
        "normalize.spatial=zca",
        "normalize.summary=hadamard",
        "normalize.batches=1",
        "heads.summary=linear",
        "heads.spatial={type: mlp, num_inner: 1}",
        "heads.spatial={type: transformer, num_heads: 2}",
        "heads.summary={type: transformer, num_heads: 1, depth: 2}",
        "heads.spatial={type: ladder, hidden_dim: 8}",
        "heads.summary={type: ladder, last_hidden_dim: 8}",
        "heads.spatial={type: mlp_v1, hidden_dim: 8, num_inner: 1}",
        "teachers.clip.summary_weight=0.5",
        "teachers.clip.spatial_weight=0.0",
        "teachers.clip.precision=bfloat16",
        "teachers.clip.input_size=48",
        "student.position_dropout=0.9",
        "student.viewport=false",
        "student.viewport_scale=[0.9, 1.0]",
        "student.num_registers=2",
        "student.layer_scale=1e-5",
        "student.mlp=gelu_norm",
        "student.final_norm=true",
        "stages.0.partitions.0.weight=0.5",
        "stages.0.partitions.0.view_size=48",
        "stages.0.partitions.0.batch_size=2",
        "stages.0.partitions.0.image_size=40",
        "stages.0.partitions.0.image_sizes=[24, 32]",
        "stages.0.partitions.0={image_size: 32, batch_size: 4, image_sizes: [24, 32], packed: true}",
        "stages.0.partitions.0.shift=1",
        "stages.0.partitions.0.source=scenes",
        "engine.ema=0.5",
        "engine.precision=bfloat16",
        "stages.0.steps=2",
        "student.patch_size=4",
        "student.dim=16",
        "student.depth=2",
        "student.num_heads=1",
        "student.mlp_dim=16",
        "student.max_image_size=32",
        "heads.spatial={type: mlp, hidden_dim: 8}",
        "heads.spatial={type: mlp, upsample_factor: 2}",
        "engine.accumulate=2",
        "engine.log_every=2",
    ),
    "radio1d": (
        "student.merge_before=[2]",
        "student.decoder_depth=2",
        "student.split_before=[2]",
        "student.filler_side=2",
        "student.drops_early=true",
        "student.final_norm=true",
        "student.layer_scale=0.1",
        "student.num_registers=1",
    ),
    "eradio": (
        "student.dim=16",
        "student.stem_dim=16",
        "student.depths=[1, 1, 1, 2]",
        "student.num_heads=[1, 2]",
        "student.window_size=2",
        "student.window=fixed",
        "student.subsampling=pool",
        "student.depthwise=true",
        "student.cpb_hidden_dim=16",
        "student.neck_start=1",
        "student.neck_dim=16",
        "student.neck=false",
        "student.summaries=per_teacher",
        "student.size=xtiny",
    ),
    "timm": (
        "student.model=test_resnet",
        "student.level=1",
        "student.neck=true",
        "student.summary=map",
        "student.summaries=per_teacher",
    ),
    "timm_neck": ("student.neck_dim=8",),
    "without_val": ("data.hold_out=0.2",),
    "two_blocks": ("regularize.drop_path=0.5", "regularize.windows={sizes: [2], num_global: 1, probability: 1.0}"),
    "measured": ("evaluate.batches=2", "evaluate.every=2", "data.val={type: scenes, length: 8}"),
    "attention": ("heads.spatial.depth=1", "heads.spatial.num_heads=1", "heads.spatial.hidden_dim=8", "heads.spatial.upsample_factor=2"),
    "scenes": ("data.train.length=20", "data.train.seed=3", "data.train.image_size=32"),
    "two_folders": ("data.train.weights={a: 1, b: 9}", "data.train.sources={a: {type: scenes}, b: {type: scenes, seed: 7}}"),
}
WITHOUT_EFFECT = (
    "student.gradient_checkpointing=true",
    "engine.keep=5",
    "engine.checkpoint_every=2",
    "engine.threads=1",
    "engine.prepare_ahead=true",
    "engine.report=true",
    "data.num_workers=1",
)


ELSEWHERE = {
    "Aimv2Settings.model": "teachers/test_new_families_parity.py::test_aimv2",
    "Aimv2Settings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "Aimv2Settings.type": "teachers/test_new_families_parity.py::test_aimv2",
    "AllSettings.type": "training/test_trained.py::test_all_is_the_default_and_freezes_nothing",
    "ClipSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "ClipSettings.model": "teachers/test_teachers_parity.py::test_clip",
    "ClipSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "ClipSettings.type": "teachers/test_teachers_parity.py::test_clip",
    "CustomSettings.summaries": "students/test_students_custom.py::test_a_summary_for_each_teacher",
    "CustomSettings.type": "students/test_students_custom.py::test_a_module_is_a_student",
    "DepthAnythingSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "DepthAnythingSettings.model": "teachers/test_new_families_parity.py::test_depth_anything",
    "DepthAnythingSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "DepthAnythingSettings.type": "teachers/test_new_families_parity.py::test_depth_anything",
    "Dinov2Settings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "Dinov2Settings.model": "teachers/test_teachers_parity.py::test_dinov2",
    "Dinov2Settings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "Dinov2Settings.type": "teachers/test_teachers_parity.py::test_dinov2",
    "Dinov3Settings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "Dinov3Settings.model": "teachers/test_teachers_parity.py::test_dinov3",
    "Dinov3Settings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "Dinov3Settings.type": "teachers/test_teachers_parity.py::test_dinov3",
    "EmbeddedSettings.name": "teachers/test_teachers.py::test_embedded",
    "EmbeddedSettings.type": "teachers/test_teachers.py::test_embedded",
    "EngineSettings.channels_last": "training/test_memory_format.py::test_wide_kernels_have_the_format_that_the_setting_names",
    "EngineSettings.compile": "test_settings.py::test_compiling_and_tracking_change_no_number_beyond_rounding",
    "EradioSettings.gradient_checkpointing": "students/test_regularization.py::test_checkpointing_saves_memory_and_changes_no_gradient",
    "EvaluateSettings.suite": "training/test_periodic_evaluation.py::test_a_period_of_its_own_and_no_held_out_images",
    "EvaluateSettings.suite_every": "training/test_periodic_evaluation.py::test_a_period_of_its_own_and_no_held_out_images",
    "FolderSettings.path": "data/test_sources.py::test_a_folder_is_read_however_deep_and_sorted",
    "HuggingFaceSettings.image": "data/test_sources.py::test_what_can_be_wrong_with_a_table",
    "HuggingFaceSettings.path": "data/test_sources.py::test_parquet_and_splits",
    "HuggingFaceSettings.split": "data/test_sources.py::test_parquet_and_splits",
    "HuggingFaceSettings.type": "data/test_sources.py::test_parquet_and_splits",
    "InternvlSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "InternvlSettings.model": "teachers/test_new_families_parity.py::test_internvl",
    "InternvlSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "InternvlSettings.type": "teachers/test_new_families_parity.py::test_internvl",
    "LabelsSettings.path": "teachers/test_labels.py::test_a_class_is_the_folder_in_the_key",
    "LabelsSettings.type": "teachers/test_labels.py::test_a_student_from_scratch_on_labels_beside_a_distilled_one",
    "LastBlocksSettings.count": "training/test_trained.py::test_the_last_blocks_are_counted_from_the_end",
    "LastBlocksSettings.type": "training/test_trained.py::test_the_last_blocks_are_counted_from_the_end",
    "LoraSettings.alpha": "training/test_trained.py::test_the_addition_is_alpha_over_rank_times_the_product",
    "LoraSettings.rank": "training/test_trained.py::test_the_addition_is_alpha_over_rank_times_the_product",
    "LoraSettings.type": "training/test_trained.py::test_the_addition_is_alpha_over_rank_times_the_product",
    "LossSettings.token_exponent": "training/test_resolutions.py::test_maps_weigh_by_the_cells_of_the_size_that_is_drawn",
    "Metaclip2Settings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "Metaclip2Settings.model": "teachers/test_new_families_parity.py::test_texts_of_transformers",
    "Metaclip2Settings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "Metaclip2Settings.type": "teachers/test_new_families_parity.py::test_texts_of_transformers",
    "ModelSettings.head": "teachers/test_teachers.py::test_a_model_folder_is_a_teacher",
    "ModelSettings.input_size": "teachers/test_teachers.py::test_a_model_folder_is_a_teacher",
    "ModelSettings.path": "teachers/test_teachers.py::test_a_model_folder_is_a_teacher",
    "ModelSettings.type": "teachers/test_teachers.py::test_a_model_folder_is_a_teacher",
    "ModelStudentSettings.align_corners": "training/test_continuing.py::test_how_positions_are_stretched_can_be_chosen",
    "ModelStudentSettings.gradient_checkpointing": "training/test_continuing.py::test_other_students_go_on",
    "ModelStudentSettings.path": "training/test_continuing.py::test_at_step_0_it_agrees_as_the_finished_model_did",
    "ModelStudentSettings.type": "training/test_continuing.py::test_at_step_0_it_agrees_as_the_finished_model_did",
    "OpenClipSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "OpenClipSettings.model": "teachers/test_teachers_parity.py::test_open_clip",
    "OpenClipSettings.pretrained": "teachers/test_teachers_bad_input.py::test_names_that_timm_and_open_clip_do_not_have",
    "OpenClipSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "OpenClipSettings.type": "teachers/test_teachers_parity.py::test_open_clip",
    "OptimizerSettings.warmup_steps": "engine/test_training_engine.py::test_the_run_follows_the_schedule_and_each_stage_begins_anew",
    "PartitionSettings.teachers": "distillation/test_task.py::test_heads_outside_a_partition_are_left_alone",
    "PeSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "PeSettings.model": "teachers/test_new_families_parity.py::test_pe_of_open_clip",
    "PeSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "PeSettings.type": "teachers/test_new_families_parity.py::test_pe_of_open_clip",
    "RadioSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "RadioSettings.model": "teachers/test_teachers_parity.py::test_radio",
    "RadioSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "RadioSettings.type": "teachers/test_teachers_parity.py::test_radio",
    "Recipe.out": "training/test_distributed.py::test_torchrun_runs_the_same_command",
    "RegularizeSettings.self_distillation": "training/test_regularized_runs.py::test_self_distillation_is_its_formula",
    "RunEngineSettings.device": "gpu/test_gpu.py::test_a_run_on_a_gpu_is_the_run_on_a_cpu",
    "RunEngineSettings.track": "test_settings.py::test_compiling_and_tracking_change_no_number_beyond_rounding",
    "RunEngineSettings.wandb": "engine/test_track.py::test_a_run_logs_all_its_numbers_to_weights_and_biases",
    "Sam2Settings.levels": "teachers/test_new_families_parity.py::test_sam2",
    "Sam2Settings.model": "teachers/test_new_families_parity.py::test_sam2",
    "Sam2Settings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "Sam2Settings.type": "teachers/test_new_families_parity.py::test_sam2",
    "Sam3Settings.model": "teachers/test_new_families_parity.py::test_sam3",
    "Sam3Settings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "Sam3Settings.type": "teachers/test_new_families_parity.py::test_sam3",
    "SamSettings.model": "teachers/test_teachers_parity.py::test_sam",
    "SamSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "SamSettings.type": "teachers/test_teachers_parity.py::test_sam",
    "SelfDistillationSettings.max_shift": "training/test_regularized_runs.py::test_self_distillation_is_its_formula",
    "SelfDistillationSettings.weight": "training/test_regularized_runs.py::test_a_run_with_all_parts_resumes_and_hands_over_plain_weights",
    "SiglipSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "SiglipSettings.model": "teachers/test_teachers_parity.py::test_siglip",
    "SiglipSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "SiglipSettings.type": "teachers/test_teachers_parity.py::test_siglip",
    "SizeSettings.size": "training/test_resolutions.py::test_a_step_trains_at_its_size_on_one_crop",
    "SizeSettings.teachers": "training/test_resolutions.py::test_a_step_trains_at_its_size_on_one_crop",
    "SizeSettings.weight": "training/test_resolutions.py::test_sizes_are_drawn_by_their_weights_from_seed_and_step",
    "StageSettings.restart": "training/test_schedule.py::test_a_stage_that_restarts_forgets_the_averages",
    "TimmSettings.gradient_checkpointing": "students/test_regularization.py::test_checkpointing_saves_memory_and_changes_no_gradient",
    "TimmSettings.image_size": "students/test_students_timm.py::test_fixed_sizes_are_found_out",
    "TimmSettings.input_size": "teachers/test_teachers.py::test_an_input_size_of_the_users_own",
    "TimmSettings.model": "teachers/test_teachers_parity.py::test_timm_vit",
    "TimmSettings.revision": "teachers/test_teachers_bad_input.py::test_a_revision_on_the_hub",
    "TimmSettings.start_from": "students/test_students_timm.py::test_it_begins_with_the_weights_of_a_file",
    "TimmSettings.type": "teachers/test_teachers_parity.py::test_timm_vit",
    "TrainedSettings.train": "training/test_continuing.py::test_what_is_frozen_keeps_its_bits_and_all_else_moves",
    "TransformerSettings.align_corners": "students/test_vit.py::test_each_setting_changes_the_outcome",
    "TransformerSettings.size": "students/test_vit.py::test_each_size_is_its_own_shape_until_overridden",
    "VitSettings.start_from": "students/test_vit_start.py::test_a_model_folder_is_taken_with_its_summaries_and_registers",
    "WebDatasetSettings.lanes": "data/test_sources.py::test_shuffle_buffer_and_lanes_change_the_order",
    "WebDatasetSettings.path": "data/test_sources.py::test_shards_are_found_by_braces_globs_and_folders",
    "WebDatasetSettings.shuffle_buffer": "data/test_sources.py::test_shuffle_buffer_and_lanes_change_the_order",
    "WebDatasetSettings.type": "data/test_sources.py::test_shards_are_found_by_braces_globs_and_folders",
}
"""Settings whose effect another test shows: `file::test`."""


def outcome(recipe, out: Path, *words: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    folder = run_distill(recipe(*STEPS, *words, f"out={out}"))
    return metrics(folder), state(folder)


def same(a: tuple, b: tuple) -> bool:
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][key], b[1][key]) for key in a[1])


@pytest.fixture(scope="module")
def kept() -> dict[str, tuple]:
    """The outcome of the words of each base, computed once."""
    return {}


@pytest.fixture
def unchanged(kept: dict, recipe, tmp_path: Path) -> Callable[[str], tuple]:
    """`unchanged(base)`: what the words of a base lead to."""

    def of(base: str) -> tuple:
        if base not in kept:
            kept[base] = outcome(recipe, tmp_path / "unchanged", *BASES[base])
        return kept[base]

    return of


def test_the_same_recipe_gives_the_same_numbers(recipe, unchanged, tmp_path):
    assert same(outcome(recipe, tmp_path / "again"), unchanged("three"))


@pytest.mark.parametrize(("start", "word"), [(base, word) for base, words in CASES.items() for word in words])
def test_a_setting_changes_the_outcome(recipe, unchanged, tmp_path, start, word):
    assert not same(outcome(recipe, tmp_path / "changed", *BASES[start], word), unchanged(start))


@pytest.mark.parametrize("word", WITHOUT_EFFECT)
def test_a_setting_of_the_machine_changes_nothing(recipe, unchanged, tmp_path, word):
    assert same(outcome(recipe, tmp_path / "changed", *BASES["vit"], word), unchanged("vit"))


@pytest.fixture
def covered(recipe) -> set[str]:
    """The settings that some case changes."""
    names: set[str] = set()
    for base, words in CASES.items():
        names |= changed_settings(recipe(*STEPS), recipe(*STEPS, *BASES[base]))
        for word in (*words, *(WITHOUT_EFFECT if base == "vit" else ())):
            names |= changed_settings(recipe(*STEPS, *BASES[base]), recipe(*STEPS, *BASES[base], word))
    return names


def test_every_setting_of_a_recipe_has_a_case(covered):
    every = {name_of(cls, field) for cls in settings_below(Recipe, set()) for field in cls.model_fields}
    missing = sorted(every - covered - set(ELSEWHERE))
    assert not missing, f"{missing}: give each a case in CASES, or name the test of its effect in ELSEWHERE"
    assert sorted(set(ELSEWHERE) - every) == [], "there is no such setting"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_test_that_is_named_for_a_setting_is_there(name):
    file, _, function = ELSEWHERE[name].partition("::")
    text = (Path(__file__).parent / file).read_text()
    assert f"def {function}(" in text
    assert name.partition(".")[2] in text, "the file does not speak of the setting"


@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiling_and_tracking_change_no_number_beyond_rounding(recipe, tmp_path):
    """With the real backend, the teachers a step ahead, held-out evaluation and the event file."""
    words = ("stages.0.steps=2", "teachers.dino=null", "teachers.sam=null", "teachers.clip.spatial_weight=0", "evaluate.every=2")
    plain = run_distill(recipe(*words, f"out={tmp_path / 'plain'}"))
    torch.compiler.reset()
    compiled = run_distill(recipe(*words, f"out={tmp_path / 'compiled'}", "engine.compile=true", "engine.track=true"))
    for one, other in zip(metrics(plain), metrics(compiled), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    (events,) = (compiled / "tensorboard").iterdir()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(events))
    accumulator.Reload()
    assert [round(event.value, 4) for event in accumulator.Scalars("loss")] == [
        round(row["loss"], 4) for row in metrics(compiled) if "loss" in row
    ]
