"""The PLY format: round trips, the frame, what other readers see, and files that are broken."""

import os
import struct

import gsply
import numpy as np
import numpy.lib.recfunctions
import pytest
import torch
import torch.nn.functional as F
from plyfile import PlyData, PlyElement

from arguments import GenerateCamParams
from scene.cameras import orbit
from scene.gaussian_model import GaussianModel
from scene.ply import color_names, has_faces, read_gaussians, read_points, write_gaussians, write_points
from tests.gaussians import random_gaussians, seeded
from utils.errors import UserError
from utils.rotations import quaternions_to_matrices
from utils.spherical_harmonics import eval_sh, rgb_to_sh_dc

DEGREES = [0, 1, 2, 3]
FRONT = GenerateCamParams()
GAUSSIAN_NAMES = [
    "x",
    "y",
    "z",
    "f_dc_0",
    "f_dc_1",
    "f_dc_2",
    "opacity",
    "scale_0",
    "scale_1",
    "scale_2",
    "rot_0",
    "rot_1",
    "rot_2",
    "rot_3",
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "point_cloud.ply"


def vertex_table(path) -> np.ndarray:
    return PlyData.read(str(path), mmap=False)["vertex"].data


def columns(table: np.ndarray, *names: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([table[name].astype(np.float32) for name in names], axis=1))


def write_table(path, table: np.ndarray, **options) -> None:
    PlyData([PlyElement.describe(table, "vertex")], **options).write(str(path))


@pytest.mark.parametrize("degree", DEGREES)
def test_round_trip(path, degree):
    model = random_gaussians(20, degree)
    write_gaussians(path, model)
    back = read_gaussians(path)
    assert back.sh_degree == back.active_sh_degree == degree
    for name in ("means", "log_scales", "opacity_logits", "sh_dc"):
        assert torch.equal(getattr(back, name), getattr(model, name)), name
    torch.testing.assert_close(back.sh_rest, model.sh_rest, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.quats, model.rotations, rtol=0, atol=1e-6)


@pytest.mark.parametrize("degree", DEGREES)
def test_layout_is_that_of_gaussian_splatting(path, degree):
    write_gaussians(path, random_gaussians(3, degree), comments=["a café", "two\nlines"])
    data = path.read_bytes()
    header, body = data.split(b"end_header\n")
    rest = 3 * ((degree + 1) ** 2 - 1)
    names = [
        "x",
        "y",
        "z",
        "nx",
        "ny",
        "nz",
        "f_dc_0",
        "f_dc_1",
        "f_dc_2",
        *(f"f_rest_{i}" for i in range(rest)),
    ]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert lines[2:5] == ["comment dreammapping frame=rdf", r"comment a caf\xe9", "comment two lines"]
    assert lines[5:] == ["element vertex 3", *(f"property float {name}" for name in names)]
    assert len(body) == 3 * 4 * (17 + rest)


def test_the_object_stands_upright_and_faces_the_viewer(path):
    """Right, down and forward in the file are those of the camera in front."""
    points = torch.tensor(
        [[0.0, 0, 1], [0, 1, 0], [-1, 0, 0], [0.3, -0.2, 0.1]]
    )  # up, front, the front view's right
    model = GaussianModel.from_points(points, torch.rand(4, 3, generator=seeded()), sh_degree=0)
    write_gaussians(path, model)
    written = columns(vertex_table(path), "x", "y", "z")
    assert torch.equal(written[:3], torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]))
    view = orbit(1, FRONT).world_to_camera[0]
    torch.testing.assert_close(written, points @ view[:3, :3].T, atol=1e-6, rtol=0)


def test_covariances_turn_with_the_positions(path):
    model = random_gaussians(10)
    write_gaussians(path, model)
    table = vertex_table(path)

    def covariances(quats, log_scales):
        axes = quaternions_to_matrices(quats) * log_scales.exp()[:, None]
        return axes @ axes.mT

    turn = orbit(1, FRONT).world_to_camera[0, :3, :3]
    written = covariances(columns(table, *GAUSSIAN_NAMES[10:]), columns(table, *GAUSSIAN_NAMES[7:10]))
    expected = turn @ covariances(model.quats, model.log_scales).detach() @ turn.T
    torch.testing.assert_close(written, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(columns(table, *GAUSSIAN_NAMES[10:]).norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colours_turn_with_the_positions(path, degree):
    """Whoever looks from a turned direction at the turned Gaussian sees the old colour; f_rest is channel-major."""
    model = random_gaussians(10, degree)
    write_gaussians(path, model)
    table = vertex_table(path)
    count = (degree + 1) ** 2 - 1
    rest = columns(table, *(f"f_rest_{i}" for i in range(3 * count))).unflatten(1, (3, count)).mT
    written = torch.cat([columns(table, "f_dc_0", "f_dc_1", "f_dc_2")[:, None], rest], dim=1)
    directions = F.normalize(torch.randn(10, 3, generator=seeded()), dim=1)
    turn = orbit(1, FRONT).world_to_camera[0, :3, :3]
    seen = eval_sh(degree, written, directions @ turn.T)
    torch.testing.assert_close(seen, eval_sh(degree, model.sh, directions).detach(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("degree", [0, 3])
def test_an_independent_reader_reads_the_same(path, degree):
    model = random_gaussians(50, degree)
    write_gaussians(path, model)
    data, table = gsply.plyread(str(path)), vertex_table(path)
    assert len(data.means) == 50
    for theirs, names in (
        (data.means, GAUSSIAN_NAMES[:3]),
        (data.sh0, GAUSSIAN_NAMES[3:6]),
        (data.scales, GAUSSIAN_NAMES[7:10]),
        (data.quats, GAUSSIAN_NAMES[10:]),
    ):
        torch.testing.assert_close(torch.as_tensor(theirs), columns(table, *names))
    torch.testing.assert_close(torch.as_tensor(data.opacities).flatten(), columns(table, "opacity").flatten())


def lucid_dreamer_table(count=5, rest=0, dtype="<f4", seed=0) -> np.ndarray:
    names = [*GAUSSIAN_NAMES, *(f"f_rest_{i}" for i in range(rest))]
    table = np.zeros(count, dtype=[(name, dtype) for name in names])
    values = np.random.default_rng(seed)
    for name in names:
        table[name] = values.normal(size=count)
    return table


@pytest.mark.parametrize("options", [{}, {"byte_order": ">"}, {"text": True}])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_files_of_others_are_read_in_their_own_frame(path, options, dtype):
    table = lucid_dreamer_table(rest=9, dtype=dtype)
    write_table(path, table, **options)
    model = read_gaussians(path)
    assert model.sh_degree == 1
    torch.testing.assert_close(model.means.detach(), columns(table, "x", "y", "z"))
    torch.testing.assert_close(model.quats.detach(), columns(table, "rot_0", "rot_1", "rot_2", "rot_3"))
    torch.testing.assert_close(
        model.sh_rest[:, 1].detach(), columns(table, "f_rest_1", "f_rest_4", "f_rest_7")
    )


def error(read, path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_missing_file(path):
    assert "cannot be read (No such file" in error(read_gaussians, path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ply\n",
        b"solid cube",
        b"\x00" * 200,
        b"ply\nformat ascii 1.0\nelement vertex 1\n",
        b"ply" + b"x" * 200_000,
    ],
)
def test_what_is_no_ply_is_named_so(path, content):
    path.write_bytes(content)
    assert "no PLY header" in error(read_gaussians, path)


@pytest.mark.parametrize(
    "line",
    [
        "element vertex many",
        "element vertex -4",
        "property quaternion x",
        "property float",
        "nonsense",
        "format ascii 1.0",
    ],
)
def test_a_broken_header_is_quoted(path, line):
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex 1\n{line}\nproperty float x\nend_header\n0\n")
    assert "got a broken one" in error(read_gaussians, path)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("count", [10**9, 10**18, 10**30])
def test_a_claim_of_a_billion_points_takes_no_memory(path, form, count):
    properties = "".join(f"property float {name}\n" for name in GAUSSIAN_NAMES)
    path.write_text(f"ply\nformat {form} 1.0\nelement vertex {count}\n{properties}end_header\n0 0 0\n")
    assert "cut off" in error(read_gaussians, path)
    assert "cut off" in error(read_points, path)


def test_claims_of_other_elements_count_too(path):
    path.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nelement face 1000000000\n"
                    "property list uchar int vertex_indices\nend_header\n0\n")  # fmt: skip
    assert "cut off" in error(read_points, path)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_body(path, kept):
    write_gaussians(path, random_gaussians(10))
    data = path.read_bytes()
    start = data.index(b"end_header\n") + 11
    path.write_bytes(data[: start + int(kept * (len(data) - start))])
    assert "cut off" in error(read_gaussians, path)


def test_a_truncated_text_body(path):
    write_table(path, lucid_dreamer_table(5), text=True)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert "cannot be read as PLY" in error(read_gaussians, path)


def test_words_where_numbers_belong(path):
    write_table(path, lucid_dreamer_table(2), text=True)
    path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n" + " ".join(["word"] * 14) + "\n")
    assert "cannot be read as PLY" in error(read_gaussians, path)


@pytest.mark.parametrize("missing", ["opacity", "scale_1", "rot_0", "f_dc_1", "z"])
def test_a_missing_property_is_named(path, missing):
    table = lucid_dreamer_table()
    write_table(path, np.lib.recfunctions.drop_fields(table, missing))
    assert missing in error(read_gaussians, path)


@pytest.mark.parametrize("count", [1, 8, 10, 44, 46, 72])
def test_a_wrong_number_of_bands(path, count):
    write_table(path, lucid_dreamer_table(rest=count))
    assert f"got {count}" in error(read_gaussians, path)


def test_a_list_is_no_number(path):
    names = [f"property float {name}" for name in GAUSSIAN_NAMES if name != "opacity"]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 1",
        *names,
        "property list uchar float opacity",
    ]
    path.write_bytes(
        ("\n".join(header) + "\nend_header\n").encode() + struct.pack("<13fBf", *range(13), 1, 0.5)
    )
    assert "opacity" in error(read_gaussians, path)


BROKEN = [
    (name, value)
    for name in ("x", "f_dc_1", "rot_3", "f_rest_8")
    for value in (np.nan, np.inf, -np.inf, 1e300)
]
BROKEN += [("rot_2", 3e38), ("x", -3e38)]  # finite, but not their lengths
BROKEN += [
    ("opacity", np.nan),
    ("scale_1", np.nan),
    ("scale_1", np.inf),
    ("f_dc_0", np.uint64(0x7FF0000000000001).view(np.float64)),  # a NaN that signals
]  # their other infinities have a meaning


@pytest.mark.parametrize(("name", "value"), BROKEN)
def test_gaussians_that_are_not_finite_are_left_out_and_counted(path, caplog, name, value):
    table = lucid_dreamer_table(rest=9, dtype="f8")
    table[name][[1, 3]] = value
    write_table(path, table)
    model = read_gaussians(path)
    assert torch.equal(model.means, columns(table[[0, 2, 4]], "x", "y", "z"))
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: 2 of 5 Gaussians are not finite and are left out"


def test_a_file_without_a_finite_gaussian_is_refused(path):
    table = lucid_dreamer_table()
    table["scale_1"] = np.nan
    write_table(path, table)
    assert "got none among 5" in error(read_gaussians, path)


def test_infinite_logits_are_opacities_of_nought_and_one(path, caplog):
    table = lucid_dreamer_table()
    table["opacity"][:2] = np.inf, -np.inf
    write_table(path, table)
    model = read_gaussians(path)
    assert model.opacity_logits.isfinite().all() and not caplog.records
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        model.opacities[:2].detach(), torch.tensor([[1.0], [0.0]]), rtol=0, atol=4 * eps
    )
    assert torch.equal(model.opacity_logits[2:].detach(), columns(table[2:], "opacity"))
    model.opacities.sum().backward()
    assert (model.opacity_logits.grad != 0).all()  # they can be learnt


def test_a_scale_of_nought_is_flat(path, caplog):
    table = lucid_dreamer_table()
    table["scale_2"] = -np.inf
    write_table(path, table)
    model = read_gaussians(path)
    assert (model.scales[:, 2] > 0).all() and (model.scales[:, 2] < 1e-8).all() and not caplog.records
    write_gaussians(path, model)  # and what was read can be written


def test_flat_gaussians_have_no_third_scale(path, caplog):
    """2DGS: discs, whose normal is the third axis of their rotation."""
    table = lucid_dreamer_table()
    write_table(path, np.lib.recfunctions.drop_fields(table, "scale_2"))
    model = read_gaussians(path)
    assert torch.equal(model.log_scales[:, :2], columns(table, "scale_0", "scale_1"))
    assert (model.scales[:, 2] < 1e-8).all() and "flat Gaussians" in caplog.text


def test_a_filter_that_is_stored_beside_the_gaussians_is_applied(path):
    """Mip-Splatting draws each Gaussian widened by it, and as much fainter."""
    table = lucid_dreamer_table()
    width = np.linspace(0.1, 2.0, len(table)).astype(np.float32)
    write_table(path, np.lib.recfunctions.append_fields(table, "filter_3D", width, usemask=False))
    model = read_gaussians(path)
    scales = columns(table, "scale_0", "scale_1", "scale_2").double().exp()
    wide = (scales**2 + torch.from_numpy(width).double()[:, None] ** 2).sqrt()
    torch.testing.assert_close(model.scales.double(), wide)
    fainter = columns(table, "opacity").double().sigmoid() * (scales / wide).prod(dim=1, keepdim=True)
    torch.testing.assert_close(model.opacities.double(), fainter.view_as(model.opacities))


@pytest.mark.parametrize("file_degree", DEGREES)
@pytest.mark.parametrize("degree", DEGREES)
def test_bands_that_the_file_lacks_can_be_learnt(path, file_degree, degree):
    written = random_gaussians(4, file_degree)
    write_gaussians(path, written)
    model = read_gaussians(path, degree)
    assert (model.sh_degree, model.active_sh_degree) == (max(degree, file_degree), file_degree)
    count = written.sh_rest.shape[1]
    assert torch.equal(model.sh_rest[:, :count], read_gaussians(path).sh_rest)
    assert not model.sh_rest[:, count:].any()


SURVEY = np.array([431_234.0, 5_432_123.0, 87.0])
"""Where a surveyor's coordinates count from: float32 tells apart what is half a metre apart there."""


def survey_table(names: list[str], kind: str = "f8") -> np.ndarray:
    table = np.zeros(200, dtype=[(name, kind) for name in names])
    values = np.random.default_rng(0)
    for name in names:
        table[name] = values.uniform(-1, 1, len(table))
    for axis, start in zip("xyz", SURVEY, strict=True):
        table[axis] += start
    return table


@pytest.mark.parametrize("options", [{}, {"byte_order": ">"}, {"text": True}])
@pytest.mark.parametrize("names", ["x y z", " ".join(GAUSSIAN_NAMES)])
def test_points_keep_the_precision_of_the_file(path, names, options):
    table = survey_table(names.split())
    write_table(path, table, **options)
    points, _ = read_points(path)
    expected = np.stack([table[axis] for axis in "xyz"], axis=1)
    np.testing.assert_allclose(points.numpy(), expected, rtol=4 * np.finfo(np.float64).eps)


def test_a_text_file_is_as_precise_as_it_is_written(path):
    """Whatever type its header names: programs write float and then all digits."""
    lines = [f"{SURVEY[0]} {SURVEY[1] + step / 100} {SURVEY[2]}" for step in range(9)]
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex 9\n{properties}end_header\n" + "\n".join(lines))
    steps = read_points(path)[0][:, 1].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 0.01), rtol=0, atol=1e-8)


def test_gaussians_of_a_survey_are_moved_to_the_origin_with_a_word(path, caplog):
    table = survey_table(GAUSSIAN_NAMES)
    write_table(path, table)
    means = read_gaussians(path).means.detach()
    expected = torch.from_numpy(np.stack([table[axis] for axis in "xyz"], axis=1))
    low, high = expected.amin(dim=0), expected.amax(dim=0)
    torch.testing.assert_close(means, (expected - (low + high) / 2).float(), rtol=0, atol=1e-6)
    (record,) = caplog.records
    assert "moved to the origin" in record.getMessage() and "431234" in record.getMessage()


def test_a_gaussian_far_beyond_a_survey_does_not_hide_that_it_must_be_moved(path, caplog):
    table = survey_table(GAUSSIAN_NAMES)
    table["x"][3] = 1e15
    write_table(path, table)
    means = read_gaussians(path).means.detach()
    near = torch.arange(200) != 3
    expected = torch.from_numpy(np.stack([table[axis] for axis in "xyz"], axis=1))[near]
    torch.testing.assert_close(
        means[near], (expected - (expected.amin(dim=0) + expected.amax(dim=0)) / 2).float(), rtol=0, atol=1e-6
    )
    assert "moved to the origin" in caplog.messages[0]


@pytest.mark.parametrize("reader", [read_gaussians, read_points])
def test_compressed_gaussians_are_named(path, reader):
    chunks = np.zeros(1, dtype=[("min_x", "f4"), ("max_x", "f4")])
    names = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
    vertices = np.zeros(256, dtype=[(name, "u4") for name in names])
    PlyData([PlyElement.describe(chunks, "chunk"), PlyElement.describe(vertices, "vertex")]).write(str(path))
    assert "SuperSplat's compressed" in error(reader, path)


@pytest.mark.parametrize("missing", ["scale_1", "opacity", "rot_0", "scale_0"])
@pytest.mark.parametrize("value", [1.0, np.inf, -np.inf])
def test_a_start_shape_needs_only_centres_and_colours(path, missing, value):
    table = lucid_dreamer_table()
    for name in ("opacity", "scale_1", "rot_1"):
        table[name] = value
    write_table(path, np.lib.recfunctions.drop_fields(table, missing))
    points, colors = read_points(path)
    assert torch.equal(points, columns(table, "x", "y", "z"))
    expected = 0.5 + 0.28209479177387814 * columns(table, "f_dc_0", "f_dc_1", "f_dc_2")
    torch.testing.assert_close(colors, expected.clamp(0, 1))


def test_no_vertices(path):
    write_table(path, lucid_dreamer_table(0))
    assert "expected vertices" in error(read_gaussians, path)
    path.write_text("ply\nformat ascii 1.0\nelement edge 0\nproperty int a\nend_header\n")
    assert "expected vertices" in error(read_gaussians, path)


def test_broken_gaussians_are_not_written(path):
    write_gaussians(path, random_gaussians(3))
    before = path.read_bytes()
    model = random_gaussians(3)
    model.log_scales.data[1, 1] = torch.nan
    with pytest.raises(UserError, match="log_scales"):
        write_gaussians(path, model)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_point_clouds_round_trip_in_our_frame(path):
    points, colors = torch.randn(7, 3, generator=seeded()), torch.rand(7, 3, generator=seeded(1))
    write_points(path, points, colors)
    assert [str(p) for p in PlyData.read(str(path))["vertex"].properties] == [
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
    ]
    back, back_colors = read_points(path)
    assert torch.equal(back, points)
    torch.testing.assert_close(back_colors, colors, atol=0.5 / 255 + 1e-6, rtol=0)
    assert not has_faces(path)


def test_points_of_gaussians_are_their_centres_and_colours(path):
    colors = torch.rand(6, 3, generator=seeded())
    model = random_gaussians(6)
    model.replace({"sh_dc": rgb_to_sh_dc(colors)[:, None]})
    write_gaussians(path, model)
    points, seen = read_points(path)
    assert torch.equal(points, model.means)
    torch.testing.assert_close(seen, colors)


def test_points_need_positions(path):
    write_table(path, np.zeros(3, dtype=[("x", "f4"), ("y", "f4")]))
    assert "x, y and z" in error(read_points, path)


@pytest.mark.parametrize(
    "names",
    [
        ("red", "green", "blue"),
        ("diffuse_red", "diffuse_green", "diffuse_blue"),
        ("r", "g", "b"),
        ("Red", "Green", "Blue"),
        ("scalar_R", "scalar_G", "scalar_B"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "full"),
    [
        ("u1", 255),
        ("u2", 65535),
        ("f4", 1),
        ("f8", 1),
        ("f4", 255),
        ("f8", 255),
        ("i4", 255),
        ("u2", 255),
        ("f4", 65535),
    ],
)
@pytest.mark.parametrize("options", [{}, {"text": True}])
def test_colours_of_any_name_and_range(path, names, kind, full, options):
    colors = np.random.default_rng(0).uniform(0, 1, (50, 3))
    colors[0] = 0, 1, 0.5
    stored = colors * full if kind.startswith("f") else (colors * full).round()
    table = np.zeros(50, dtype=[(axis, "f4") for axis in "xyz"] + [(name, kind) for name in names])
    for channel, name in enumerate(names):
        table[name] = stored[:, channel]
    write_table(path, table, **options)
    _, seen = read_points(path)
    np.testing.assert_allclose(seen.numpy(), colors, atol=0.5 / 255 if kind == "u1" or full == 255 else 1e-4)


def test_the_commonest_names_of_colours_count_most_and_likenesses_do_not():
    both = ["x", "ambient_red", "ambient_green", "ambient_blue", "red", "green", "blue"]
    assert color_names(both) == ("red", "green", "blue")
    assert color_names(["var", "vag", "vab", "nr", "ng", "nb", "scalar_R"]) == ()


def test_floats_that_pass_one_a_little_are_still_light(path):
    table = np.zeros(4, dtype=[(name, "f4") for name in ("x", "y", "z", "red", "green", "blue")])
    table["red"] = 0, 0.25, 1.0, 1.0625
    write_table(path, table)
    assert read_points(path)[1][:, 0].tolist() == [0, 0.25, 1, 1]


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("count", [10**9, 10**15])
def test_rows_without_properties_take_no_time(path, form, count):
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    header = f"ply\nformat {form} 1.0\nelement a {count}\nelement vertex 4\n{properties}end_header\n"
    path.write_bytes(header.encode() + bytes(48))
    assert "without properties" in error(read_points, path)


def with_lists(count: int, behind: bool) -> bytes:
    lists = f"element a {count}\nproperty list uchar float b\n"
    vertices = "element vertex 4\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    rows, points = bytes(count), np.eye(4, 3, dtype="<f4").tobytes()
    elements, body = (vertices + lists, points + rows) if behind else (lists + vertices, rows + points)
    return f"ply\nformat binary_little_endian 1.0\n{elements}end_header\n".encode() + body


def test_what_follows_the_vertices_is_not_read(path, monkeypatch):
    monkeypatch.setattr("scene.ply.MOST_LIST_ROWS", 10)
    path.write_bytes(with_lists(1000, behind=True))
    assert torch.equal(read_points(path)[0], torch.eye(4, 3))


def test_lists_before_the_vertices_are_read_up_to_a_number(path, monkeypatch):
    monkeypatch.setattr("scene.ply.MOST_LIST_ROWS", 10)
    path.write_bytes(with_lists(10, behind=False))
    assert torch.equal(read_points(path)[0], torch.eye(4, 3))
    path.write_bytes(with_lists(11, behind=False))
    assert "at most 10 rows with lists" in error(read_points, path)


@pytest.mark.parametrize("line", ["property float x", "element vertex 1\nproperty float x"])
def test_two_of_one_name_are_refused(path, line):
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n{line}\nend_header\n0\n")
    assert "got a broken one (two" in error(read_points, path)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_comments_and_names_in_any_encoding(path, line_end, encoding):
    lines = ["ply", "format ascii 1.0", "comment Büste, à vendre", "element vertex 4"]
    lines += [f"property float {name}" for name in ("x", "y", "z", "größe")]
    lines += ["end_header", *(f"{i} 0 1 7" for i in range(4)), ""]
    path.write_bytes(line_end.join(lines).encode(encoding))
    assert read_points(path)[0].tolist() == [[i, 0, 1] for i in range(4)]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("reader", [read_gaussians, read_points, has_faces])
def test_what_is_no_file_is_not_waited_for(path, make, reader):
    make(path)
    assert "expected a file, got a" in error(reader, path)


@pytest.mark.parametrize("name", ["/dev/zero", "a\0b.ply", "a" * 300 + ".ply"])
def test_paths_that_cannot_be_read(name):
    error(read_gaussians, name)
