"""Figures of the shipped codec and speaker: right digit and speaker by independent judges, ceilings beside them, a check for copies.

    python -m benchmarks.audio --data FOLDER          (spoken digits: audio, digit, speaker, split; the free-spoken-digit-dataset)

Trains the judges first (about four CPU minutes; kept in --judges for the next time). Writes benchmarks/results/audio.json."""
import argparse
import json
from pathlib import Path

import torch

from audiogen.codec import Codec
from audiogen.data import DIGITS, Clip, read_clips
from audiogen.mel import LogMel
from audiogen.speech import TextToSpeech
from benchmarks.audio_judges import RATE, Judge, answers, prepare, train
from gencore.check import command
from gencore.checkpoint import load_tensors, save_folder
from gencore.recipe import versions

RESULTS = Path(__file__).parent / "results" / "audio.json"


@command
def main():
    args = arguments()
    train_clips, test_clips = (read_clips(args.data, RATE, split=split) for split in ("train", "test"))
    voices = sorted({clip.speaker for clip in train_clips})
    judges = read_judges(args.judges, voices) or train_judges(args.judges, train_clips, voices)
    codec, speaker = Codec.from_pretrained(args.codec), TextToSpeech.from_pretrained(args.speaker)
    books = codec.cfg.quantize.books

    rows = {"real test clips": test_clips}
    rows |= {f"codec, {k} of {books} books": [rebuilt(codec, clip, k) for clip in test_clips] for k in range(1, books + 1)}
    rows["speaker"] = spoken(speaker, voices, args.seeds)
    figures = {name: judged(judges, voices, clips) for name, clips in rows.items()}
    print(table(figures))

    compared = {"test clips, rebuilt": rows[f"codec, {books} of {books} books"], "speaker": rows["speaker"],
                "training clips, rebuilt": [rebuilt(codec, clip, books) for clip in train_clips[::9]]}
    print("\ndistance to the nearest training clip of that word and voice (log-mel L1, best shift); a copy would be like the last row")
    copies = {}
    for name, clips in compared.items():
        found = nearest_training(train_clips, clips)
        copies[name] = {"median": round(float(found.median()), 4), "lowest": round(float(found.min()), 4)}
        print(f"{name:28} median {copies[name]['median']:.3f}   lowest {copies[name]['lowest']:.3f}")
    results = {"figures": figures, "nearest training clip": copies, "seeds": args.seeds, "versions": versions()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or parquet file of spoken digits with a train and a test split")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/audio"), help="where the trained judges are kept")
    parser.add_argument("--codec", default="codec")
    parser.add_argument("--speaker", default="speaker")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    return parser.parse_args()


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


def rebuilt(codec, clip, books):
    """A Clip through the codec's first `books` books."""
    return clip._replace(waveform=codec.decode(codec.encode(clip.waveform[None, None])[:, :books])[0, 0])


def spoken(speaker, voices, seeds):
    """Every digit in every voice with every seed, as Clips."""
    return [Clip(speaker(word, voice, seed=seed).waveform[0], word, voice) for seed in seeds for word in DIGITS for voice in voices]


def judged(judges, voices, clips):
    """Shares of right digits, right voices and both, over all and by digit and voice."""
    waveforms = torch.stack([prepare(clip.waveform) for clip in clips])
    digit = answers(judges[0], waveforms) == torch.tensor([DIGITS.index(clip.text) for clip in clips])
    voice = answers(judges[1], waveforms) == torch.tensor([voices.index(clip.speaker) for clip in clips])

    def share(right):
        return round(float(right.float().mean()), 4)

    return {"clips": len(clips), "digit": share(digit), "speaker": share(voice), "both": share(digit & voice),
            "by digit": {word: share(digit[[clip.text == word for clip in clips]]) for word in DIGITS},
            "by speaker": {name: share(voice[[clip.speaker == name for clip in clips]]) for name in voices},
            "seconds": round(sum(len(clip.waveform) for clip in clips) / len(clips) / RATE, 3)}


def table(figures):
    lines = ["| sound | clips | digit | speaker | both | mean s |", "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {f['clips']} | {f['digit']:.3f} | {f['speaker']:.3f} | {f['both']:.3f} | {f['seconds']:.2f} |"
              for name, f in figures.items()]
    return "\n".join(lines)


def nearest_training(known, clips, shifts=8):
    """For each clip: the smallest mean log-mel difference to a known clip of its word and voice, over shifts of +-8 frames of 10 ms."""
    mel = LogMel(RATE, 40, 256, 80, floor=1e-3)
    others = {}
    for clip in known:
        others.setdefault((clip.text, clip.speaker), []).append(mel(prepare(clip.waveform)[None])[0])
    others = {key: torch.stack(mels) for key, mels in others.items()}             # each (M, P, T)
    found = []
    for clip in clips:
        own = mel(prepare(clip.waveform)[None])                                   # (1, P, T)
        differences = [(others[clip.text, clip.speaker] - own.roll(s, -1)).abs().mean((1, 2)).min() for s in range(-shifts, shifts + 1)]
        found.append(float(min(differences)))
    return torch.tensor(found)


if __name__ == "__main__":
    main()
