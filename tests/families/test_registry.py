"""The method of each file, and one sentence for each file of another kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onestep_sr.sr_models.checkpoints.conditions import All
from onestep_sr.sr_models.checkpoints.header import Header
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import adcsr, bundled, resshift, trained_here, tsd_sr
from onestep_sr.sr_models.families.catalogue import describe, files_in, recipes
from onestep_sr.sr_models.families.loading import recipe_of
from onestep_sr.sr_models.families.registry import FAMILIES, Registry, read_lora
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder

LORA = (".lora_A.weight", ".lora_B.weight")


def header(*names: str, metadata: dict | None = None, kind="safetensors") -> Header:
    return Header(Path("file.safetensors"), dict.fromkeys(names, (4, 4)), metadata or {}, kind)


STACK = "feature_extractor.0.weight"
FACES = dict.fromkeys((*resshift.NETWORK.names, "feature_extractor.8.op.weight"), (4, 4)) | {STACK: (16, 3, 3, 3)}
OWN_VAE = "vae.encoder.conv_in.lora_A.weight"
OURS = {
    "bundled": header("conv_in.weight", metadata={"onestep_sr": "{}"}),
    "resshift": header(*resshift.NETWORK.names),
    "tad-faceir": Header(Path("TAD-faceir.pth"), FACES),
    "adcsr": Header(
        Path("net_params_200.pkl"),
        dict.fromkeys(
            (f"body.1.{adcsr.ATTENTION}", "body.1.conv_out.weight", "body.2.resnets.0.conv1.weight"), (256, 240, 3, 3)
        )
        | {"body.1.conv_in.weight": (240, 12, 3, 3)},
    ),
    "invsr": Header(
        Path("noise_predictor_sd_turbo_v5.pth"),
        dict.fromkeys(("encoder.conv_in.weight", "encoder.time_embedding.linear_1.weight"), (4, 4))
        | {"encoder.conv_out.weight": (8, 512, 3, 3)},
    ),
    "invsr, one file": header("predictor/encoder.conv_in.weight", metadata={"onestep_sr_family": "invsr"}),
    "adcsr, one file": header("unet.conv_in.weight", metadata={"onestep_sr_family": "adcsr"}),
    "tsd-sr": header("transformer.pos_embed.proj.lora_A.weight"),
    "tsd-sr, VAE": header("transformer.encoder.conv_in.lora_A.weight"),
    "tsd-sr, one file": header("transformer.x.lora_A.weight", OWN_VAE, metadata={"onestep_sr_lora": "{}"}),
    "own-lora": header("unet.conv_in.lora_A.weight"),
    "own-lora, VAE": header(OWN_VAE),
    "hypir": header("conv_out.lora_A.default.weight", "mid_block.resnets.0.conv1.lora_A.default.weight"),
    "omgsr-s": header(
        "base_model.model.conv_in.lora_A.weight",
        "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
    ),
    "omgsr-s, VAE": header(
        "base_model.model.conv_in.lora_A.weight", "base_model.model.mid_block.attentions.0.to_q.lora_A.weight"
    ),
    "own-lora, one file": header("unet.x.lora_A.weight", OWN_VAE, metadata={"onestep_sr_lora": "{}"}),
}


@pytest.mark.parametrize("kind", OURS)
def test_exactly_one_family_matches_each_file(kind) -> None:
    assert FAMILIES.identify(OURS[kind]).name == kind.split(",")[0]
    assert [family.name for family in FAMILIES if not family.condition.missing(OURS[kind])] == [kind.split(",")[0]]


with torch.device("meta"):
    VQ = {name: tuple(tensor.shape) for name, tensor in VQAutoencoder().state_dict().items()}
CODEBOOK = "quantize.embedding.weight"


def of_shapes(shapes: dict[str, tuple[int, ...]]) -> Header:
    return Header(Path("file.safetensors"), shapes)


OTHERS = {
    "ESRGAN, old": (header("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "Load Upscale Model"),
    "Real-ESRGAN": (header("conv_first.weight", "body.0.rdb1.conv1.weight"), "Load Upscale Model"),
    "compact": (header("body.0.weight", "body.1.weight", "body.2.weight"), "Load Upscale Model"),
    "SPAN": (header("conv_1.sk.weight", "block_1.c1_r.sk.weight"), "Load Upscale Model"),
    "SwinIR": (header("conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"), "Load Upscale Model"),
    "kohya": (header("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"), "Load LoRA"),
    "diffusers": (header(*(f"unet.down_blocks.0.attentions.0.to_q{end}" for end in LORA)), "Load LoRA"),
    "SD3 style": (header(*(f"transformer.transformer_blocks.0.attn.to_q{end}" for end in LORA)), "Load LoRA"),
    "GGUF": (header(kind="gguf"), "GGUF loader"),
    "checkpoint": (
        header("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
        "Load Checkpoint, or as --base",
    ),
    "U-Net": (header("conv_in.weight", "conv_out.weight", "down_blocks.0.resnets.0.conv1.weight"), "as --base"),
    "VAE": (header("encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.weight"), "Load VAE"),
    "VQ": (of_shapes(VQ), "this file as its autoencoder"),
    "AdcSR's half": (of_shapes({"decoder.conv_norm_out.weight": (64,)}), "is AdcSR's half decoder: choose"),
    "VAE of diffusers": (of_shapes({"decoder.conv_norm_out.weight": (128,)}), "is not a supported model"),
    "VQ of faces": (of_shapes(VQ | {CODEBOOK: (4096, 8)}), "is the VQ-f8 autoencoder of models for faces: choose"),
    "VQ-GAN": (of_shapes(VQ | {CODEBOOK: (16384, 256)}), "is a VAE"),
    "inpainting": (of_shapes(FACES | {STACK: (16, 4, 3, 3)}), "is a ResShift model for inpainting, which is not an"),
    "GFPGAN": (header("conv_body_first.weight", "stylegan_decoder.style_mlp.1.weight"), "is a face restoration model"),
    "CodeFormer": (
        header("position_emb", CODEBOOK, "encoder.blocks.0.weight", "fuse_convs_dict.32.scale.0.weight"),
        "is a face restoration model (GFPGAN, CodeFormer or RestoreFormer): choose",
    ),
    "RestoreFormer": (of_shapes(VQ | {CODEBOOK: (1024, 256)}), "is a face restoration model"),
    "EDSR": (
        header("sub_mean.weight", "head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"),
        "another kind (EDSR)",
    ),
    "EDSR, basicsr": (
        header("conv_first.weight", "body.0.conv1.weight", "conv_after_body.weight"),
        "kind (EDSR): choose",
    ),
    "HAT": (
        header(
            *("conv_first.weight", "layers.0.residual_group.overlap_attn.qkv.weight"),
            "layers.0.residual_group.blocks.0.attn.qkv.weight",
        ),
        "another kind (HAT): choose it in Load Upscale Model",
    ),
    "SwinIR's attention": (
        header("conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight"),
        "another kind (SwinIR): choose it in Load Upscale Model",
    ),
    "DAT": (header("conv_first.weight", "before_RG.1.weight"), "another kind (DAT): choose it in Load Upscale Model"),
    "RRDBNet": (header("conv_first.weight", "body.0.rdb1.conv1.weight"), "(ESRGAN or Real-ESRGAN): choose"),
    "SRVGG": (header("body.0.weight", "body.1.weight", "body.2.weight"), "(Real-ESRGAN's compact network): choose"),
    "LoHa": (header("lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a"), "is a LyCORIS file"),
    "LoKr": (header("lora_unet_input_blocks_1_1_proj_in.lokr_w1"), "is a LyCORIS file"),
    "LoKr of diffusers": (header("transformer.transformer_blocks.0.attn.to_q.lokr_w1"), "Load LoRA"),
    "IP-Adapter": (header("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "is an IP-Adapter"),
    "IP-Adapter, torch": (
        header("image_proj/proj.weight", "ip_adapter/0.to_q_lora.down.weight", "ip_adapter/1.to_k_ip.weight"),
        "is an IP-Adapter: choose it in a node for IP-Adapters",
    ),
    "CLIP vision": (header("vision_model.embeddings.class_embedding", "text_model.x"), "choose it in Load CLIP Vision"),
    "OpenCLIP": (header("visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"), "Load CLIP Vision"),
    "CLIP-G": (header("transformer.resblocks.0.attn.in_proj_weight"), "Load CLIP."),
    "Qwen": (header("model.layers.0.self_attn.q_proj.weight"), "Load CLIP."),
    "ControlNet of diffusers": (
        header("controlnet_cond_embedding.conv_in.weight", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
        "Load ControlNet Model",
    ),
    "Control-LoRA": (header("lora_controlnet", "input_blocks.1.0.in_layers.2.up"), "Load ControlNet Model"),
    "T2I-Adapter": (header("body.0.block1.weight", "conv_in.weight"), "Load ControlNet Model"),
    "SDXL": (
        header(
            *("model.diffusion_model.label_emb.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
            "conditioner.embedders.0.transformer.text_model.x",
        ),
        "is an SDXL checkpoint: choose it in Load Checkpoint, or its diffusers folder as --base",
    ),
    "SD3": (
        header("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "text_encoders.clip_l.x"),
        "is a Stable Diffusion 3 checkpoint: choose it in Load Checkpoint, or as --base",
    ),
    "Flux": (
        header("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "vae.encoder.conv_in.weight"),
        "is a Flux checkpoint: choose it in Load Checkpoint.",
    ),
    "Flux alone": (header("double_blocks.0.img_attn.qkv.weight"), "is a diffusion model without the rest"),
    "VAE alone": (header("first_stage_model.encoder.conv_in.weight"), "is a VAE: choose it in Load VAE"),
    "TAESD of diffusers": (header("encoder.layers.0.weight", "decoder.layers.1.weight"), "is a VAE"),
    "embedding of SDXL": (header("clip_l", "clip_g"), "models/embeddings"),
    "embedding of diffusers": (header("<cat-toy>"), "models/embeddings"),
    "ControlNet": (header("control_model.input_hint_block.0.weight"), "Load ControlNet Model"),
    "CLIP": (header("text_model.encoder.layers.0.mlp.fc1.weight"), "Load CLIP"),
    "T5": (header("encoder.block.0.layer.0.SelfAttention.q.weight"), "Load CLIP"),
    "embedding": (header("string_to_param/*"), "models/embeddings"),
    "prompt": (header("prompt_embeds", "pool_embeds"), "One-Step SR Prompt"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_file_is_described_in_one_sentence(kind) -> None:
    other, home = OTHERS[kind]
    with pytest.raises(UserError) as caught:
        FAMILIES.identify(other)
    message = str(caught.value)
    assert message.startswith("file.safetensors is ") and home in message
    assert message.count(". ") == 0 and message.endswith(".") and "\n" not in message


def test_the_most_similar_family_is_named_with_what_is_missing() -> None:
    with pytest.raises(
        UserError, match=r"most similar to TAD-SR, SinSR or ResShift x4, but lacks time_embed\.0\.weight\)"
    ):
        FAMILIES.identify(header(*resshift.NETWORK.names[1:]))
    with pytest.raises(UserError, match="is not a supported model: choose"):
        FAMILIES.identify(header("a"))


def test_a_registration_that_fails_changes_nothing() -> None:
    known = Registry(bundled.FAMILY, tsd_sr.FAMILY)
    recipe, _ = recipe_of(bundled.BUNDLED)
    for broken, words in (
        (tsd_sr.FAMILY, "already registered"),
        (replace(tsd_sr.FAMILY, name="greedy", condition=All()), "would match every file"),
        (replace(tsd_sr.FAMILY, name="steps", recipes={"x": recipe}), "cannot run on a base"),
    ):
        with pytest.raises(ValueError, match=words):
            known.register(broken)
        assert list(known) == [bundled.FAMILY, tsd_sr.FAMILY]
    known.register(resshift.FAMILY)
    assert list(known) == [bundled.FAMILY, tsd_sr.FAMILY, resshift.FAMILY]
    known.remove("tsd-sr")
    assert list(known) == [bundled.FAMILY, resshift.FAMILY]


def test_recipes_that_workflows_name_are_those_of_each_lora() -> None:
    assert list(FAMILIES.lora_recipes) == [
        *("tsd-sr", "tsd-sr-mse", "pisa-sr", "osediff", "hypir", "omgsr-s"),
        *("tad-seesr", "tad-seesr-noise", "tad-seesr-s4", "tad-seesr-noise-s4", "gdpo-sr", "s3diff"),
        *("invsr", "invsr-s2", "invsr-s3", "invsr-s4", "invsr-s5"),
    ]
    for family, timestep in ((tsd_sr.FAMILY, 1000), (trained_here.FAMILY, 999)):
        assert [recipe.color for recipe in family.recipes.values()] == ["wavelet", "adain"]
        assert {recipe.step for recipe in family.recipes.values()} == {OneStep(float(timestep))}
    with pytest.raises(UserError, match="'magic' is unknown for TSD-SR: choose one of tsd-sr, tsd-sr-mse"):
        tsd_sr.FAMILY.recipe("magic")


def test_a_file_whose_values_are_not_read_is_named_if_it_is_of_another_kind() -> None:
    reason = "x.ckpt contains a call of pytorch_lightning.Trainer, which could run code: get it as safetensors."
    for known, said in ((OURS["resshift"], reason), (OTHERS["checkpoint"][0], "Load Checkpoint, or as --base")):
        with pytest.raises(UserError) as error:
            FAMILIES.identify(replace(known, refused=reason))
        assert said in str(error.value)


def test_the_catalogue_lists_recipes_and_files(tmp_path) -> None:
    assert [line.split()[0] for line in recipes()] == [
        *("bundled", "tad-sr", "sinsr", "resshift", "resshift-s4", "resshift-ddim", "resshift-s4-ddim"),
        *("tad-faceir", "resshift-faceir", "adcsr"),
        *("tsd-sr", "tsd-sr-mse", "pisa-sr", "osediff", "hypir", "omgsr-s"),
        *("tad-seesr", "tad-seesr-noise", "tad-seesr-s4", "tad-seesr-noise-s4", "gdpo-sr", "s3diff"),
        *("invsr", "invsr-s2", "invsr-s3", "invsr-s4", "invsr-s5"),
    ]
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("no weights")
    [line] = files_in(tmp_path)
    assert line.startswith("model.gguf is a GGUF file, which contains a quantized model: ")
    with pytest.raises(UserError, match="is not a folder"):
        files_in(tmp_path / "model.gguf")


def test_titles_have_their_article_in_sentences() -> None:
    an = {family.title for family in FAMILIES if family.with_article == f"an {family.title}"}
    assert an == {"AdcSR", "InvSR", "OSEDiff", "OMGSR-S", "S3Diff"}


def test_a_model_given_as_a_lora_is_rejected() -> None:
    with pytest.raises(UserError, match="is a One-Step SR network model, not a LoRA"):
        read_lora(bundled.BUNDLED)
    assert describe(bundled.BUNDLED) == "One-Step SR network, x4, 64 channels, 16 blocks, faithful to detailed"


def test_recipes_of_a_method_from_outside_can_be_chosen() -> None:
    outside = replace(resshift.FAMILY, name="outside", recipes={"outside": resshift.FAMILY.recipes["sinsr"]})
    assert list(Registry(resshift.FAMILY, outside).model_recipes) == [*resshift.FAMILY.recipes, "outside"]


def test_only_a_file_that_is_nearly_one_of_a_method_is_called_near_to_it() -> None:
    with pytest.raises(UserError, match=r"^file\.safetensors is not a supported model: choose"):
        FAMILIES.identify(header("unet.something.weight"))
