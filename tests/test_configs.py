"""The shipped settings say what their headers say; LucidDreamer's nine files mean what they meant there."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from arguments import Config, load, to_yaml
from arguments.config import settings, value_of
from arguments.groups.guidance import METHODS

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
PAPER = [path for path in SHIPPED if path.parent.name == "configs" and path.stem != "quickstart"]
LUCIDDREAMER = {path.stem: path for path in sorted((ROOT / "tests" / "luciddreamer_configs").glob("*.yaml"))}


def read(path: Path) -> Config:
    return load(["--opt", str(path)])[0]


@pytest.mark.parametrize(
    "path", [*SHIPPED, *LUCIDDREAMER.values()], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_round_trip(path: Path, tmp_path: Path) -> None:
    config = read(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(to_yaml(config), encoding="utf-8")
    assert read(copy) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_explained_and_quiet(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    read(path)
    assert not caplog.records


def test_shipped_runs_do_not_share_a_folder() -> None:
    folders = [read(path).ModelParams.run_folder for path in SHIPPED]
    assert len(set(folders)) == len(folders) >= 10


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_setting(path: Path) -> None:
    config = read(path)
    guidance = config.GuidanceParams
    assert guidance.guidance_method == "vdm"
    assert guidance.model_key is not None
    assert guidance.model_key.endswith("stable-diffusion-2-1-base")
    assert (guidance.guidance_scale, guidance.C_batch_size, guidance.lambda_guidance) == (7.5, 4, 0.1)
    vdm = config.VDMParams
    assert (vdm.dca, vdm.dca_cutoff, vdm.operator, vdm.operator_lr) == (True, 300, "ulite", 0.01)
    assert (guidance.t_range, guidance.max_t_range, guidance.noise_offset) == ((0.02, 0.5), 0.98, 0.0)
    assert config.OptimizationParams.iterations == 5000
    assert config.OptimizationParams.warmup_iter == 1500
    assert (config.GenerateCamParams.init_shape, config.GenerateCamParams.init_num_pts) == ("shape", 50_000)
    assert config.ModelParams.bg_aug_ratio == 0.66
    assert config.ModelParams.workspace == path.stem


BASELINES = {path.stem: path for path in SHIPPED if path.parent.name == "baselines"}


def test_every_method_of_table_1_has_its_published_settings() -> None:
    methods = {read(path).GuidanceParams.guidance_method for path in BASELINES.values()}
    assert methods == set(METHODS) - {"vdm"}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_name_their_source_and_what_is_inferred(name: str) -> None:
    head = BASELINES[name].read_text(encoding="utf-8").split("\n\n")[0]
    assert "# Source: " in head
    assert "nferred" in head or name in ("dreamfusion_gs", "nfsd", "consistent3d")
    assert all(len(line) <= 120 for line in head.splitlines())


PUBLISHED = """
dreamfusion_gs: {guidance: sds, guidance_scale: 100, cfg_form: paper, weighting: sds, t_range: [0.02, 0.98],
  max_t_range: 0.98, perpneg: false}
gaussiandreamer: {guidance: sds, guidance_scale: 100, cfg_form: standard, weighting: sds, gradient_clip: [1.5, 2.0],
  gradient_clip_iter: 1000, C_batch_size: 4, iterations: 1200, image_w: 1024, image_h: 1024, init_shape: shape}
dreamgaussian: {guidance: sds, guidance_scale: 100, weighting: sds, timestep_schedule: linear, t_range: [0.02, 0.98],
  max_t_range: 0.98, C_batch_size: 1, iterations: 500, init_shape: sphere, init_num_pts: 5000, position_lr_init: 0.001,
  position_lr_final: 0.00002, feature_lr: 0.01, opacity_lr: 0.05, scaling_lr: 0.005, rotation_lr: 0.005}
prolificdreamer_gs: {guidance: vsd, guidance_scale: 7.5, weighting: sds, timestep_schedule: two_stage,
  t_range: [0.02, 0.5], max_t_range: 0.98, iterations: 5000, warmup_iter: 1000, lora_rank: 4, lora_lr: 0.0001,
  lora_warmup_iter: 500, lora_camera_dropout: 0.1}
dreamflow: {guidance: dreamflow, guidance_scale: 7.5, dreamflow_t_range: [0.2, 1.0], lora_lr: 0.0001}
asd_gs: {guidance: asd, asd_gamma: -0.75, guidance_scale: 7.5, weighting: ism, lambda_guidance: 0.1, C_batch_size: 2,
  t_range: [0.02, 0.5], max_t_range: 0.5, lora_lr: 0.0001, lora_camera_dropout: 0.1, perpneg: true, init_shape: shape}
lods_gs: {guidance: lods, lods_scale: 1000, lods_lr: 0.0001, weighting: sds, timestep_schedule: two_stage,
  t_range: [0.02, 0.5], max_t_range: 0.98, iterations: 2500, warmup_iter: 1000, C_batch_size: 8,
  negative: a point cloud image, init_shape: shape}
lods_lora_gs: {guidance: lods_lora, lods_scale: 1000, lods_lora_lr: 5.0e-7, lods_lora_scale: 0.5, weighting: sds}
csd: {guidance: csd, csd_form: own, csd_negative: [0.0, 1.0], csd_anneal: 0.5, timestep_schedule: two_stage,
  t_range: [0.02, 0.5], max_t_range: 0.98, iterations: 5000, warmup_iter: 2500, perpneg: true,
  negative: "oversaturated color, ugly, tiling, low quality, noisy"}
nfsd: {guidance: nfsd, nfsd_cutoff: 200, guidance_scale: 7.5, weighting: sds, timestep_schedule: two_stage,
  negative: "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"}
ssd: {guidance: ssd, ssd_cutoff: 300, guidance_scale: 7.5, t_range: [0.02, 0.98], max_t_range: 0.98}
consistent3d: {guidance: consistent3d, consistent3d_t_range: [0.1, 0.7], consistent3d_interval: [100, 300],
  guidance_scale: 100, guidance_scale_final: 50, cfg_form: paper, weighting: uniform, gradient_clip: [2.0, 8.0],
  gradient_clip_iter: 3000, iterations: 3000, C_batch_size: 8, max_t_range: 0.98}
"""
"""What the methods' own code, papers and appendices say."""


def test_baselines_have_their_published_numbers() -> None:
    for name, keys in yaml.safe_load(PUBLISHED).items():
        config = read(BASELINES[name])
        ours = {name.rpartition(".")[2]: value_of(config, name) for name in settings()}
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
        assert {key: ours[key] for key in keys} == given, name


FIELDS = {path.stem: path for path in SHIPPED if path.parent.name == "field"}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_name_their_source_and_what_is_inferred(name: str) -> None:
    head = FIELDS[name].read_text(encoding="utf-8").split("\n\n")[0]
    assert "# Source: " in head and "# Inferred: " in head
    assert all(len(line) <= 120 for line in head.splitlines())
    assert read(FIELDS[name]).is_field


PUBLISHED_FIELDS = """
prolificdreamer: {representation: hash, guidance: vsd, guidance_scale: 7.5, weighting: sds, iterations: 25000,
  early_width: 64, early_iter: 5000, image_w: 512, C_batch_size: 1, hash_levels: 16, hash_features: 2, hash_table: 19,
  hash_base: 16, hash_finest: 4096, blob_scale: 10, blob_std: 0.5, bound: 1.0, samples: 64, importance_samples: 32,
  optimizer: adamw, field_lr: 0.01, network_lr: 0.001, lambda_sparsity: [10, 10], lambda_opaque: [0, 1000],
  ramp_iter: [10000, 10001], t_range: [0.02, 0.5], max_t_range: 0.98, timestep_schedule: two_stage, lora_lr: 0.0001}
dreamfusion: {representation: hash, guidance: sds, guidance_scale: 100, weighting: sds, iterations: 10000, image_w: 64,
  bound: 2.0, hash_start_levels: 8, hash_level_iter: [2000, 500], lambda_sparsity: [1, 1], lambda_orient: [10, 1000],
  ramp_iter: [0, 5000], optimizer: adam, field_lr: 0.01, t_range: [0.02, 0.98], radius_range: [1.5, 2.0]}
sjc: {representation: grid, guidance: sds, guidance_scale: 100, iterations: 10000, image_w: 64, resolution: 100,
  resolution_final: 100, optimizer: adamax, field_lr: 0.05, lambda_emptiness: [10000, 200000], C_batch_size: 1}
"""
"""What threestudio's and SJC's own settings say."""


def test_fields_have_their_published_numbers() -> None:
    for name, keys in yaml.safe_load(PUBLISHED_FIELDS).items():
        config = read(FIELDS[name])
        ours = {name.rpartition(".")[2]: value_of(config, name) for name in settings()}
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
        assert {key: ours[key] for key in keys} == given, name


def test_figure_9_differs_from_prolificdreamer_in_the_loss_alone() -> None:
    ours, theirs = read(FIELDS["dreammapping"]), read(FIELDS["prolificdreamer"])
    assert ours.GuidanceParams.guidance_method == "vdm"
    same = {"guidance", "workspace", "m_norm"}
    for name in settings():
        if name.rpartition(".")[2] not in same:
            assert value_of(ours, name) == value_of(theirs, name), name


def test_luciddreamers_own_file_runs_ism_with_its_own_keys() -> None:
    words = ["--opt", str(LUCIDDREAMER["axe"]), "GuidanceParams.guidance=ism"]
    guidance = load(words)[0].GuidanceParams
    ours = read(BASELINES["luciddreamer"]).GuidanceParams
    assert guidance.guidance_method == ours.guidance_method == "ism"
    keys = """delta_t_start annealing_intervals denoise_guidance_scale xs_delta_t xs_inv_steps xs_eta guidance_scale
        lambda_guidance weighting t_range max_t_range C_batch_size cfg_base"""
    for key in keys.split():
        assert getattr(guidance, key) == getattr(ours, key), key
    assert (guidance.delta_t, ours.delta_t, ours.noise_offset) == (25, 50, 0.1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("galleon", "A Spanish galleon sailing on the open sea"),
        ("supercar", "A supercar made out of toy bricks"),
        ("hamburger", "A delicious hamburger."),
    ],
)
def test_prompts_are_verbatim(name: str, text: str) -> None:
    assert read(ROOT / "configs" / f"{name}.yaml").GuidanceParams.text == text


def test_quickstart_needs_no_download_and_sees_the_whole_object() -> None:
    config = read(ROOT / "configs" / "quickstart.yaml")
    assert config.GuidanceParams.model_key == "toybox"
    assert config.GenerateCamParams.init_shape == "sphere"
    assert not config.OptimizationParams.relax_cameras
    cameras = config.GenerateCamParams
    for radius, fov in zip(cameras.radius_range, cameras.fovy_range, strict=True):
        assert 0.55 < radius * math.tan(fov / 2) < 1.15


UPSTREAM = {
    # name: workspace, perpneg, delta_t, theta, phi, gamma
    "axe": ("viking_axe", False, 25, (45, 105), (-180, 180), 1.0),
    "bagel": ("bagel", False, 80, (45, 105), (-180, 180), 1.0),
    "cat_armor": ("cat_armor", True, 80, (60, 90), (-180, 180), 1.5),
    "crown": ("crown", False, 80, (45, 105), (-180, 180), 1.0),
    "football_helmet": ("football_helmet", False, 50, (45, 90), (-180, 180), 1.0),
    "hamburger": ("hamburger", False, 50, (45, 105), (-180, 180), 1.0),
    "ts_lora": ("TS_lora", True, 80, (60, 120), (-80, 80), 1.5),
    "white_hair_ironman": ("white_hair_IRONMAN", True, 50, (45, 90), (-80, 80), 1.5),
    "zombie_joker": ("zombie_joker", True, 50, (45, 90), (-80, 80), 1.5),
}


def test_all_nine_are_here() -> None:
    assert LUCIDDREAMER.keys() == UPSTREAM.keys()


@pytest.mark.parametrize("name", UPSTREAM)
def test_luciddreamer_file_means_what_it_meant(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = read(LUCIDDREAMER[name])
    model, cameras, guidance = config.ModelParams, config.GenerateCamParams, config.GuidanceParams
    workspace, perpneg, delta_t, theta, phi, gamma = UPSTREAM[name]
    assert (model.workspace, guidance.perpneg, guidance.delta_t) == (workspace, perpneg, delta_t)
    assert (cameras.theta_range, cameras.max_theta_range) == (theta, theta)
    assert (cameras.phi_range, cameras.max_phi_range, cameras.rand_cam_gamma) == (phi, (-180, 180), gamma)
    assert (cameras.init_num_pts, cameras.init_shape) == (
        100_000,
        "sphere" if name == "hamburger" else "pointe",
    )
    assert (guidance.model_key, guidance.C_batch_size) == ("stabilityai/stable-diffusion-2-1-base", 4)
    assert (guidance.lambda_guidance, guidance.guidance_scale) == (0.1, 7.5)
    assert (guidance.t_range, guidance.max_t_range) == ((0.02, 0.5), 0.98)
    assert (guidance.denoise_guidance_scale, guidance.xs_delta_t, guidance.xs_inv_steps) == (1.0, 200, 5)
    assert (model.bg_aug_ratio, model.batch, model.white_background, model.sh_degree) == (0.66, 10, True, 0)
    assert (config.seed, config.save_video) == (0, True)
    assert config.OptimizationParams == Config().OptimizationParams
    assert config.OptimizationParams.save_process is True
    assert guidance.guidance_method == "vdm"
    ignored, remark = caplog.messages
    assert "GuidanceParams.ddim_inv" in ignored
    assert ("GuidanceParams.accum" in ignored) == (name in ("axe", "football_helmet"))
    assert "SD runs VDM with DCA" in remark


def test_luciddreamer_learned_embedding_is_kept() -> None:
    guidance = read(LUCIDDREAMER["ts_lora"]).GuidanceParams
    assert guidance.text == "A <Taylor_Swift> wearing sunglasses."
    assert guidance.LoRA_path == "./custom_example/lora/Taylor_Swift/step_inv_1000.safetensors"


SILENT = """
ModelParams: {workspace: debug, model_path: '', pretrained_model_path: null, sh_degree: 0, batch: 10,
  white_background: true, sh_deg_aug_ratio: 0.1, bg_aug_ratio: 0.5, shs_aug_ratio: 0.0, scale_aug_ratio: 1.0}
PipelineParams: {convert_SHs_python: false, debug: false}
GuidanceParams: {guidance: SD, base_model_key: null, negative_w: -2.0, perpneg: true,
  front_decay_factor: 2.0, side_decay_factor: 10.0, vram_O: false, fp16: true, num_train_timesteps: null, sds: false,
  fix_noise: false, delta_t: 80, lambda_guidance: 1.0, C_batch_size: 1, vis_interval: 100, textual_inversion_path: null}
OptimizationParams: {position_lr_init: 0.00016, position_lr_final: 0.0000016, feature_lr: 0.005,
  feature_lr_final: 0.003, opacity_lr: 0.05, scaling_lr: 0.005, scaling_lr_final: 0.001, rotation_lr: 0.001,
  rotation_lr_final: 0.0002, lambda_tv: 1.0, lambda_scale: 1.0, densification_interval: 100, use_progressive: false}
GenerateCamParams: {init_shape: sphere, render_45: true, uniform_sphere_rate: 0.0, image_w: 512, image_h: 512, SSAA: 1,
  default_polar: 90.0, default_azimuth: 0.0, rand_cam_gamma: 1.0, jitter_pose: true, jitter_center: 0.05,
  jitter_target: 0.05, jitter_up: 0.01}
"""
"""LucidDreamer's defaults where its files say nothing, or say something else."""


def test_luciddreamer_defaults() -> None:
    for group, keys in yaml.safe_load(SILENT).items():
        ours = dataclasses.asdict(getattr(Config(), group))
        assert {key: ours[key] for key in keys} == keys
