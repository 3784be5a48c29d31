"""A toy language whose every probability is known, to prove that the state is carried.

A document opens with a title that fixes its attributes, a person, a place and an animal, each one of K = 60 equally likely values. Every
line of the document then uses all three, in frames with freely chosen verbs:

    = Nora Paris fox =
    today Nora painted the fox in Paris .
    in Paris the fox followed Nora again .

Each choice is drawn at the token it decides, from a distribution that depends on earlier tokens only. So the probability reported for a
token is the true predictive one, and the best possible perplexity (the oracle) is known. A model whose state is reset at every segment
cannot know the title; `reset_ppl` bounds from below what any such model reaches.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lstmlm.config import DataConfig
from lstmlm.data.tokenize import EOS

NAME = "toy"  # as `data.dataset`
TOKENS = {"train": 400_000, "validation": 20_000, "test": 20_000}  # of each split, at least
TITLE = "="

ATTRIBUTES: dict[str, list[str]] = {
    "person": """
        Ada Alma Anna Boris Bruno Carl Clara Daisy David Edgar Elena Emil Erik Esther Felix Flora Frank Greta Hanna Hugo Ida Igor Ines Iris
        Ivan Jana Jonas Julia Karin Kurt Laura Leo Lina Lucas Magda Marta Max Mila Nadia Nils Nora Olga Oscar Otto Paula Peter Rosa Ruth
        Sara Simon Sofia Sven Tanja Theo Tilda Ulla Vera Viktor Walter Yara
    """.split(),
    "place": """
        Aarhus Athens Basel Bergen Berlin Bern Bilbao Bonn Bruges Cardiff Cologne Cork Dresden Dublin Florence Geneva Genoa Ghent Graz
        Hamburg Helsinki Krakow Leeds Leipzig Lille Lisbon Ljubljana London Lyon Madrid Malmo Milan Minsk Munich Nantes Naples Nice Odessa
        Oslo Oxford Palermo Paris Parma Porto Prague Riga Rome Salzburg Seville Sofiya Tallinn Trieste Turin Turku Utrecht Valencia Venice
        Vienna Vilnius Zurich
    """.split(),
    "animal": """
        ant ape badger bat bear beaver bee bison boar buffalo camel cat cow crab crane crow deer dog donkey dove duck eagle eel elk falcon
        ferret fox frog goat goose hare hawk hedgehog heron horse lamb lion lizard lynx magpie mole moose mouse mule otter owl ox panda pig
        pony puffin rabbit raven seal sheep snail stork swan tiger wolf
    """.split(),
}
VERBS = ["saw", "fed", "found", "heard", "painted", "followed"]

# Every frame opens with a word of its own, so the choice of the frame is drawn at that word.
FRAMES = [
    "today {person} {verb} the {animal} in {place} .",
    "in {place} the {animal} {verb} {person} again .",
    "once {person} {verb} a {animal} near {place} .",
    "near {place} one {animal} {verb} old {person} .",
]
FRAME_WEIGHTS = [0.4, 0.3, 0.2, 0.1]
END_OF_DOCUMENT = 0.04  # probability that a title follows a line, instead of another line of this document


@dataclass(frozen=True)
class ToyText:
    """A generated text, token by token."""

    tokens: list[str]  # the text, `<eos>` at the end of every line; it opens with a title
    log_probs: list[float]  # ln p(token | all earlier tokens), the true predictive one; the first token has 0
    documents: list[int]  # number of the document that each token belongs to
    attributes: list[str | None]  # name of the attribute that each token uses or fixes

    @property
    def lines(self) -> list[str]:
        """The text line by line, without `<eos>`."""
        return " ".join(self.tokens).removesuffix(f" {EOS}").split(f" {EOS} ")

    def oracle_ppl(self) -> float:
        """Perplexity of the language itself over every token but the first: no model does better on average."""
        return math.exp(-sum(self.log_probs[1:]) / (len(self.tokens) - 1))

    def reset_ppl(self, bptt: int) -> float:
        """Lower bound, on average, for the perplexity of any model whose state is reset at every segment of `bptt` tokens.

        Such a model is given all but the attributes: where in which frame it stands, and that the document goes on. It still has to guess
        an attribute's first use in a segment among K values, unless the segment's own input tokens show it.
        """
        pairs = len(self.tokens) - 1
        nll = 0.0
        for start in range(0, pairs, bptt):
            seen = {(self.documents[start], self.attributes[start])}
            for target in range(start + 1, min(start + bptt, pairs) + 1):
                name = self.attributes[target]
                use = (self.documents[target], name)
                nll += math.log(len(ATTRIBUTES[name])) if name and use not in seen else -self.log_probs[target]
                seen.add(use)
        return math.exp(nll / pairs)


def split_text(split: str) -> ToyText:
    """A split of the data set; the splits differ in their seed."""
    return generate(TOKENS[split], seed=list(TOKENS).index(split))


def proof(data: DataConfig, ppl: float) -> dict[str, str]:
    """What the perplexity of the test split in one column shows, as rows of a table; none where words or segments are changed."""
    changed = (data.level, data.lowercase, data.min_count, data.max_size, data.bptt_jitter) != ("word", False, 1, None, 0)
    if data.dataset != NAME or changed:
        return {}
    text = split_text("test")
    bound = text.reset_ppl(data.bptt)
    shown = "less: the state is carried" if ppl < bound else "not less, so it shows nothing: train longer"
    return {
        "proof": f"{text.oracle_ppl():.3f} is the best possible test ppl",
        "  ours": f"{ppl:.3f}",
        "  bound": f"{bound:.3f} or more has, on average, any model whose state is reset at every segment; ours is {shown}",
    }


def generate(num_tokens: int, seed: int) -> ToyText:
    """Generate whole lines until there are at least `num_tokens` tokens, `<eos>` included; the same ones for the same seed."""
    rng = random.Random(seed)
    text = ToyText([], [], [], [])
    values: dict[str, str] = {}
    document = -1

    def put(token: str, probability: float = 1.0, attribute: str | None = None) -> None:
        text.tokens.append(token)
        text.log_probs.append(math.log(probability))
        text.documents.append(document)
        text.attributes.append(attribute)

    def pick(options: Sequence[str], attribute: str | None = None) -> str:
        token = options[int(rng.random() * len(options))]
        put(token, 1 / len(options), attribute)
        return token

    while len(text.tokens) < num_tokens:
        if document < 0 or rng.random() < END_OF_DOCUMENT:
            document += 1
            put(TITLE, END_OF_DOCUMENT if document else 1.0)
            values = {name: pick(options, name) for name, options in ATTRIBUTES.items()}
            put(TITLE)
        else:
            (frame,) = rng.choices(range(len(FRAMES)), FRAME_WEIGHTS)
            opening, *rest = FRAMES[frame].split()
            put(opening, (1 - END_OF_DOCUMENT) * FRAME_WEIGHTS[frame])
            for slot in rest:
                name = slot.strip("{}")
                if name in values:
                    put(values[name], attribute=name)
                elif name == "verb":
                    pick(VERBS)
                else:
                    put(slot)
        put(EOS)
    return text
