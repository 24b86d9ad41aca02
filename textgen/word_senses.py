"""Words in context: sentences in which a word has one of two senses, and a linear probe that asks a model's states which.

The frames are neutral ("He thought of the {a}, of the {b}, and of the bark"), the same for both senses; only two cue words tell (oak, birch;
kennel, hound). The probe learns from one half of frames and cue words and is judged on the other: no cue is in both. The word comes last, so its
state knows of the cues by attention alone. A static vector of it is the same in every sentence, 50 %; a bag of words knows no cue of the test."""
import torch
import torch.nn.functional as F

from gencore.check import seeds_of
from gencore.data import right_padded
from gencore.decode import resting

SENSES = {
    "bark": {"tree": "oak pine trunk branches forest birch roots leaves elm willow timber beech woods twigs chestnut boughs",
             "dog": "dog hound puppy kennel mastiff terrier growl tail spaniel whelp wolf fox muzzle paws collie howl"},
    "bank": {"river": "river stream boat fish reeds mill ferry current brook water raft trout rushes ford oars shallows",
             "money": "money gold cheque merchant loan debts clerk interest cash silver coins lender savings accounts purse sovereigns"},
    "spring": {"season": "summer winter April flowers swallows blossom March frost autumn snow June buds lambs primroses thaw season",
               "water": "well fountain water rock thirst pool pitcher cave brook stream bucket source drink moss cistern jug"},
    "match": {"fire": "candle pipe lamp fire tobacco lantern stove smoke cigar flame torch wick hearth gas kindling sparks",
              "game": "cricket players ball team game bat wicket captain football umpire sport tennis runs goal racket victory"},
    "palm": {"tree": "desert coconut island dates beach oasis tropics camel sand jungle monkeys lagoon figs sultan Egypt parrot",
             "hand": "hand fingers wrist thumb glove knuckles fist grip arm nails skin touch ring elbow grasp shoulder"},
    "seal": {"animal": "whale walrus ice harpoon fur penguin Arctic flippers bear fish blubber sledge gulls iceberg porpoise hunter",
             "letter": "letter wax envelope ink document signature parchment ribbon paper stamp deed note treaty packet signet will"},
    "pupil": {"school": "school teacher lesson master slate class grammar desk tutor student books governess sums college spelling copybook",
              "eye": "eye iris eyelid glance sight lashes stare lens vision brow tears squint gaze spectacles blindness cornea"},
}
FRAMES = ["They had talked of the {a} and the {b}, and then someone mentioned the", "He thought of the {a}, of the {b}, and of the",
          "First came the {a}, then the {b}, and last of all the", "There was something about the {a} and the {b} that reminded her of the",
          "She wrote a page on the {a} and the {b} before she began with the", "Beside the {a} and the {b}, nothing interested us so much as the",
          "When we asked about the {a} or the {b}, he answered with a story of the", "You know the {a} well, and the {b} too, but not the"]


def sentences(word, seed=0):
    """-> (those to learn from, those to be judged on), each [(sentence that ends with the word, sense 0 or 1), ...]."""
    generator = torch.Generator().manual_seed(*seeds_of(seed))
    frames, sides = halves(FRAMES, generator), ([], [])
    for sense, cues in enumerate(SENSES[word].values()):
        for side, part in enumerate(halves(cues.split(), generator)):
            pairs = [(part[i], part[(i + step) % len(part)]) for i in range(len(part)) for step in (1, 3)]
            sides[side].extend((f"{frame.format(a=a, b=b)} {word}", sense) for frame in frames[side] for a, b in pairs)
    return sides


def halves(items, generator):
    order = torch.randperm(len(items), generator=generator).tolist()
    return [items[i] for i in order[::2]], [items[i] for i in order[1::2]]


def unlabelled(count, seed):
    """-> sentences that tell no sense, to train a model on: four cues each, two before the word and two right after it, so that the state of the
    word has to foretell them."""
    generator = torch.Generator().manual_seed(*seeds_of(seed))
    draw = lambda items: items[int(torch.randint(len(items), (), generator=generator))]
    topics = [(word, cues.split()) for word, senses in SENSES.items() for cues in senses.values()]
    chosen = [draw(topics) for _ in range(count)]
    return [f"{draw(FRAMES).format(a=draw(cues), b=draw(cues))} {word} {draw(cues)} {draw(cues)}." for word, cues in chosen]


@torch.no_grad()
def states(lm, texts):
    """Texts -> (states of the last token after each block (texts, layers * D), its static vector (texts, D))."""
    kept = []
    hooks = [block.register_forward_hook(lambda module, given, x: kept.append(x)) for block in lm.transformer.blocks]
    ids, keep = right_padded([lm.tokenizer.encode(text) for text in texts], 0)                   # causal: what fills up changes nothing
    with resting(lm):
        ids = ids.to(lm.embedding.weight.device)
        lm.hidden(ids)
    for hook in hooks:
        hook.remove()
    rows, last = torch.arange(len(texts)), keep.sum(1) - 1
    return torch.cat([x[rows, last] for x in kept], 1).float().cpu(), lm.embedding(ids[rows, last]).float().cpu()


def probe(x, labels, decay=1.0):
    """Logistic regression by L-BFGS: x (n,D), labels (n,) 0 or 1 -> function of (m,D): above 0 means 1."""
    mean, scale = x.mean(0), x.std(0) + 1e-3
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits((x - mean) / scale @ weight + bias, labels.float())
        loss = loss + decay * weight.square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda other: ((other - mean) / scale @ weight + bias).detach()


def judged(lm, word, seed=0):
    """-> ({what the probe sees: share right on the test sentences}, margins by the contextual vectors, senses)."""
    learn, judge = sentences(word, seed)
    texts, labels = zip(*learn, *judge)
    cut, labels, right = len(learn), torch.tensor(labels), {}
    contextual, static = states(lm, texts)
    known = sorted({part for text in texts[:cut] for part in text.replace(",", "").split()})
    bags = torch.tensor([[float(part in text.replace(",", "").split()) for part in known] for text in texts])
    for name, x in (("bag of words", bags), ("static", static), ("contextual", contextual)):
        margins = probe(x[:cut], labels[:cut])(x[cut:])
        right[name] = float(((margins > 0).long() == labels[cut:]).float().mean())
    return right, margins, labels[cut:]
