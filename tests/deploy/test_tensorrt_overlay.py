"""TensorRT in the deployment: what its overlay adds to the GPU's, and the image's optional libraries."""

from __future__ import annotations

import subprocess

from image_replay import ROOT, read_stages
from rendering import of_kind, server_pods, settings_of


def test_a_pod_that_builds_engines_is_waited_for_and_keeps_them():
    """The volume is where the setting points; the start has half an hour, and a rollout does not give up before."""
    [(_, _, spec)] = server_pods("overlays/tensorrt-gpu")
    [server] = spec["containers"]
    [deployment] = of_kind("overlays/tensorrt-gpu", "Deployment")
    given = settings_of("overlays/tensorrt-gpu", server)
    [mount] = [m for m in server["volumeMounts"] if m["name"] == "engines"]
    waited_s = server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"]

    assert (mount["mountPath"], mount.get("readOnly")) == (given["RELEVANCE_ENGINE_CACHE"], None)
    assert 1800 <= waited_s < deployment["spec"]["progressDeadlineSeconds"]


def test_the_gpu_overlay_itself_stays_with_cuda():
    """No volume for engines, no other wait for the start than the CPU's."""
    [(_, _, spec)] = server_pods("overlays/gpu")
    [(_, _, on_cpus)] = server_pods("overlays/cpu")

    assert settings_of("overlays/gpu", spec["containers"][0])["RELEVANCE_PROVIDER"] == "cuda"
    assert "engines" not in {volume["name"] for volume in spec["volumes"]}
    assert spec["containers"][0]["startupProbe"] == on_cpus["containers"][0]["startupProbe"]


def test_the_image_has_tensorrt_s_libraries_only_where_their_version_is_named():
    """The line's own expansion, by the shell that runs it: nothing more without the argument, two packages with it."""
    [line] = read_stages(ROOT / "Dockerfile")["gpu-base"].values("RUN")
    words = line.split("--no-install-recommends", 1)[1].split("&&", 1)[0]

    def installed(version: str) -> list[str]:
        """Give the packages that the line asks for."""
        done = subprocess.run(
            ["/bin/sh", "-c", f"printf '%s\\n' {words}"],
            env={"TENSORRT": version},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert installed("") == ["python3", "python3-venv"]
    assert installed("10.1-1+cuda13.0")[2:] == ["libnvinfer10=10.1-1+cuda13.0", "libnvonnxparsers10=10.1-1+cuda13.0"]
