"""A model file in its own runtime: NumPy arrays in, NumPy arrays out; torch only where it is it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mnft.errors import ExportError
from mnft.exports.artifact import INPUT_NAME, METADATA, Artifact
from mnft.exports.formats import FORMATS, check_installed
from mnft.exports.quiet import forbid_telemetry, silent

Array = np.ndarray[Any, np.dtype[Any]]


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself, as `describe_metadata`; empty where it says nothing."""

    def run(self, images: Array) -> Array:
        """One call of the runtime.

        Args:
            images: as the file takes them: (B, ...) float32, or uint8 where it normalises itself;
                B is 1 for a file of one image at a time.

        Returns:
            (B, K) float32.
        """


def open_session(folder: Path, artifact: Artifact, *, threads: int | None = None) -> Session:
    """Load a model file into its runtime.

    Args:
        folder: of the export.
        artifact: what its model.json says.
        threads: to compute with; None leaves it to the runtime.

    Raises:
        ExportError: the runtime is not installed, does not exist here, or refuses the file.
    """
    form = FORMATS.get(artifact.format)
    if form is None:
        raise ExportError(f"{folder}: unknown format {artifact.format!r}")
    if form.runtime is None:
        raise ExportError(
            f"{form.title} files cannot be run here",
            hint="on macOS, Xcode and coremltools run them; compare with labels.txt and model.json",
        )
    check_installed(form.runtime, form.extra, f"running {form.title} files")
    try:
        with silent():
            session: Session = _SESSIONS[form.name](folder / artifact.file, threads)
    except ImportError as error:
        raise ExportError(f"the packages that run {form.title} do not work: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{folder / artifact.file}: {form.title} cannot open it: {reason[:300]}"
        ) from error
    return session


class _Onnx:
    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads:
            options.intra_op_num_threads = threads
        self._errors = _find_onnx_errors()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            raise RuntimeError(str(error)) from error
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, images: Array) -> Array:
        try:
            return np.asarray(self._session.run(None, {INPUT_NAME: images})[0])
        except self._errors as error:
            raise RuntimeError(str(error)) from error


def _find_onnx_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own, which have no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return tuple(getattr(state, name) for name in (*names, "NoSuchFile", "RuntimeException"))


@functools.cache
def get_openvino_core() -> Any:
    """The one `openvino.Core` of this process.

    Each core's CPU plugin sets a stack for signals, and at its end puts back the one before, which
    may be that of a plugin that is gone: the next signal, such as the end of a child process, then
    kills the process (seen with OpenVINO 2026.4).
    """
    forbid_telemetry()
    import openvino

    return openvino.Core()


class _OpenVino:
    def __init__(self, path: Path, threads: int | None) -> None:
        # Its default is bf16 on processors that have it, whose answers differ from the file's.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        model = get_openvino_core().read_model(path)
        self.metadata: Mapping[str, str] = {
            name: model.get_rt_info(["mnft", name]).astype(str)
            for name in METADATA
            if model.has_rt_info(["mnft", name])
        }
        self._model = get_openvino_core().compile_model(model, "CPU", config)

    def run(self, images: Array) -> Array:
        return np.array(self._model(images)[0])


class _TorchScript:
    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, threads: int | None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        self._module = module.eval()
        self._from_numpy = torch.from_numpy
        self._inference_mode = torch.inference_mode

    def run(self, images: Array) -> Array:
        with self._inference_mode():
            return np.asarray(self._module(self._from_numpy(images)).numpy())


class _ExecuTorch:
    """Its thread pool has a size of its own, which Python cannot set."""

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, _threads: int | None) -> None:
        import torch
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)
        method = self._program.load_method("forward")
        assert method is not None
        self._method = method
        self._from_numpy = torch.from_numpy

    def run(self, images: Array) -> Array:
        return np.array(self._method.execute([self._from_numpy(images)])[0].numpy())


class _LiteRt:
    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count())
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def run(self, images: Array) -> Array:
        self._interpreter.set_tensor(self._input, images)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output))


_SESSIONS: dict[str, Any] = {
    "onnx": _Onnx,
    "openvino": _OpenVino,
    "torchscript": _TorchScript,
    "executorch": _ExecuTorch,
    "tflite": _LiteRt,
}
