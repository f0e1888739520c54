"""Student → ONNX: extractor and head folded into one small tail, dynamic batch and length, attention fused.

Suffixes: B pairs, L tokens, D encoder width, R latent width, K classes.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from optimum.exporters.onnx.convert import export_pytorch
from optimum.exporters.onnx.model_configs import BertOnnxConfig
from torch import Tensor, nn
from transformers import BertModel

from training.student.extractor import (
    CLSExtractor,
    Extractor,
    GATExtractor,
    GATv2Extractor,
    MLPExtractor,
    PolyExtractor,
    SlotExtractor,
    graph_token_weights,
    uniform_weights,
    weighted_sum,
)
from training.student.model import Student, pool_states

OPSET = 17
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LOGITS, LATENT, TOKEN_WEIGHTS = "logits", "latent", "token_weights"
_ELEMENT = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}


class FoldedStudent(nn.Module):
    """A student for inference: output(W_p pooled + W_z z + b) with z a weighted mean of token states.

    The extractor's last linear map commutes with the mean over tokens, so it is multiplied into the head once, here:
    W_z = W_r W for GAT, W_r W₂ for MLP, W_r for Poly. Neither W nor W₂ is left unless the latent is asked for. GATv2
    and slots are kept whole: W is applied once a pair there too, but for slots behind a gate.

    Args: student: any, its weights are copied; latent_outputs: also give the latent and the token weights.
    """

    def __init__(self, student: Student, *, latent_outputs: bool = False) -> None:
        super().__init__()
        extractor = student.extractor
        self.encoder = _eager_encoder(student.encoder)
        self.config = self.encoder.config
        self.extractor_kind = student.config.extractor.kind
        self.pooling = student.config.pooling
        self.latent_outputs = latent_outputs
        self.first: nn.Linear | None = extractor.first if isinstance(extractor, MLPExtractor) else None
        self.latent_map = _latent_map(extractor) if latent_outputs else None
        self.head, self.output = _folded_head(student), student.output
        if isinstance(extractor, GATExtractor):
            self.register_buffer("direction_2D", (extractor.attention_2R @ extractor.weight.weight).detach().clone())
        whole = isinstance(extractor, PolyExtractor | GATv2Extractor | SlotExtractor)
        self.whole = extractor if whole else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
        """Score B padded pairs; all inputs are int64 of shape (B, L).

        Returns: `logits` (B, K); with latent outputs also `latent` (B, R), if there is one, and `token_weights` (B, L).
        """
        hidden_BLD = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        features = pool_states(self.pooling, hidden_BLD, attention_mask, token_type_ids)
        uniform_BL = uniform_weights(attention_mask, hidden_BLD.dtype)
        extracted_BD, weight_BL = self._extract(hidden_BLD, attention_mask, uniform_BL)
        if extracted_BD is not None and (self.extractor_kind != "cls" or self.whole is not None):
            features = torch.cat([features, extracted_BD], dim=-1)
        outputs = {LOGITS: self.output(self.head(features))}
        if self.latent_outputs:
            if extracted_BD is not None and self.latent_map is not None:
                outputs[LATENT] = self.latent_map(extracted_BD)
            outputs[TOKEN_WEIGHTS] = weight_BL
        return outputs

    def _extract(self, hidden_BLD: Tensor, mask_BL: Tensor, uniform_BL: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.whole is not None:
            extracted_BD, weight_BL = self.whole(hidden_BLD, mask_BL)
            return extracted_BD, weight_BL
        match self.extractor_kind:
            case "mlp" if self.first is not None:
                return weighted_sum(uniform_BL, nn.functional.gelu(self.first(hidden_BLD))), uniform_BL
            case "gat":
                weight_BL = graph_token_weights(hidden_BLD, mask_BL, self.get_buffer("direction_2D"))
                return weighted_sum(weight_BL, hidden_BLD), weight_BL
            case "cls":
                weight_BL = (torch.cumsum(torch.ones_like(uniform_BL), dim=1) == 1).to(hidden_BLD.dtype)
                return hidden_BLD[:, 0], weight_BL
        return None, uniform_BL


class _StudentOnnxConfig(BertOnnxConfig):  # type: ignore[misc]  # optimum ships no types
    """Input and output names of a folded student for optimum's exporter."""

    output_names: tuple[str, ...] = (LOGITS,)

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Give each output's dynamic axes."""
        axes = {0: "batch_size"}
        return {name: axes | ({1: "sequence_length"} if name == TOKEN_WEIGHTS else {}) for name in self.output_names}


def export_graph(student: Student, path: Path, *, latent_outputs: bool = False) -> None:
    """Write the folded student as an fp32 graph of standard operators (what TensorRT reads).

    Args: student: on the CPU; path: of the .onnx file; latent_outputs: as in `FoldedStudent`.
    """
    folded = FoldedStudent(student, latent_outputs=latent_outputs).eval()
    config = _StudentOnnxConfig(folded.config, task="feature-extraction")
    config.output_names = tuple(_output_names(student, latent_outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every Python value it freezes; parity is measured
        export_pytorch(folded, config, OPSET, path, input_shapes={"batch_size": 2, "sequence_length": 16})


def fuse_graph(source: Path, target: Path, *, heads: int, width: int) -> None:
    """Fuse attention, embeddings with their normalisation, skip connections and GELU into onnxruntime's operators.

    Args: source: a graph of `export_graph`; target: file to write; heads: attention heads; width: D.
    """
    logging.getLogger("onnxruntime.transformers").setLevel(logging.WARNING)
    options = FusionOptions("bert")
    optimized = optimize_model(
        str(source), model_type="bert", num_heads=heads, hidden_size=width, optimization_options=options, opt_level=0
    )
    optimized.save_model_to_file(str(target))


def graph_tensors(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Give the (inputs, outputs) of a graph: tensor name → element type."""
    graph = onnx.load(path, load_external_data=False).graph
    return _element_types(graph.input), _element_types(graph.output)


def _element_types(values: Any) -> dict[str, str]:  # noqa: ANN401 - onnx ships no types for mypy
    return {v.name: _ELEMENT.get(v.type.tensor_type.elem_type, str(v.type.tensor_type.elem_type)) for v in values}


def _eager_encoder(encoder: BertModel) -> BertModel:
    eager = BertModel._from_config(encoder.config, attn_implementation="eager", add_pooling_layer=False)
    eager.load_state_dict(encoder.state_dict())
    return eager


def _output_names(student: Student, latent_outputs: bool) -> list[str]:
    if not latent_outputs:
        return [LOGITS]
    return [LOGITS, TOKEN_WEIGHTS] if student.extractor is None else [LOGITS, LATENT, TOKEN_WEIGHTS]


def _latent_map(extractor: Extractor | None) -> nn.Module | None:
    match extractor:
        case MLPExtractor():
            return extractor.second
        case GATExtractor():
            return extractor.weight
        case None:
            return None
    return nn.Identity()


@torch.no_grad()
def _folded_head(student: Student) -> nn.Linear:
    extractor = student.extractor
    latent_width = 0 if extractor is None else extractor.latent_width
    pooled_width = student.head.in_features - latent_width
    weight_pooled, weight_latent = student.head.weight[:, :pooled_width], student.head.weight[:, pooled_width:]
    bias = student.head.bias.clone()
    match extractor:
        case MLPExtractor():
            bias += weight_latent @ extractor.second.bias
            weight = torch.cat([weight_pooled, weight_latent @ extractor.second.weight], dim=1)
        case GATExtractor():
            weight = torch.cat([weight_pooled, weight_latent @ extractor.weight.weight], dim=1)
        case CLSExtractor():
            weight = weight_pooled.clone()
            weight[:, :latent_width] += weight_latent
        case _:
            weight = student.head.weight.clone()
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head
