"""`Llama3Config.finalize` and `decoder_spec`: what the tensors tell, and the decoder that follows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import pytest

from puna.dtype import DType
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.quant_config import (
    InputScaleSpec,
    QuantConfig,
    QuantFormat,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)
from puna.nn.rotary_embedding import (
    LinearRopeScalingParams,
    LongRoPEScalingParams,
)
from puna.pipelines.architectures.llama3 import Llama3Config
from support.llama_config import hf_config, llama_config, weight


class TestFinalize:
    """`finalize`: ten fields from the tensors and the arguments."""

    PLAIN = ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight", "lm_head.weight", "norm.weight")

    def finalize(self, names: Any, *, prefix: str = "", config: Any = None, **arguments: Any) -> Llama3Config:
        made = llama_config(config)
        tensors = {prefix + name: weight(2, 2) for name in names}
        norm = weight(2, dtype=ml_dtypes.bfloat16)
        tensors[prefix + "layers.0.input_layernorm.weight"] = norm
        arguments.setdefault("return_logits", ReturnLogits.LAST_TOKEN)
        assert made.finalize(config or hf_config(), tensors, **arguments) is None  # type: ignore[func-returns-value]
        return made

    @pytest.mark.parametrize("prefix", ["", "model.", "language_model."])
    def test_prefixes_do_not_matter(self, prefix: str) -> None:
        stacked = ("layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight")
        plain = self.finalize(self.PLAIN, prefix=prefix)
        assert (plain.stacked_qkv, plain.stacked_mlp, plain.norm_dtype) == (False, False, DType.bfloat16)
        both = self.finalize(stacked, prefix=prefix)
        assert (both.stacked_qkv, both.stacked_mlp) == (True, True)

    def test_arguments_are_copied(self) -> None:
        config = self.finalize(
            self.PLAIN,
            return_logits=ReturnLogits.ALL,
            return_hidden_states=ReturnHiddenStates.LAST,
            norm_method="layer_norm",
            attention_bias=True,
        )
        assert (config.return_logits, config.return_hidden_states) == (ReturnLogits.ALL, ReturnHiddenStates.LAST)
        assert (config.norm_method, config.attention_bias, config.rms_norm_eps) == ("layer_norm", True, None)

    def test_epsilon_comes_from_the_configuration(self) -> None:
        assert self.finalize(self.PLAIN).rms_norm_eps == 1e-5
        exaone = hf_config(model_type="exaone", layer_norm_epsilon=3e-6)
        assert self.finalize(self.PLAIN, config=exaone).rms_norm_eps == 3e-6

    def test_a_second_dictionary_replaces_the_facts_of_the_first(self) -> None:
        config = self.finalize(("layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight"))
        config.finalize(hf_config(), {"layers.0.mlp.up_proj.weight": weight(1, 1)}, ReturnLogits.LAST_TOKEN)
        assert (config.stacked_qkv, config.stacked_mlp, config.norm_dtype) == (False, False, None)

    def test_an_unknown_norm_is_refused(self) -> None:
        with pytest.raises(ValueError, match="batch_norm"):
            self.finalize(self.PLAIN, norm_method="batch_norm")

    def test_biases_of_the_checkpoint_are_never_dropped(self) -> None:
        names = ("layers.0.self_attn.q_proj.bias", "layers.0.self_attn.o_proj.bias", "layers.0.mlp.down_proj.bias")
        config = self.finalize(names)
        assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (True, True, True)
        plain = self.finalize(self.PLAIN)
        assert (plain.attention_bias, plain.attention_output_bias, plain.mlp_bias) == (False, False, False)

    def test_the_configurations_word_on_tying_wins_over_the_tensors(self) -> None:
        assert self.finalize(self.PLAIN, config=hf_config(tie_word_embeddings=True)).tie_word_embeddings is True
        assert self.finalize(("norm.weight",)).tie_word_embeddings is False

    def test_tensors_decide_on_tying_where_the_configuration_is_silent(self) -> None:
        silent = hf_config(without=("tie_word_embeddings",))
        assert self.finalize(self.PLAIN, config=silent).tie_word_embeddings is False
        assert self.finalize(("norm.weight",), config=silent).tie_word_embeddings is True
        # Beside a `model.` prefix a top-level output matrix is not in view.
        config = llama_config(silent)
        tensors = {"model.norm.weight": weight(2), "lm_head.weight": weight(2, 2)}
        config.finalize(silent, tensors, ReturnLogits.LAST_TOKEN)
        assert config.tie_word_embeddings is True


class TestDecoderSpec:
    """`decoder_spec`: every knob arrives, and contradictions are errors."""

    def finalized(self, config: Any = None, **changes: Any) -> Llama3Config:
        made = llama_config(config)
        made.rms_norm_eps = 1e-6
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def test_every_knob_arrives(self) -> None:
        spec = self.finalized(
            hf_config(clip_qkv=2.0, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=7.0),
            attention_bias=True,
            stacked_qkv=True,
            stacked_mlp=True,
            attention_multiplier=0.25,
            tie_word_embeddings=True,
            interleaved_rope_weights=True,
            return_logits=ReturnLogits.VARIABLE,
            return_hidden_states=ReturnHiddenStates.ALL,
            use_subgraphs=False,
        ).decoder_spec()
        assert (spec.clip_qkv, spec.embedding_multiplier, spec.residual_multiplier) == (2.0, 3.0, 0.5)
        assert (spec.logits_scaling, spec.attention_multiplier, spec.norm_eps) == (7.0, 0.25, 1e-6)
        assert (spec.attention_bias, spec.stacked_qkv, spec.stacked_mlp) == (True, True, True)
        assert (spec.tie_word_embeddings, spec.interleaved_rope, spec.use_subgraphs) == (True, True, False)
        assert (spec.return_logits, spec.return_hidden_states) == (ReturnLogits.VARIABLE, ReturnHiddenStates.ALL)

    def test_layer_norm_has_a_fixed_epsilon(self) -> None:
        spec = self.finalized(norm_method="layer_norm", rms_norm_eps=None).decoder_spec()
        assert (spec.norm_method, spec.norm_eps) == ("layer_norm", 1e-5)

    def test_rms_norm_without_an_epsilon_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="rms_norm_eps"):
            self.finalized(rms_norm_eps=None).decoder_spec()

    def test_scaled_weights_go_with_stacked_ones(self) -> None:
        quant_config = QuantConfig(
            input_scale=InputScaleSpec(
                granularity=ScaleGranularity.TENSOR, origin=ScaleOrigin.STATIC, dtype=DType.float32
            ),
            weight_scale=WeightScaleSpec(granularity=ScaleGranularity.TENSOR, dtype=DType.float32),
            mlp_quantized_layers=frozenset({0}),
            attn_quantized_layers=frozenset({0}),
            format=QuantFormat.COMPRESSED_TENSORS_FP8,
        )
        for stacked in (True, False):
            spec = self.finalized(stacked_mlp=stacked, stacked_qkv=stacked, quant_config=quant_config).decoder_spec()
            assert (spec.stacked_mlp, spec.stacked_qkv) == (stacked, stacked)

    def test_two_kinds_of_scaling_are_an_error(self) -> None:
        longrope = LongRoPEScalingParams([1.0] * 4, [1.0] * 4, 16, 64)
        both = self.finalized(longrope_scaling_params=longrope, rope_scaling_params=LinearRopeScalingParams(2.0))
        with pytest.raises(ValueError, match="longrope_scaling_params"):
            both.decoder_spec()

    def test_a_share_of_each_head_can_be_rotated(self) -> None:
        rope = llama_config(hf_config(head_dim=16, partial_rotary_factor=0.5)).rotary_embedding()
        assert (rope.head_dim, rope.rot_dim) == (16, 8)
