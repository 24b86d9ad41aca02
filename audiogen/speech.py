"""TextToSpeech: words in, a spoken clip out, in a named voice, with the recipe that makes it again.

    speaker = TextToSpeech.from_pretrained("speaker")
    speaker("seven", voice="george", seed=0).save("seven.wav")"""
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from audiogen.audio import Audio
from audiogen.codec import Codec
from audiogen.data import DIGITS
from audiogen.lm import SpeechSettings, TokenModel, TokenModelConfig, speak, spoken
from gencore.check import CheckpointError, DataError, InputError, nearest, only_device, seeds_of, unknown
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder
from gencore.config import from_dict, to_dict
from gencore.decode import resting
from gencore.kinds import expect_kind
from gencore.recipe import Recipe, lasting_name, made_with, register
from gencore.tokenizer import check_characters

MOST_WORDS = 64             # spoken by one call
GAP = 0.08                  # seconds of silence between two words


@dataclass(frozen=True)
class SpeechConfig:
    """A token model, the codec whose codes it speaks, and how it is best sampled."""
    model: TokenModelConfig
    codec: str = "codec"                                  # a shipped name, or "./codec" inside the folder
    codec_digest: str = ""                                # of the codec's weights: other codes would be noise
    settings: SpeechSettings = field(default_factory=SpeechSettings)


class TextToSpeech:
    """Says the words it has learnt, in the voices it has learnt."""

    def __init__(self, cfg, model, codec, *, name="", digest=""):
        self.cfg, self.model, self.codec = cfg, model.eval(), codec.eval()
        self.name, self.digest = name, digest             # for recipes

    @property
    def voices(self):
        return list(self.cfg.model.voices)

    @property
    def words(self):
        return list(self.cfg.model.words)

    def __call__(self, text, voice=None, *, seed=None, guidance=None, temperature=None, top_k=None):
        """text -> Audio. Several words are spoken one after another. `voice` None: the first; `seed` None: a new one (see .recipe).

        guidance: 1 follows the model as it is, 2-4 keep closer to word and voice. temperature, top_k: how freely codes are drawn."""
        words = self.parse(text)
        voice = self.voices[0] if voice is None else voice
        if voice not in self.voices:
            raise unknown("voice", voice, self.voices)
        given = {"guidance": guidance, "temperature": temperature, "top_k": top_k}
        settings = replace(self.cfg.settings, **{name: value for name, value in given.items() if value is not None})
        seed = seeds_of(seed, len(words))[0]
        ids = torch.tensor([self.words.index(word) for word in words])
        with resting(self.model):
            clips = speak(self.model, ids, torch.full_like(ids, self.voices.index(voice)), settings, seed=seed)
        recipe = Recipe.made("audio", self.name, self.digest, inputs={"text": text, "voice": voice}, seed=seed,
                             settings=to_dict(settings)) if self.digest else None
        return Audio(self.joined(clips), self.codec.cfg.sample_rate, recipe)

    def parse(self, text):
        """text -> list of known words, longest phrases first; digits are read as words. Unknown words are listed."""
        if not isinstance(text, str):
            raise InputError(f"text should be a string, got {type(text).__name__}")
        check_characters("the text", text)
        said = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text) if set(DIGITS) <= set(self.words) else text
        parts = spoken(said)
        known = {spoken(word): word for word in self.words}
        longest = max(map(len, known))
        found, strange, place = [], [], 0
        while place < len(parts):
            for length in range(longest, 0, -1):
                word = known.get(parts[place:place + length])
                if word is not None:
                    found.append(word)
                    break
            else:
                strange.append(parts[place])
            place += length
        self._check(found, strange)
        return found

    def _check(self, found, strange):
        if strange:
            listed = ", ".join(f'"{word}"{nearest(word, self.words)}' for word in dict.fromkeys(strange))
            raise InputError(f"can't say {listed}: the words it knows are {', '.join(self.words)}")
        if not found:
            raise InputError(f"text is empty: give one or more of the words {', '.join(self.words)}")
        if len(found) > MOST_WORDS:
            raise InputError(f"text has {len(found)} words, at most {MOST_WORDS} are spoken at once: split it")

    def joined(self, clips):
        """list of codes (K,T) -> waveform (1,L), with a short silence between two."""
        gap = torch.zeros(1, round(GAP * self.codec.cfg.sample_rate))
        parts = []
        for codes in clips:
            parts += [self.codec.decode(codes[None])[0].cpu(), gap]
        return torch.cat(parts[:-1], 1)

    def to(self, device):
        """Moves token model and codec, which compute in float32, and returns self; codes are still drawn on the CPU."""
        self.model.to(only_device(device))
        self.codec.to(device)
        return self

    @classmethod
    def from_pretrained(cls, name):
        """A shipped name, a folder or a Hub id -> TextToSpeech."""
        folder = resolve(name, "audiogen")
        expect_kind(folder, "audiogen.TextToSpeech")
        with naming(folder / "config.json"):
            cfg = from_dict(SpeechConfig, read_json(folder / "config.json"))
        with torch.device("meta"), naming(folder / "config.json"):
            shapes = {name: tuple(tensor.shape) for name, tensor in TokenModel(cfg.model).state_dict().items()}
        weights = load_tensors(folder / "model.safetensors", expect=shapes)
        inside = cfg.codec.startswith("./")
        with naming(f"{folder / 'config.json'}: codec"):
            place = folder / cfg.codec[2:] if inside else resolve(cfg.codec, "audiogen", hub=False)
        if not place.resolve().is_relative_to(folder.resolve()) and inside:
            raise CheckpointError(f"{folder}: its codec {cfg.codec} lies outside the folder")
        codec = Codec.from_pretrained(place)
        if codec.digest() != cfg.codec_digest:
            raise CheckpointError(f"{folder / 'config.json'}: codec_digest: it speaks the codes of a codec with digest {cfg.codec_digest}, "
                                  f"{place} has {codec.digest()}: use the codec it was trained with")
        model = TokenModel(cfg.model)
        model.load_state_dict(weights)
        return cls(cfg, model, codec, name=lasting_name(folder), digest=made_with(folder))

    def save_pretrained(self, folder):
        """Writes the whole voice, its codec inside, in bfloat16. From then on it speaks with what was written: recipes name this folder."""
        save_folder(folder, speech_files(self.cfg, self.model, self.codec))
        saved = TextToSpeech.from_pretrained(Path(folder).resolve()).to(self.model.heads.weight.device)
        self.cfg, self.model, self.codec, self.name, self.digest = saved.cfg, saved.model, saved.codec, saved.name, saved.digest


def learnt_from(clips, quantize, *, longest, transformer):
    """Clips and the QuantizeConfig of a codec -> SpeechConfig of a voice that says their words in their voices. DataError: each is said once."""
    words, voices = (tuple(sorted({getattr(clip, name) for clip in clips})) for name in ("text", "speaker"))
    if 2 * len(words) > len(clips):
        raise DataError(f"{len(clips)} clips have {len(words)} different texts: this model learns words that are said several times")
    weights = (2.0,) + (1.0,) * (quantize.books - 1)
    return SpeechConfig(TokenModelConfig(words, voices, quantize.books, quantize.codes, longest, weights=weights, transformer=transformer))


def speech_files(cfg, model, codec):
    """Files of a folder that holds token model and codec, for `save_folder`."""
    inner = {f"codec/{name}": content for name, content in codec.files().items()}
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    outer = {"config.json": to_dict(cfg) | {"codec": "./codec", "codec_digest": codec.digest()}, "model.safetensors": weights}
    return {**outer, **inner}


def remake(recipe):
    """Recipe -> Audio: what `gencore.replay` calls."""
    speaker = TextToSpeech.from_pretrained(recipe.model)
    settings = from_dict(SpeechSettings, recipe.settings)
    return speaker(recipe.inputs["text"], recipe.inputs["voice"], seed=recipe.seed, guidance=settings.guidance,
                   temperature=settings.temperature, top_k=settings.top_k)


register("audio", remake)
