"""Figures of the shipped codec and speaker: right digit and speaker by independent judges, ceilings beside them, a check for copies.

    python -m benchmarks.audio --data FOLDER          (spoken digits: audio, digit, speaker, split; the free-spoken-digit-dataset)

Trains the judges first (about four CPU minutes; kept in --judges for the next time). Writes benchmarks/results/audio.json."""
import argparse
import json
from pathlib import Path

import torch

from audiogen.codec import Codec
from audiogen.data import DIGITS, read_clips
from audiogen.mel import LogMel
from audiogen.speech import TextToSpeech
from benchmarks.audio_judges import RATE, Judge, answers, prepare, train
from gencore.checkpoint import load_tensors, save_folder
from gencore.recipe import versions

RESULTS = Path(__file__).parent / "results" / "audio.json"


def main():
    args = arguments()
    train_clips, test_clips = (read_clips(args.data, RATE, split=split) for split in ("train", "test"))
    voices = sorted({clip.speaker for clip in train_clips})
    judges = read_judges(args.judges, voices) or train_judges(args.judges, train_clips, voices)
    codec, speaker = Codec.from_pretrained(args.codec), TextToSpeech.from_pretrained(args.speaker)

    asked = [(word, voice) for word in DIGITS for voice in voices]
    real = Sounds([clip.waveform for clip in test_clips], [clip.text for clip in test_clips], [clip.speaker for clip in test_clips])
    rows = {"real test clips": real}
    for books in range(1, codec.cfg.quantize.books + 1):
        rows[f"codec, {books} of {codec.cfg.quantize.books} books"] = Sounds([rebuilt(codec, w, books) for w in real.waveforms],
                                                                            real.words, real.voices)
    spoken = Sounds([], [], [])
    for seed in args.seeds:
        for word, voice in asked:
            spoken.waveforms.append(speaker(word, voice, seed=seed).waveform[0])
            spoken.words.append(word)
            spoken.voices.append(voice)
    rows["speaker"] = spoken

    figures = {name: judged(judges, voices, sounds) for name, sounds in rows.items()}
    print(table(figures))
    copies = {name: nearest_training(train_clips, rows[name]) for name in (f"codec, {books} of {books} books", "speaker")}
    print("\ndistance to the nearest training clip of that word and voice (log-mel L1, best shift)")
    for name, distances in copies.items():
        print(f"{name:28} median {distances.median():.3f}   lowest {distances.min():.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    copies = {name: {"median": round(float(d.median()), 4), "lowest": round(float(d.min()), 4)} for name, d in copies.items()}
    results = {"figures": figures, "nearest training clip": copies, "seeds": args.seeds, "versions": versions()}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or parquet file of spoken digits with a train and a test split")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges"), help="where the trained judges are kept")
    parser.add_argument("--codec", default="codec")
    parser.add_argument("--speaker", default="speaker")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    return parser.parse_args()


class Sounds:
    """Waveforms (L,) with the word and voice that each should have."""

    def __init__(self, waveforms, words, voices):
        self.waveforms, self.words, self.voices = waveforms, words, voices


def train_judges(folder, clips, voices):
    """Trains the two judges on real clips and keeps them."""
    print("training the judges on real clips ...", flush=True)
    waveforms = torch.stack([prepare(clip.waveform) for clip in clips])
    digits = train(waveforms, torch.tensor([DIGITS.index(clip.text) for clip in clips]), epochs=12, speeds=True)
    voice = train(waveforms, torch.tensor([voices.index(clip.speaker) for clip in clips]), epochs=10, speeds=False)
    save_folder(folder, {"digit.safetensors": digits.state_dict(), "voice.safetensors": voice.state_dict(),
                         "judges.json": {"voices": voices}})
    return digits, voice


def read_judges(folder, voices):
    """The judges that an earlier run has kept, or None."""
    if not (folder / "judges.json").is_file() or json.loads((folder / "judges.json").read_text())["voices"] != voices:
        return None
    judges = Judge(len(DIGITS)), Judge(len(voices))
    for judge, name in zip(judges, ("digit", "voice")):
        judge.load_state_dict(load_tensors(folder / f"{name}.safetensors"))
    return [judge.eval() for judge in judges]


def rebuilt(codec, waveform, books):
    """waveform (L,) through the codec's first `books` books."""
    return codec.decode(codec.encode(waveform[None, None])[:, :books])[0, 0]


def judged(judges, voices, sounds):
    """Shares of right digits, right voices and both, over all and by digit and voice."""
    waveforms = torch.stack([prepare(waveform) for waveform in sounds.waveforms])
    digit = answers(judges[0], waveforms) == torch.tensor([DIGITS.index(word) for word in sounds.words])
    voice = answers(judges[1], waveforms) == torch.tensor([voices.index(voice) for voice in sounds.voices])
    share = lambda right: round(float(right.float().mean()), 4)
    return {"clips": len(waveforms), "digit": share(digit), "speaker": share(voice), "both": share(digit & voice),
            "by digit": {word: share(digit[[w == word for w in sounds.words]]) for word in DIGITS},
            "by speaker": {name: share(voice[[v == name for v in sounds.voices]]) for name in voices},
            "seconds": round(sum(len(w) for w in sounds.waveforms) / len(waveforms) / RATE, 3)}


def table(figures):
    lines = ["| sound | clips | digit | speaker | both | mean s |", "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {f['clips']} | {f['digit']:.3f} | {f['speaker']:.3f} | {f['both']:.3f} | {f['seconds']:.2f} |"
              for name, f in figures.items()]
    return "\n".join(lines)


def nearest_training(clips, sounds, shifts=8):
    """For each sound: the smallest mean log-mel difference to a training clip of its word and voice, over shifts of +-8 frames of 10 ms."""
    mel = LogMel(RATE, 40, 256, 80, floor=1e-3)
    known = {}
    for clip in clips:
        known.setdefault((clip.text, clip.speaker), []).append(mel(prepare(clip.waveform)[None])[0])
    found = []
    for waveform, word, voice in zip(sounds.waveforms, sounds.words, sounds.voices):
        others = torch.stack(known[word, voice])                                  # (M, P, T)
        own = mel(prepare(waveform)[None])                                        # (1, P, T)
        found.append(min(float((others - own.roll(s, -1)).abs().mean((1, 2)).min()) for s in range(-shifts, shifts + 1)))
    return torch.tensor(found)


if __name__ == "__main__":
    main()
