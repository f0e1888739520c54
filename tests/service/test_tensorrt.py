"""TensorRT as far as a machine without it shows: profiles, options, folders, refusals, padding and the replay."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from relevance.bundle import Bundle, open_bundle
from relevance.errors import BundleError, ParityError, SettingsError
from relevance.tokenization import PairBatch
from service.golden import replay
from service.model import Model, prove
from service.session import OnnxSession
from service.settings import load_settings
from service.tensorrt import MOST_TOKENS, Profile, builder, engine_folder, open_kept, profiles, provider_options
from service.verify import main as verify


@pytest.fixture(scope="module")
def unfused_bundle(tiny_run: Path, tmp_path_factory) -> Bundle:
    """The tiny student exported with the graph that TensorRT reads beside the fp32 one."""
    from export.build import main

    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("unfused") / "run", ignore=shutil.ignore_patterns("export"))
    kinds = 'precisions=["fp32","unfused"]', 'ship=["fp32","unfused"]'
    changes = [word for kind in kinds for word in ("--set", f"export.{kind}")]
    assert main(["--recipe", str(run / "recipe.toml"), "--out", str(run), *changes]) == 0

    return open_bundle(run / "export" / "bundle")


class _Recorded:
    """A real session behind the shapes of TensorRT's: refuses what no profile holds, remembers what it was given."""

    def __init__(self, session: ort.InferenceSession, profile: Profile) -> None:
        self.session, self.profile, self.shapes = session, profile, []

    def run(self, names, arrays):
        """Run a batch of exactly the profile's length and at most its rows."""
        rows, length = arrays["input_ids"].shape
        assert (length, 1 <= rows <= self.profile.rows) == (self.profile.length, True)
        self.shapes.append((rows, length))
        return self.session.run(names, arrays)


@pytest.fixture
def bound_session(model: Model) -> OnnxSession:
    """The tiny model's session on the CPU, bound to two profiles as TensorRT's would be."""
    session = object.__new__(OnnxSession)
    session.__dict__ |= model.session.__dict__
    (opened,) = model.session._opened
    session._opened = tuple(
        SimpleNamespace(session=_Recorded(opened.session, profile), profile=profile, placed=opened.placed)
        for profile in (Profile(24, 4), Profile(96, 9))
    )
    return session


@pytest.mark.parametrize(
    ("most", "lengths"), [(96, [32, 64, 96]), (128, [32, 64, 128]), (300, [32, 64, 128, 256, 300]), (16, [16])]
)
def test_profiles_end_with_the_longest_pair_and_share_one_token_budget(most, lengths):
    """Lengths in order, rows as many as the budget holds."""
    found = profiles(most)

    assert [profile.length for profile in found] == lengths
    assert all(0.9 * MOST_TOKENS < profile.length * profile.rows <= MOST_TOKENS for profile in found)


def test_options_name_every_input_in_each_of_the_three_shapes(tmp_path):
    """One length for all three, rows from one to all; the folder is named where engines are kept."""
    options = provider_options(["input_ids", "attention_mask"], Profile(32, 512), tmp_path)

    shapes = {name.split("_")[2]: value for name, value in options.items() if name.startswith("trt_profile_")}
    assert shapes == {
        "min": "input_ids:1x32,attention_mask:1x32",
        "opt": "input_ids:256x32,attention_mask:256x32",
        "max": "input_ids:512x32,attention_mask:512x32",
    }
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    assert {value for name, value in options.items() if name.endswith(("_enable", "_fallback"))} == {"True"}


def test_without_a_folder_no_engine_is_kept():
    """Nothing of a cache among the options."""
    assert not [name for name in provider_options(["input_ids"], Profile(32, 8), None) if "cache" in name]


def test_an_engine_s_folder_tells_bundle_libraries_gpu_and_shape_apart(tmp_path):
    """Another of any of them is another folder; the GPU's name has no spaces in it."""
    built_by = "onnxruntime-1.31.1_tensorrt-101303_NVIDIA H200"
    folder = engine_folder(tmp_path, "0" * 16, built_by, Profile(32, 512))

    assert folder == tmp_path / ("0" * 16) / "onnxruntime-1.31.1_tensorrt-101303_NVIDIA-H200" / "512x32"
    others = [("1" * 16, built_by, Profile(32, 512)), ("0" * 16, built_by + " NVL", Profile(32, 512))]
    others.append(("0" * 16, built_by, Profile(64, 256)))
    assert len({folder, *(engine_folder(tmp_path, *other) for other in others)}) == 4


def test_a_folder_that_cannot_be_written_is_refused_by_the_name_of_the_setting(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "engines").touch()

    with pytest.raises(SettingsError, match=r"engine_cache: expected a folder that can be written at .*engines"):
        engine_folder(tmp_path / "engines", "0" * 16, "x", Profile(32, 512))


def test_a_machine_without_tensorrt_is_told_which_library_is_missing():
    """Named as the loader looks for it."""
    if "TensorrtExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build of onnxruntime has TensorRT")

    with pytest.raises(SettingsError, match=r"expected the library libnvinfer\.so\.10"):
        builder()


def test_a_bundle_without_the_graph_is_refused_with_the_file_and_the_way_to_it(tiny_bundle):
    """Said before any library is looked for."""
    with pytest.raises(BundleError, match=r"expected model\.unfused\.onnx, found graphs .*export\.ship"):
        OnnxSession(open_bundle(tiny_bundle), precision="auto", provider="tensorrt", threads=1)


def test_verify_names_the_missing_graph_before_it_builds_engines(tiny_bundle, tmp_path):
    """`--engine-cache` stays empty: there is nothing to build."""
    with pytest.raises(BundleError, match=r"expected model\.unfused\.onnx"):
        verify([str(tiny_bundle), "--provider", "tensorrt", "--engine-cache", str(tmp_path)])

    assert not list(tmp_path.iterdir())


def test_verify_opens_no_graph_that_the_provider_does_not_serve(unfused_bundle, capsys):
    """On a GPU the others may not run at all: they are told of, and passed by."""
    if "TensorrtExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build of onnxruntime has TensorRT")

    with pytest.raises(SettingsError, match="expected TensorrtExecutionProvider in this build"):
        verify([str(unfused_bundle.path), "--provider", "tensorrt"])

    assert capsys.readouterr().out.splitlines()[2:] == ["fp32: not served on tensorrt, not replayed"]


def test_verify_replays_every_graph_on_a_cpu(unfused_bundle, capsys):
    """Also the one that is made for TensorRT: a CPU runs it as well."""
    assert verify([str(unfused_bundle.path)]) == 0

    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[2:]] == [
        [f"{precision}:", str(len(unfused_bundle.golden)), "golden"] for precision in ("fp32", "unfused")
    ]


def test_a_precision_that_tensorrt_cannot_read_is_refused(unfused_bundle):
    """The fused graphs have operators of onnxruntime's own."""
    with pytest.raises(SettingsError, match="expected precision 'auto' or 'unfused', found 'fp32'"):
        OnnxSession(unfused_bundle, precision="fp32", provider="tensorrt", threads=1)


def test_a_build_without_tensorrt_is_refused_by_name(unfused_bundle):
    """The bundle is fit, this onnxruntime is not."""
    if "TensorrtExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build of onnxruntime has TensorRT")

    with pytest.raises(SettingsError, match="expected TensorrtExecutionProvider in this build"):
        OnnxSession(unfused_bundle, precision="auto", provider="tensorrt", threads=1)


def test_the_unfused_graph_holds_standard_operators_only_and_replays_on_a_cpu(unfused_bundle):
    """What TensorRT reads is gated like the others, and any provider can run it."""
    import onnx

    graph = onnx.load(unfused_bundle.graph_path("unfused"), load_external_data=False).graph
    session = OnnxSession(unfused_bundle, precision="unfused", provider="cpu", threads=1)

    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert unfused_bundle.manifest.graphs["unfused"].gate.passed
    assert unfused_bundle.choose_precision(("int8", "int8w", "fp32")) == "fp32"
    assert replay(unfused_bundle, session, "unfused").max_abs_difference < 1e-4


def test_a_batch_is_padded_to_the_next_profile_and_cut_to_its_rows(bound_session, model):
    """Seven pairs of 20 tokens: 4 and 3 rows of 24 tokens, with the logits of the free session."""
    ids_BL = np.arange(1000, 1140).reshape(7, 20)
    batch = PairBatch(ids_BL, np.ones_like(ids_BL), (np.arange(20) > 5).astype(np.int64)[None].repeat(7, 0))

    logits_BK = bound_session.run(batch)

    short, long = bound_session._opened
    assert (short.session.shapes, long.session.shapes) == ([(4, 24), (3, 24)], [])
    assert logits_BK == pytest.approx(model.session.run(batch), abs=1e-4)


def test_the_replay_fills_every_profile_with_golden_pairs_that_fit(bound_session, model):
    """The largest batch of each, not only what a few pairs make."""
    shown = replay(model.bundle, bound_session, model.session.precision, bound_session.profiles)

    assert shown.max_abs_difference <= shown.tolerance
    assert [opened.session.shapes[-1] for opened in bound_session._opened] == [(4, 24), (9, 96)]


@pytest.fixture
def broken_session(bound_session) -> OnnxSession:
    """Right for the first row only in the longest profile's largest batch: 9 rows, where others have up to 8."""
    longest = bound_session._opened[-1].session
    run = longest.run

    def first_row_only(names, arrays):
        (logits,) = run(names, arrays)
        return [np.repeat(logits[:1], len(logits), axis=0) if len(logits) == longest.profile.rows else logits]

    longest.run = first_row_only
    return bound_session


def test_an_engine_that_is_right_for_its_first_row_only_is_found_in_its_largest_batch(broken_session, model):
    """Nothing but the batch that fills the profile shows it."""
    precision = model.session.precision
    replay(model.bundle, broken_session, precision)

    with pytest.raises(ParityError, match=r"in a batch of 9 × 96 tokens: expected .* logits within"):
        replay(model.bundle, broken_session, precision, broken_session.profiles)


def test_engines_of_a_second_session_are_replayed_as_those_of_the_first(broken_session, model):
    """They were built apart from the first one's."""
    with pytest.raises(ParityError, match=r"in a batch of 9 × 96 tokens"):
        prove(model.bundle, (model.session, broken_session))


def test_a_second_session_without_engines_is_probed(model):
    """The replay that is told is the first one's."""
    assert prove(model.bundle, (model.session, model.session)).n_pairs == len(model.bundle.golden)


def read_engine(folder: Path) -> str:
    """Stand for TensorRT: read the engine that a folder keeps, build one where there is none."""
    kept = folder / "engine"
    if not kept.exists():
        kept.write_text("whole", encoding="utf-8")
    if kept.read_text(encoding="utf-8") != "whole":
        raise BundleError("expected an engine, found part of one")
    return "opened"


def test_part_of_an_engine_is_removed_and_the_engine_is_built_again(tmp_path, caplog):
    """What a process left that was killed while it wrote; the log names the folder and what was in it."""
    folder = engine_folder(tmp_path, "0" * 16, "x", Profile(32, 512))
    for name in ("engine", "timings"):
        (folder / name).write_text("who", encoding="utf-8")

    assert open_kept(folder, partial(read_engine, folder)) == "opened"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {".writable": "", "engine": "whole"}
    (record,) = caplog.records
    assert (record.fields["folder"], record.fields["files"]) == (str(folder), ["engine", "timings"])


def test_an_engine_that_can_be_opened_is_kept(tmp_path):
    """So is what lies beside it."""
    folder = engine_folder(tmp_path, "0" * 16, "x", Profile(32, 512))
    (folder / "timings").touch()

    assert [open_kept(folder, partial(read_engine, folder)) for _ in range(2)] == ["opened", "opened"]
    assert {path.name for path in folder.iterdir()} == {".writable", "engine", "timings"}


@pytest.mark.parametrize("keeps", [True, False])
def test_an_engine_that_cannot_be_built_is_refused_at_the_first_try(tmp_path, keeps):
    """With a folder that keeps nothing yet, and without one: there is nothing that another try would change."""
    folder = engine_folder(tmp_path, "0" * 16, "x", Profile(32, 512)) if keeps else None
    tries = []

    def refuse():
        tries.append("tried")
        raise BundleError("expected a graph that onnxruntime loads")

    with pytest.raises(BundleError, match="that onnxruntime loads"):
        open_kept(folder, refuse)
    assert tries == ["tried"]


def test_tensorrt_is_a_gpu_to_the_settings(monkeypatch, tmp_path):
    """One engine, short batches, prefetching, as on CUDA; the folder comes from the environment."""
    monkeypatch.setenv("RELEVANCE_ENGINE_CACHE", str(tmp_path))
    settings = load_settings(provider="tensorrt")

    assert (settings.on_gpu, settings.n_engines, settings.batch_s) == (True, 1, 0.008)
    assert settings.engine_cache == tmp_path
    assert not load_settings().on_gpu


def test_the_gpu_extra_pins_an_onnxruntime_that_asks_for_the_library_looked_for():
    """onnxruntime-gpu 1.31 links libnvinfer.so.10; another pin needs another look at what it links."""
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()

    assert next(pin for pin in pins if pin.startswith("onnxruntime-gpu==")).startswith("onnxruntime-gpu==1.31.")
