"""A small causal language model of characters, trained on five chapters of Alice in Wonderland.

    python samples/char_transformer.py            trains, compares with a trigram, writes text
    staticgrad train samples/char_transformer.py  the training alone

The last tenth of the text is held out. The loss is the mean of -ln P(character | those before it);
the baseline knows the two characters before, its smoothing is tuned on the training text.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import staticgrad as sg
from staticgrad import nn

TEXT = (Path(__file__).parent / "data" / "alice.txt").read_text(encoding="utf-8")
CHARACTERS = sorted(set(TEXT))
CODES = np.array([CHARACTERS.index(c) for c in TEXT.replace("\n\n", "\n")])
TRAIN, HELD_OUT = np.split(CODES, [len(CODES) * 9 // 10])

CONTEXT = 32  # characters that the model sees
WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 256
EPOCHS, BATCHES, BATCH = 12, 50, 32

Batch = tuple[np.ndarray, np.ndarray]


def sinusoids() -> np.ndarray:
    """Positions [CONTEXT, WIDTH] as waves of 1 to 100 characters: the first values of learned
    ones. Offsets between positions are then easy to attend to, which normal noise has to learn."""
    rates = 100.0 ** -np.linspace(0, 1, WIDTH // 2)
    angles = np.arange(CONTEXT)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class CharTransformer(nn.Module):
    """Codes [N, CONTEXT] -> logits of the next character [N, CONTEXT, characters]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), WIDTH)
        self.positions = nn.Parameter(sinusoids().astype("float32"))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, HIDDEN, dropout=0.05, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, codes: sg.Tensor) -> sg.Tensor:
        h = (self.embedding(codes) + self.positions) * 0.5
        for block in self.blocks:
            h = block(h, is_causal=True)
        return self.output(self.norm(h))


def passages(text: np.ndarray, starts: np.ndarray) -> Batch:
    """Codes [n, CONTEXT] and the characters that follow each."""
    windows = text[starts[:, None] + np.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def train_batches(rng: np.random.Generator) -> list[Batch]:
    """Passages from anywhere in the training text."""
    starts = rng.integers(0, len(TRAIN) - CONTEXT, (BATCHES, BATCH))
    return [passages(TRAIN, s) for s in starts]


def test_batches() -> list[Batch]:
    """The held-out text in passages that overlap by half."""
    return [passages(HELD_OUT, np.arange(0, len(HELD_OUT) - CONTEXT, CONTEXT // 2))]


def second_half_loss(log_p: np.ndarray, following: np.ndarray) -> float:
    """The mean of -log P over the second half of each passage. So every held-out character counts
    once, and has at least CONTEXT / 2 characters before it."""
    scored = np.take_along_axis(log_p, following[..., None], axis=-1)[:, CONTEXT // 2 :]
    return float(-scored.mean())


def held_out_loss(logits: np.ndarray, batch: Batch) -> float:
    logits = logits.astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return second_half_loss(log_p, batch[1])


def annealed(t: int) -> float:
    """The rate's factor in epoch t: half a cosine down, then that of the last of EPOCHS, so that a
    longer training goes on with small steps."""
    return (1 + math.cos(math.pi * min(t, EPOCHS - 1) / EPOCHS)) / 2


def build() -> sg.Program:
    """The model with its data: what `staticgrad train` takes."""
    x = sg.input("x", ("N", CONTEXT), dtype="int64")
    y = sg.input("y", ("N", CONTEXT), dtype="int64")
    model = CharTransformer()
    logits = model(x)
    loss = nn.functional.cross_entropy(logits.reshape((-1, len(CHARACTERS))), y.reshape((-1,)))
    optimizer = sg.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    updates = optimizer.minimize(loss, clip_norm=1.0)
    return sg.Program(
        train=sg.Graph([x, y], [loss], updates=updates),
        predict=sg.Graph([x], logits),
        train_batches=train_batches,
        test_batches=test_batches,
        metrics={"loss": held_out_loss},
        scheduler=sg.optim.lr_scheduler.LambdaLR(optimizer, annealed),
        epochs=EPOCHS,
    )


# --- the baseline ---------------------------------------------------------------------------------


def discounted(counts: np.ndarray, discount: float, lower: np.ndarray) -> np.ndarray:
    """P(c | h): counts less a discount, whose sum goes to the distribution for a shorter h
    (interpolated absolute discounting: Ney, Essen, Kneser 1994)."""
    total = counts.sum(axis=-1, keepdims=True)
    kinds = (counts > 0).sum(axis=-1, keepdims=True)
    kept = np.maximum(counts - discount, 0) + discount * kinds * lower
    return np.where(total > 0, kept / np.maximum(total, 1), lower)


def trigram(text: np.ndarray, discount: float) -> np.ndarray:
    """P[a, b, c]: the probability of c after a and b, from the counts in `text`."""
    size = len(CHARACTERS)
    three, two = np.zeros((size,) * 3), np.zeros((size,) * 2)
    np.add.at(three, (text[:-2], text[1:-1], text[2:]), 1)
    np.add.at(two, (text[:-1], text[1:]), 1)
    one = np.bincount(text, minlength=size)
    p1 = discounted(one, discount, np.full(size, 1 / size))
    return discounted(three, discount, discounted(two, discount, p1))


def trigram_loss() -> float:
    """The baseline's loss on the same held-out characters."""
    fit, tune = np.split(TRAIN, [len(TRAIN) * 9 // 10])
    discounts = np.arange(0.05, 1.0, 0.05)

    def tuning_loss(discount: float) -> float:
        return -np.log(trigram(fit, discount)[tune[:-2], tune[1:-1], tune[2:]]).mean()

    p = trigram(TRAIN, min(discounts, key=tuning_loss))
    ((x, y),) = test_batches()
    before = np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    return second_half_loss(np.log(p[before, x]), y)


# --- by hand --------------------------------------------------------------------------------------


def train(seed: int = 0, report=print):
    """Trains; returns the compiled prediction and its loss on the held-out text."""
    sg.random.seed(seed)
    program = build()
    step = sg.compile(program.train.inputs, program.train.outputs, program.train.updates)
    predict = sg.compile(program.predict.inputs, program.predict.outputs[0])
    rng = np.random.default_rng(seed)
    (test,) = test_batches()
    for epoch in range(1, EPOCHS + 1):
        losses = [float(step(*batch)[0]) for batch in train_batches(rng)]
        program.scheduler.step()
        held_out = held_out_loss(predict(test[0]), test)
        report(f"epoch {epoch:2d}: loss {np.mean(losses):.3f}, held out {held_out:.3f}")
    return predict, held_out


def write(predict, prompt: str, count: int, seed: int = 0, temperature: float = 0.7) -> str:
    """`prompt` and `count` more characters, each drawn from the model's distribution.

    A colder distribution than the model's own (temperature < 1) makes fewer slips.
    """
    rng = np.random.default_rng(seed)
    codes = [CHARACTERS.index(c) for c in prompt]
    for _ in range(count):
        seen = codes[-CONTEXT:]
        padded = seen + [0] * (CONTEXT - len(seen))  # no character sees what follows it
        logits = predict(np.array([padded]))[0, len(seen) - 1] / temperature
        p = np.exp(logits - logits.max(), dtype="float64")
        codes.append(int(rng.choice(len(p), p=p / p.sum())))
    return "".join(CHARACTERS[c] for c in codes)


def main() -> None:
    baseline = trigram_loss()
    print(f"{len(TRAIN)} characters to train on, {len(HELD_OUT)} held out")
    predict, held_out = train()
    print(f"held-out loss {held_out:.4f}, trigram baseline {baseline:.4f}\n")
    print(write(predict, "Alice ", 500))


if __name__ == "__main__":
    main()
