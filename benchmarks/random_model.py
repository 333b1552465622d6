"""A diffusion model in a family's exact architecture with random weights: what it costs does not depend on them."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from guidance.models.single_file import CONFIGS
from utils.files import atomic
from utils.parser import Parser
from utils.repository import ROOT

SD2_BASE = CONFIGS / "sd2-base"
SPECIAL_TOKENS = 49_406
"""The number of CLIP's begin of text; its end has the next one."""
WIDTH = 32
NARROW = {
    "unet": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": WIDTH, "sample_size": 16},
    "vae": {"block_out_channels": [32, 32, 64, 64], "sample_size": 128},
    "text_encoder": {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    },
}
"""The settings that differ in a small model: every layer is there, and few channels."""


def build(folder: Path, settings: Path) -> Path:
    """A diffusers folder with random weights, in half precision, from a family's settings.

    One part is in memory at a time, on a card where there is one.

    Args:
        settings: a folder such as `guidance/models/configs/sd2-base`.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(range(torch.cuda.device_count())), atomic(folder) as temporary:
        torch.manual_seed(0)
        temporary.mkdir(parents=True)
        text_config = CLIPTextConfig.from_pretrained(settings / "text_encoder")
        with device:
            for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
                kind.from_config(kind.load_config(settings / name)).half().save_pretrained(temporary / name)
            CLIPTextModel(text_config).half().save_pretrained(temporary / "text_encoder")
        tokenizer = word_tokenizer()
        tokenizer.pad_token = "<|endoftext|>" if text_config.hidden_act == "quick_gelu" else "!"
        tokenizer.save_pretrained(temporary / "tokenizer")
        shutil.copytree(settings / "scheduler", temporary / "scheduler")
        shutil.copy(settings / "model_index.json", temporary)
    return folder


def narrow_configs(folder: Path) -> Path:
    """The shipped settings of every family, with few channels."""
    shutil.copytree(CONFIGS, folder)
    for family in folder.iterdir():
        for part, changes in NARROW.items():
            path = family / part / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            heads = {"attention_head_dim": [1, 2, 4, 4]} if part == "unet" and family.name != "sd1" else {}
            larger = {"sample_size": 32} if part == "unet" and family.name == "sd2-v" else {}
            path.write_text(json.dumps(config | changes | heads | larger), encoding="utf-8")
    return folder


def random_model(settings: Path, folder: Path) -> Path:
    """The random model of a family that is kept in `folder`; built where it is not there yet."""
    model = folder / f"random-{settings.name}"
    return model if model.exists() else build(model, settings)


def word_tokenizer() -> Any:
    """CLIP's tokenizer with the words of `configs/` in the place of its own vocabulary, which is not ours to ship."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    texts = [
        text
        for path in sorted((ROOT / "configs").glob("*.yaml"))
        for text in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    ]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=40_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator([text.lower() for text in texts], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(first + second for first, second in merges),
    ]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    vocab |= {"<|startoftext|>": SPECIAL_TOKENS, "<|endoftext|>": SPECIAL_TOKENS + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def main(argv: list[str] | None = None) -> int:
    """The command line: build what is not there yet and say where; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.random_model", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".models", help="where models are kept")
    parser.add_argument("--settings", type=Path, default=SD2_BASE, help="a family's settings")
    parser.add_argument("--narrow", action="store_true", help="with few channels, for trying what uses it")
    options = parser.parse_args(argv)
    settings = options.settings
    if options.narrow:
        settings = options.folder / "settings" / settings.name
        if not settings.exists():
            narrow_configs(settings.parent)
    sys.stdout.write(f"{random_model(settings, options.folder)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
