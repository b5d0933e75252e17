"""Phi-3-vision for vLLM: sizes from the configuration, LoRA on the language model, pixels as bytes until the GPU.

vLLM's own class fixes the vision tower's sizes, refuses LoRA, and takes float32 crops, 6.8 MB a photo of 672x672; here
it is 1.35 MB, and normalising and the global view cost the GPU 0.1 ms instead of a CPU core 9 to 19. Its tower runs
operation by operation; here layers are compiled, and on Hopper attention in it is a kernel for its number of patches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import BatchFeature
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models import phi3v
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing.processor import PlaceholderFeaturesInfo, PromptReplacement, PromptUpdate

from .configuration import Phi3VConfig
from .image_embedding import Phi3VImageEmbedding
from .image_processing import CLIP_MEAN, CLIP_STD, normalize_crops
from .vllm_tower_attention import TowerAttention


class Phi3VMultiModalProcessor(phi3v.Phi3VMultiModalProcessor):
    """vLLM's usual preprocessing of PIL images, but crops stay bytes, and any vocabulary's image token is found."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        return super()._call_hf_processor(hf_data, {**hf_kwargs, "do_normalize": False})

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        processor: Any = self.info.get_hf_processor(**hf_processor_mm_kwargs)
        tokenizer = self.info.get_tokenizer()

        def tag(item: int) -> list[int]:
            return tokenizer.encode(processor.img_tokens[item], add_special_tokens=False)

        def tokens(item: int) -> list[int]:
            size = mm_items.get_items("image", phi3v.ImageProcessorItems).get_image_size(item)
            count = processor.image_processor.num_image_tokens(size.width, size.height, item)
            return [processor.image_token_id] * count

        return [PromptReplacement(modality="image", target=tag, replacement=tokens)]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: Any
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """Ids as `Phi3VProcessor.token_ids` gives them, and where the images are.

        A tag's first letters may have been merged with the word before it, so the ids are decoded to text and tokenised
        again. Decoding adds a space after each special token, which is removed.
        """
        tokenizer = self.info.get_tokenizer()
        processor: Any = self.info.get_hf_processor()
        start = 1 if token_ids[:1] == [tokenizer.bos_token_id] else 0
        text = tokenizer.decode(token_ids[start:])
        for token in tokenizer.get_added_vocab():
            text = text.replace(f"{token} ", token)
        updates = [choices[0].content.full for choices in mm_prompt_updates.get("image", [])]
        ids = processor.token_ids(text, [len(tokens) for tokens in updates])
        found = []
        for item, tokens in enumerate(updates):
            first = ids.index(-item - 1)
            ids[first : first + len(tokens)] = tokens
            found.append(PlaceholderFeaturesInfo("image", item, first, list(tokens), None))
        return ids, {"image": found} if found else {}


class Phi3VVisionEmbedding(Phi3VImageEmbedding):
    """The port's arrangement of image features around vLLM's CLIP: its attention kernels and quantised linears."""

    def __init__(self, config: Phi3VConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        vision = config.vision_config
        tower = CLIPVisionModel(
            vision,
            quant_config=quant_config,
            num_hidden_layers_override=vision.num_hidden_layers - 1,  # the last one is never used
            prefix=f"{prefix}.img_processor",
        )
        super().__init__(config, tower)
        if TowerAttention.fits(vision.hidden_size // vision.num_attention_heads, torch.get_default_dtype()):
            for layer in tower.vision_model.encoder.layers:
                layer.self_attn.attn = TowerAttention(layer.self_attn.num_heads_per_partition)

    def compile_layers(self) -> None:
        """Compile the tower's layers for any number of crops: one compilation, since they are all alike."""
        for layer in self.img_processor.vision_model.encoder.layers:
            layer.compile(dynamic=True)

    def _hidden_states(self, crops: torch.Tensor) -> torch.Tensor:
        return self.img_processor(crops)


@MULTIMODAL_REGISTRY.register_processor(
    Phi3VMultiModalProcessor, info=phi3v.Phi3VProcessingInfo, dummy_inputs=phi3v.Phi3VDummyInputsBuilder
)
class Phi3VForCausalLM(phi3v.Phi3VForCausalLM, SupportsLoRA):
    """Phi-3-vision as vLLM runs it, on uint8 crops (n, num_crops, S, S, 3) and their images' padded sizes (n, 2)."""

    # The checkpoint's linears are fused already, so an adapter on `qkv_proj` is one matrix, not three.
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["qkv_proj"],
        "gate_up_proj": ["gate_up_proj"],
    }
    embedding_modules: ClassVar[dict[str, str]] = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)  # the base class's builds a tower of fixed size
        config = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        self.config = config
        self.multimodal_config = vllm_config.model_config.multimodal_config
        settings = vllm_config.model_config.hf_image_processor_config
        settings = settings.get("image_processor", settings)
        self.image_mean = settings.get("image_mean", CLIP_MEAN)
        self.image_std = settings.get("image_std", CLIP_STD)
        with self._mark_tower_model(vllm_config, "image"):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=quant_config,
                prefix=maybe_prefix(prefix, "model.embed_tokens"),
            )
            self.vision_embed_tokens = Phi3VVisionEmbedding(
                config, quant_config, maybe_prefix(prefix, "model.vision_embed_tokens")
            )
            if vllm_config.compilation_config.mode != CompilationMode.NONE:
                self.vision_embed_tokens.compile_layers()
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, prefix="", architectures=["Phi3ForCausalLM"]
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def get_mm_mapping(self) -> MultiModelKeys:
        """Where LoRA looks: in the language model; what an adapter has for the rest is refused with a warning."""
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="vision_embed_tokens.img_projection",
            tower_model="vision_embed_tokens.img_processor",
        )

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """Token embeddings of each image, from `pixel_values` (a list where requests differ in num_crops) and
        `image_sizes`, which stay on the CPU."""
        crops = kwargs.get("pixel_values")
        if crops is None:
            return []
        if not isinstance(crops, torch.Tensor):
            crops = nn.utils.rnn.pad_sequence(list(crops), batch_first=True)
        sizes = kwargs["image_sizes"]
        dtype = self.vision_embed_tokens.glb_GN.dtype
        pixel_values = normalize_crops(crops, sizes, dtype, self.image_mean, self.image_std)
        return self.vision_embed_tokens(pixel_values, sizes)
