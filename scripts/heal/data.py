"""Documents of token ids (`overfill tokenize` writes them) to training batches. The order depends on the
seed and the number of the batch alone, so that a run that was killed goes on with the batch it would
have had."""

import json
import random
from dataclasses import dataclass

import torch

WINDOW_GROUP = 64  # documents that are sorted by length together, so that little is padding


@dataclass
class Row:
    ids: list
    start: int  # tokens of the prompt
    is_answer: bool  # the document tells its prompt


@dataclass
class Batch:
    tokens: torch.Tensor  # [rows, n] whole documents, padded
    starts: torch.Tensor  # [rows] tokens of each one's prompt
    counts: torch.Tensor  # [rows] tokens of each one in all
    repeats: torch.Tensor  # [k, 4] row, position, token that next would repeat the answer, tokens before it that do

    @property
    def n_targets(self):
        return int((self.counts - self.starts - 1).sum())

    def to(self, device):
        return Batch(*(x.to(device) for x in (self.tokens, self.starts, self.counts, self.repeats)))


def read_documents(paths):
    documents = []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not isinstance(row.get("tokens"), list):
                    raise ValueError(f"{path}: line {number}: `tokens` expected; "
                                     "`overfill tokenize` writes such rows")
                documents.append((row["tokens"], int(row.get("prompt", 0))))
    return documents


def cut(document, options, chance):
    """A window of the document and its prompt, or None if it is too short. Where the document does not
    tell its prompt, the cut is random."""
    ids, prompt = document
    most = options["max_tokens"]
    if prompt:
        if prompt >= most - options["min_answer"] or len(ids) < prompt + 2:
            return None
        return Row(ids[:most], prompt, True)
    least = options["min_prompt"] + options["min_answer"]
    if len(ids) < max(least, options["min_tokens"]):
        return None
    begin = chance.randrange(len(ids) - most + 1) if len(ids) > most else 0
    ids = ids[begin:begin + most]
    longest = min(options["max_prompt"], len(ids) - options["min_answer"])
    # Short prompts oftener: the logarithm of the length is uniform.
    low, high = options["min_prompt"], max(longest, options["min_prompt"])
    return Row(ids, min(high, int(low * (high / low) ** chance.random())), False)


def repeats(ids, least):
    """Where an answer could go on with a repeat: [(place, token, length)], `length` tokens up to `place` (`least` or
    more) being the same as those in front of an earlier `token`."""
    found = []
    places = {}  # of each token, so far
    ends = {}  # earlier place to the length of the end that ids up to there and up to here share
    for at, here in enumerate(ids):
        ends = {earlier: ends.get(earlier - 1, 0) + 1 for earlier in places.get(here, [])}
        longest = {}
        for earlier, length in ends.items():
            token = ids[earlier + 1]
            longest[token] = max(length, longest.get(token, 0))
        found += [(at, token, length) for token, length in longest.items() if length >= least]
        places.setdefault(here, []).append(at)
    return found


def pad(rows, least_repeat=0):
    """least_repeat: what `repeats` looks for in answers; 0: nothing."""
    n = max(len(row.ids) for row in rows)
    found = [(r, row.start + at, token, length) for r, row in enumerate(rows)
             if row.is_answer and least_repeat
             for at, token, length in repeats(row.ids[row.start:], least_repeat)]
    return Batch(torch.tensor([row.ids + [0] * (n - len(row.ids)) for row in rows]),
                 torch.tensor([row.start for row in rows]),
                 torch.tensor([len(row.ids) for row in rows]),
                 torch.tensor(found, dtype=torch.int64).reshape(-1, 4))


class Batches:
    """Endless: epoch after epoch, each in an order and with cuts of its own."""

    def __init__(self, documents, options, seed, least_repeat=0):
        self.documents = documents
        self.options = options
        self.least_repeat = least_repeat
        self.seed = seed
        self.epoch = None
        self.batches = []
        self.counts = []  # batches of each epoch that was made

    def _fill(self, epoch):
        chance = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.documents)))
        chance.shuffle(order)
        rows = [row for row in (cut(self.documents[i], self.options, chance) for i in order) if row]
        if not rows:
            raise ValueError("data: no document is long enough for a prompt and an answer")
        batches = []
        for at in range(0, len(rows), WINDOW_GROUP):
            group = sorted(rows[at:at + WINDOW_GROUP], key=lambda r: (len(r.ids) - r.start, len(r.ids)))
            batch, longest = [], 0
            for row in group:
                longest = max(longest, len(row.ids))
                if batch and longest * (len(batch) + 1) > self.options["batch_tokens"]:
                    batches.append(batch)
                    batch, longest = [], len(row.ids)
                batch.append(row)
            batches.append(batch)
        chance.shuffle(batches)
        self.epoch, self.batches = epoch, batches
        if epoch == len(self.counts):
            self.counts.append(len(batches))

    def count(self, epoch):
        if epoch == len(self.counts):
            self._fill(epoch)
        return self.counts[epoch]

    def __getitem__(self, i):
        """Batch i of all, counted from the first epoch on."""
        epoch = 0
        while i >= self.count(epoch):
            i -= self.counts[epoch]
            epoch += 1
        if self.epoch != epoch:
            self._fill(epoch)
        return pad(self.batches[i], self.least_repeat)


def hold_back(documents, n):
    """(those to train on, about n that are not, half of all at the most)"""
    spread = max(2, len(documents) // n)
    return [d for i, d in enumerate(documents) if i % spread], documents[::spread]


def held_batches(documents, options, n):
    """The first n documents that are long enough, always cut alike; 4 a batch."""
    chance = random.Random(0)
    rows = [row for row in (cut(d, options, chance) for d in documents) if row][:n]
    return [pad(rows[i:i + 4]) for i in range(0, len(rows), 4)]
