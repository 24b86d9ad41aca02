"""Captioner: a picture -> words, by a model in LLaVA's layout.

    reader = Captioner.from_pretrained("reader")
    reader("photo.png")                      # "pizza"
    reader([picture, "photo.png"])           # a list of captions"""
import base64
import io

import torch

from gencore.cache import Cache
from gencore.check import CheckpointError, InputError, floating, only_device, present, whole
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder, tensor_shapes, weights_file
from gencore.choose import likeliest
from gencore.decode import decode
from gencore.families import expect_fields, read_config
from gencore.kinds import expect_kind
from gencore.pictures import open_picture, prepare
from gencore.recipe import Recipe, lasting_name, made_with, register, save_text, survives
from gencore.tokenizer import Tokenizer
from multimodal.families.llava import LLAVA
from multimodal.splice import Spliced


def greedy(model, pictures, end, *, longest=32):
    """pictures (B,C,H,W) in [-1,1] -> lists of ids without `end`: the likeliest token each time, at most `longest`."""
    B, P = len(pictures), model.cfg.vision.patches
    ids = torch.full((B, P), model.cfg.image_token, device=pictures.device)
    placeholder = ids[0, :1]                                                         # no word: a picture would have to follow
    cache = Cache(model.cfg.transformer, B, P + longest, dtype=model.table.weight.dtype, device=pictures.device)
    words = decode(model(ids, pictures, cache=cache)[:, -1],                         # (B, V)
                   lambda token: model(token[:, None], cache=cache)[:, -1],
                   lambda logits, n: likeliest(logits.index_fill(1, placeholder, float("-inf"))), limit=longest, ended=lambda token: token == end)
    rows = torch.stack(list(words), 1).tolist()                                      # a row that has ended goes on until all have
    return [row[:row.index(end)] if end in row else row for row in rows]


class Captioner:
    """Model and tokenizer; called with pictures, gives their captions."""

    def __init__(self, model, tokenizer, *, name="", digest=""):
        if len(tokenizer) > model.cfg.vocab or tokenizer.eos_id is None:
            raise CheckpointError(f"the tokenizer has {len(tokenizer)} tokens (end: {tokenizer.eos_id}), the model {model.cfg.vocab}: "
                                  f"they are not of one model")
        if model.cfg.context <= model.cfg.vision.patches:
            raise CheckpointError(f"the language model reads {model.cfg.context} tokens, a picture takes {model.cfg.vision.patches}: none is left "
                                  "for words")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.name, self.digest = name, digest                                        # for recipes

    @classmethod
    def from_pretrained(cls, name_or_folder, *, device="cpu"):
        """A shipped name ("reader"), a folder in LLaVA's layout, or a Hub id -> Captioner, in float32."""
        device, folder = present(device), resolve(name_or_folder, "multimodal")
        expect_kind(folder, "multimodal.Captioner")
        cfg = read_config(LLAVA, folder / "config.json")
        check_pictures(folder / "preprocessor_config.json", cfg)
        with torch.device("meta"), naming(folder / "config.json"):
            shapes = {name: t.shape for name, t in own_state(Spliced(cfg)).items()}
        with naming(weights_file(folder)):
            LLAVA.check_shapes(cfg, tensor_shapes(folder), shapes)
            state = LLAVA.import_state(cfg, load_tensors(folder))
        model = Spliced(cfg)
        model.load_state_dict({name: t.float() for name, t in state.items()}, strict=not cfg.tied)
        return cls(model.to(device), Tokenizer.from_folder(folder), name=lasting_name(folder), digest=made_with(folder))

    def to(self, device):
        """Moves the model, which computes in float32, and returns self."""
        self.model.to(only_device(device))
        return self

    def save(self, picture, path, *, max_new_tokens=None):
        """Reads the picture, writes its caption to `path` and beside it the recipe that gencore.replay makes it again by -> caption."""
        if not self.digest:
            raise InputError("this reader's weights lie in no folder that a recipe could name: save_pretrained first, or open one that was saved")
        max_new_tokens = self.room if max_new_tokens is None else max_new_tokens
        small = to_png(prepare(open_picture(picture), self.model.cfg.vision.image))
        recipe = Recipe.made("caption", self.name, self.digest, seed=0,
                             inputs={"picture": base64.b64encode(small).decode()}, settings={"max_new_tokens": max_new_tokens})
        recipe.to_json()                                                             # one that is too large is refused before anything is read
        caption = self(small, max_new_tokens=max_new_tokens)
        save_text(path, caption, recipe)
        return caption

    def save_pretrained(self, folder, *, dtype=torch.float32):
        """Writes the folder that from_pretrained and transformers' LlavaForConditionalGeneration and AutoProcessor open."""
        save_folder(folder, self.files(dtype))
        self.name, self.digest = lasting_name(folder), made_with(folder) if survives(self.model, dtype) else ""

    def files(self, dtype=torch.float32):
        """Files of that folder, for gencore.checkpoint.save_folder."""
        return pretrained_files(self.model, self.tokenizer, dtype)

    @property
    def room(self):
        """Tokens that a caption may have: what the context leaves beside a picture."""
        return self.model.cfg.context - self.model.cfg.vision.patches

    @torch.inference_mode()
    def __call__(self, pictures, *, max_new_tokens=None, batch=64, progress=True):
        """A picture (path, PIL picture, array (H,W,3), tensor (3,H,W) in [-1,1]) -> str; a list of them -> list of str.

        max_new_tokens=None: as many as there is room for."""
        max_new_tokens = whole("max_new_tokens", self.room if max_new_tokens is None else max_new_tokens, 1, self.room)
        whole("batch", batch, 1, 4096)
        alone = not isinstance(pictures, (list, tuple))
        if not alone and not pictures:
            raise InputError("no pictures: give at least one")
        from tqdm import tqdm
        several = [pictures] if alone else pictures
        device, captions = self.model.table.weight.device, []
        for start in tqdm(range(0, len(several), batch), desc="reading", unit="batch", delay=1, disable=not progress):
            ready = torch.stack([prepare(open_picture(p), self.model.cfg.vision.image) for p in several[start:start + batch]])
            rows = greedy(self.model, ready.to(device), self.tokenizer.eos_id, longest=max_new_tokens)
            captions += [self.tokenizer.decode(row) for row in rows]
        return captions[0] if alone else captions


def to_png(pixels):
    """(3,H,W) in [-1,1] -> bytes of a PNG."""
    file = io.BytesIO()
    open_picture(pixels).save(file, "PNG")
    return file.getvalue()


def read_again(recipe):
    """The caption that a recipe describes; what it holds comes from a file, and is checked like a stranger's."""
    picture = recipe.inputs["picture"]
    try:
        picture = base64.b64decode(picture, validate=True)
    except (TypeError, ValueError):
        raise InputError(f"recipe: inputs.picture should be a PNG in base64, got {picture!r:.40}") from None
    return Captioner.from_pretrained(recipe.model)(picture, max_new_tokens=recipe.settings["max_new_tokens"])


register("caption", read_again)


def check_pictures(path, cfg):
    """Refuses a folder whose pictures are prepared in another way than here: three colours, scaled to [-1,1]."""
    if cfg.vision.channels != 3:
        raise CheckpointError(f"{path.with_name('config.json')}: num_channels should be 3, as pictures are read, got {cfg.vision.channels}")
    if path.is_file():
        with naming(path):
            expect_fields(read_json(path), {"image_mean": ([0.5] * 3,), "image_std": ([0.5] * 3,)}, "llava")


def own_state(model):
    """state_dict of a Spliced without the tied copy of its table."""
    return {name: t for name, t in model.state_dict().items() if not (model.cfg.tied and name == "head.weight")}


def pretrained_files(model, tokenizer, dtype=torch.float32):
    """Spliced and Tokenizer -> files of a pretrained folder in LLaVA's layout."""
    cfg, config, dtype = model.cfg, LLAVA.to_theirs(model.cfg), floating(dtype)
    weights = LLAVA.export_state(cfg, {name: t.to(dtype) for name, t in own_state(model).items()})
    image_token = tokenizer.decode([cfg.image_token], keep_special=True)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    pictures = {"image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 3,
                "size": {"height": cfg.vision.image, "width": cfg.vision.image},
                "do_convert_rgb": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "LlavaProcessor"}
    files = tokenizer.files()
    files["tokenizer_config.json"] = {**files["tokenizer_config.json"], "processor_class": "LlavaProcessor", "padding_side": "left",
                                      "extra_special_tokens": {"image_token": image_token}}
    return {**files, "model.safetensors": weights,
            "config.json": {**config, "dtype": str(dtype).removeprefix("torch."), **ends, "text_config": {**config["text_config"], **ends}},
            "generation_config.json": {**ends, "do_sample": False, "max_new_tokens": cfg.context - cfg.vision.patches,
                                       "suppress_tokens": [cfg.image_token]},
            "preprocessor_config.json": pictures,
            "processor_config.json": {"processor_class": "LlavaProcessor", "patch_size": cfg.vision.patch, "image_token": image_token,
                                      "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}}
