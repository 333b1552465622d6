"""The shipped settings say what their headers say; LucidDreamer's nine files mean what they meant there."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import yaml

from arguments import Config, load, to_yaml
from arguments.config import settings, value_of
from arguments.groups.guidance import METHODS
from guidance.schedule import NoiseSchedule
from scene.density import DensityControl, Footprint
from tests.gaussians import random_gaussians, seeded
from tests.tiny_models import alphas_cumprod

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


# S and G are threestudio/systems and threestudio/models/guidance; a .yaml is in configs/, and its key is named.
PUBLISHED = """
dreamfusion_gs:                     # threestudio-project/threestudio 28d9d80d
  guidance: sds
  guidance_scale: 100               # dreamfusion-sd.yaml, guidance_scale
  cfg_form: paper                   # G/stable_diffusion_guidance.py:249 without Perp-Neg
  cfg_base: empty
  weighting: sds
  t_range: [0.02, 0.98]             # dreamfusion-sd.yaml, min_step_percent, max_step_percent
  max_t_range: 0.98
  timestep_per_view: true           # G/stable_diffusion_guidance.py:416
  perpneg: false
gaussiandreamer:                    # hustvl/GaussianDreamer 76a38ffc, gaussiandreamer-sd.yaml
  guidance: sds
  guidance_scale: 100               # guidance_scale
  cfg_form: paper                   # G/stable_diffusion_guidance.py:249
  weighting: sds                    # weighting_strategy
  gradient_clip: [1.5, 2.0]         # grad_clip
  gradient_clip_iter: 1000
  timestep_schedule: two_stage      # S/GaussianDreamer.py:286-287
  max_t_range: 0.98                 # max_step_percent
  t_range: [0.02, 0.55]             # S/GaussianDreamer.py:287
  warmup_iter: 502                  # S/GaussianDreamer.py:286, whose steps count from 0
  timestep_per_view: true           # G/stable_diffusion_guidance.py, [batch_size]
  C_batch_size: 4                   # batch_size
  lambda_guidance: 0.25             # lambda_sds: 1, and G/stable_diffusion_guidance.py divides by the batch
  negative: ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped,
    lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated,
    bad proportions, unfocused      # gaussiandreamer-sd.yaml:29
  iterations: 1200                  # max_steps
  image_w: 1024                     # width
  image_h: 1024                     # height
  init_shape: shape                 # load_type: 0
  densify_stats: summed_views       # S/GaussianDreamer.py:341-347
  densify_grad_threshold: 0.0002    # S/GaussianDreamer.py:351
  prune_opacity: 0.05               # S/GaussianDreamer.py:351
  prune_scale_from_iter: 500        # S/GaussianDreamer.py:350
dreamgaussian:                      # dreamgaussian/dreamgaussian 69a3c706, text.yaml
  guidance: sds
  guidance_scale: 100               # guidance/sd_utils.py:138
  weighting: sds                    # guidance/sd_utils.py:138-205
  timestep_schedule: linear         # anneal_timestep, guidance/sd_utils.py:162
  t_range: [0.02, 0.98]             # guidance/sd_utils.py:162
  max_t_range: 0.98
  C_batch_size: 1                   # batch_size
  lambda_guidance: 1.0              # lambda_sd
  view_words: false                 # main.py:267
  perpneg: false
  iterations: 500                   # iters
  init_shape: ball                  # gs_renderer.py:692-704
  init_num_pts: 5000                # num_pts
  feature_lr: 0.01                  # feature_lr
  feature_lr_final: 0.01
  opacity_lr: 0.05                  # opacity_lr
  scaling_lr: 0.005                 # scaling_lr
  scaling_lr_final: 0.005
  rotation_lr: 0.005                # rotation_lr
  rotation_lr_final: 0.005
  densify_from_iter: 0              # density_start_iter
  densification_interval: 50        # densification_interval
  densify_grad_threshold: 0.01      # densify_grad_threshold
  prune_opacity: 0.01               # main.py:284
  prune_scale_from_iter: 0          # main.py:284
  opacity_reset_interval: 700       # opacity_reset_interval
prolificdreamer_gs:                 # thu-ml/prolificdreamer 5a303047
  guidance: vsd
  guidance_scale: 7.5
  weighting: sds                    # nerf/sd.py:96-165
  timestep_schedule: two_stage      # nerf/utils.py:684
  t_range: [0.02, 0.5]              # nerf/sd.py:96-165
  max_t_range: 0.98
  timestep_per_view: false          # nerf/sd.py:96-165, [1]
  iterations: 5000
  warmup_iter: 1000
  lora_rank: 4                      # diffusers' own
  lora_lr: 0.0001
  lora_warmup_iter: 500             # nerf/utils.py:450
  lora_camera_dropout: 0.1
dreamflow: {guidance: dreamflow, guidance_scale: 7.5, dreamflow_t_range: [0.2, 1.0], lora_lr: 0.0001} # no code
asd_gs:                             # 2y7c3/ASD 9bf3daa5, test_gs.yaml
  guidance: asd
  asd_gamma: -0.75                  # gamma
  guidance_scale: 7.5               # guidance_scale
  weighting: ism                    # weighting_strategy: asd
  C_batch_size: 2                   # batch_size
  lambda_guidance: 0.05             # lambda_asd: 0.1, and G/stable_diffusion_asd_guidance.py:899 divides by the batch
  lambda_tv: 1.0                    # lambda_tv
  lambda_scale: 1.0                 # lambda_scales
  timestep_schedule: warmup         # S/asd_3dgs.py:75-78
  max_t_range: 0.98                 # S/asd_3dgs.py:78
  t_range: [0.02, 0.5]              # min_step_percent, max_step_percent
  warmup_iter: 3000                 # warmup_iter
  timestep_per_view: true           # G/stable_diffusion_asd_guidance.py, [batch_size]
  lora_lr: 0.0001                   # S/asd_3dgs.py:55
  lora_warmup_iter: 0               # S/asd_3dgs.py:55
  lora_camera_dropout: 0.1
  perpneg: true                     # use_perp_neg
  init_shape: shape                 # geometry_convert_from
lods_gs:                            # yangxiaofeng/LODS 74f3280f, lods-gs-embedding.yaml
  guidance: lods
  lods_scale: 1000                  # guidance_scale
  lods_lr: 0.0001                   # S/lods_gs.py:498
  weighting: sds                    # G/lods_embedding_guidance.py:326-411
  timestep_schedule: two_stage      # S/lods_gs.py:257-258
  max_t_range: 0.98                 # max_step_percent
  t_range: [0.02, 0.55]             # S/lods_gs.py:258
  warmup_iter: 502                  # S/lods_gs.py:257, whose steps count from 0
  timestep_per_view: true           # G/lods_embedding_guidance.py, [batch_size]
  iterations: 2500                  # max_steps
  C_batch_size: 8                   # batch_size
  negative: a point cloud image     # negative_prompt
  init_shape: shape
lods_lora_gs:                       # the same, lods-ngp-lora.yaml
  guidance: lods_lora
  lods_scale: 1000                  # guidance_scale
  lods_lora_lr: 5.0e-7              # optimizer.params.guidance.lr
  lods_lora_scale: 0.5
  weighting: sds                    # G/lods_lora_guidance.py:449-529
  timestep_per_view: true           # G/lods_lora_guidance.py, [batch_size]
  negative: <new1>                  # lods-ngp-lora.yaml:63, 2dplayground_lora.py:51
csd:                                # CVMI-Lab/Classifier-Score-Distillation 5c65ca78, csd-if.yaml
  guidance: csd
  csd_form: own
  csd_negative: [0.0, 1.0]          # uncond_scale, null_scale
  csd_anneal: 0.5                   # 5000 of max_steps: 10000
  timestep_schedule: two_stage      # max_step_percent
  t_range: [0.02, 0.5]
  max_t_range: 0.98
  timestep_per_view: true           # G/deep_floyd_simple_guidance.py, [batch_size]
  iterations: 5000
  warmup_iter: 2500
  perpneg: true                     # use_perp_neg
  negative: oversaturated color, ugly, tiling, low quality, noisy # negative_prompt
nfsd:                               # the paper's text; no code
  guidance: nfsd
  nfsd_cutoff: 200
  guidance_scale: 7.5
  weighting: sds
  timestep_schedule: two_stage
  negative: unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy
ssd: {guidance: ssd, ssd_cutoff: 300, guidance_scale: 7.5, t_range: [0.02, 0.98], max_t_range: 0.98} # no code
consistent3d:                       # sail-sg/Consistent3D 9118a5cc, consistency-coarse.yaml
  guidance: consistent3d
  consistent3d_t_range: [0.1, 0.7]  # cur_steps, G/stable_diffusion_guidance.py:904-916
  consistent3d_interval: [100, 300] # end_gap, perturb_factor
  guidance_scale: 100               # guidance_scale, G/stable_diffusion_guidance.py:884-902
  guidance_scale_final: 50
  cfg_form: paper                   # G/stable_diffusion_guidance.py:309-416
  weighting: uniform                # weighting_strategy
  gradient_clip: [2.0, 8.0]         # grad_clip
  gradient_clip_iter: 3000
  iterations: 3000                  # max_steps
  C_batch_size: 8                   # batch_size
  max_t_range: 0.98                 # max_step_percent
  timestep_per_view: true           # G/stable_diffusion_guidance.py:577
luciddreamer:                       # EnVision-Research/LucidDreamer 2ecf0936, hamburger.yaml
  guidance: ism
  delta_t: 50
  delta_t_start: 100
  timestep_per_view: false          # guidance/sd_utils.py:380
  negative: unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution,
    oversaturation.
"""
"""What the methods' own code, papers and appendices say, beside the file and line (or key) that says it."""


def test_baselines_have_their_published_numbers() -> None:
    for name, keys in yaml.safe_load(PUBLISHED).items():
        config = read(BASELINES[name])
        ours = {name.rpartition(".")[2]: value_of(config, name) for name in settings()}
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
        assert {key: ours[key] for key in keys} == given, name


def drop_after_500(step: int) -> int:
    return 550 if step > 500 else 980


HIGHEST_TIMESTEP = {
    # by the step, from 0; as the programs run, which is not what their settings files say
    "gaussiandreamer": drop_after_500,  # systems/GaussianDreamer.py:286-287
    "lods_gs": drop_after_500,  # systems/lods_gs.py:257-258
    "lods_lora_gs": drop_after_500,
    "asd_gs": lambda step: int(500 + 480 * (1 - min(step / 3000, 1))),  # systems/asd_3dgs.py:75-78
}


@pytest.mark.parametrize("name", HIGHEST_TIMESTEP)
def test_baselines_draw_t_from_the_programs_range(name: str) -> None:
    config = read(BASELINES[name])
    schedule = NoiseSchedule(
        alphas_cumprod().float(),
        config.GuidanceParams,
        config.OptimizationParams.warmup_iter,
        config.iterations,
    )
    for step in range(config.iterations):
        low, high = schedule.index_range(step + 1)
        assert low == 20
        assert abs(high - HIGHEST_TIMESTEP[name](step)) <= 1, step  # the fall is truncated, here in two parts


SIZES = {
    # in world units: split above, removed above; means' rate at the start and at the end (none: not its own)
    "gaussiandreamer": (
        0.04,
        0.4,
        None,
    ),  # systems/GaussianDreamer.py: cameras_extent 4; 3DGS's 0.01 and 0.1 of it
    "dreamgaussian": (0.04, 0.4, (0.01, 0.0002)),  # main.py:284: extent 4; gs_renderer.py:709: rates times 10
}


@pytest.mark.parametrize("name", SIZES)
def test_baselines_sizes_are_published_ones_in_our_extent(name: str) -> None:
    config = read(BASELINES[name])
    extent, params = config.GenerateCamParams.default_radius, config.OptimizationParams
    split, removed, rates = SIZES[name]
    assert params.percent_dense * extent == pytest.approx(split, rel=1e-4)
    assert params.prune_scale * extent == pytest.approx(removed, rel=1e-4)
    if rates:
        ours = params.position_lr_init * extent, params.position_lr_final * extent
        assert ours == pytest.approx(rates, rel=1e-3)


EVENTS = {
    # steps of density control, the first that drops what is wide, opacity resets
    "gaussiandreamer": (range(400, 900, 100), 600, []),  # systems/GaussianDreamer.py:341-351
    "dreamgaussian": (range(50, 500, 50), 50, []),  # main.py:277-287, but for the one after the last step
}


@pytest.mark.parametrize("name", EVENTS)
def test_baselines_control_density_when_their_programs_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, acts, resets = read(BASELINES[name]), [], []
    monkeypatch.setattr(DensityControl, "_densify", lambda *arguments: None)
    monkeypatch.setattr(
        DensityControl, "_prune", lambda *arguments, prune_wide: acts.append((step, prune_wide))
    )
    monkeypatch.setattr("scene.density.reset_opacity", lambda *arguments: resets.append(step))
    model = random_gaussians(1)
    control = DensityControl(config.OptimizationParams, config.GenerateCamParams.default_radius)
    unseen = Footprint(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.int32))
    for step in range(1, config.iterations + 1):
        control.update(model, torch.optim.Adam([model.means]), unseen, step, seeded())
    steps, wide_from, expected = EVENTS[name]
    assert (acts, resets) == ([(step, step >= wide_from) for step in steps], expected)


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
