"""The RQ-Transformer as plain loops over a state dict, and the key map of the paper's checkpoints.

Slow and obvious on purpose: one sequence at a time, the whole prefix again for every code, no
cache, no fused attention. The fast paths must equal it.
"""

import itertools
import math

import torch
from torch import Tensor


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x, state, name):
    """Layer norm with whatever of weight and bias the state has."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    normed = centred / (variance + 1e-5).sqrt()
    return normed * state.get(f"{name}.weight", 1.0) + state.get(f"{name}.bias", 0.0)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x):
    return x / (1 + torch.exp(-x))


def turn(x, coordinates):
    """Rotary positions of one head at one position: each pair of features as a complex number."""
    pairs = len(x) // 2
    counts = [
        pairs // len(coordinates) + (axis < pairs % len(coordinates))
        for axis in range(len(coordinates))
    ]
    out, done = [], 0
    for coordinate, count in zip(coordinates, counts, strict=True):
        for i in range(count):
            angle = coordinate * 10_000 ** (-i / count)
            pair = complex(float(x[2 * done]), float(x[2 * done + 1]))
            turned = pair * complex(math.cos(angle), math.sin(angle))
            out += [turned.real, turned.imag]
            done += 1
    return torch.tensor(out, dtype=x.dtype)


def attention(x, state, name, num_heads, coordinates):
    """Each query in turn, over the positions up to its own."""
    queries, keys, values = linear(x, state, f"{name}.query_key_value").chunk(3, -1)
    head_dim = x.shape[-1] // num_heads
    out = torch.zeros_like(x)
    for head in range(num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        query, key = queries[:, part], keys[:, part]
        if f"{name}.query_norm.weight" in state:
            query = layer_norm(query, state, f"{name}.query_norm")
            key = layer_norm(key, state, f"{name}.key_norm")
        if coordinates is not None:
            query = torch.stack([turn(q, at) for q, at in zip(query, coordinates, strict=True)])
            key = torch.stack([turn(k, at) for k, at in zip(key, coordinates, strict=True)])
        for t in range(len(x)):
            scores = key[: t + 1] @ query[t] / math.sqrt(head_dim)
            out[t, part] = scores.softmax(0) @ values[: t + 1, part]
    return linear(out, state, f"{name}.output")


def perceptron(x, state, name):
    if f"{name}.0.gate_value.weight" in state:
        gate, value = linear(x, state, f"{name}.0.gate_value").chunk(2, -1)
        return linear(silu(gate) * value, state, f"{name}.1")
    return linear(gelu(linear(x, state, f"{name}.0")), state, f"{name}.2")


def stack(x, state, name, num_heads, *, coordinates=None, cond=None):
    layers = {key.split(".")[2] for key in state if key.startswith(f"{name}.blocks.")}
    for layer in range(len(layers)):
        block = f"{name}.blocks.{layer}"
        shift, scale, gate, shift2, scale2, gate2 = 0.0, 0.0, 1.0, 0.0, 0.0, 1.0
        if f"{block}.modulation.linear.weight" in state:
            parts = linear(silu(cond), state, f"{block}.modulation.linear").chunk(6)
            shift, scale, gate, shift2, scale2, gate2 = parts
        normed = layer_norm(x, state, f"{block}.attention_norm") * (1 + scale) + shift
        x = x + gate * attention(normed, state, f"{block}.attention", num_heads, coordinates)
        normed = layer_norm(x, state, f"{block}.mlp_norm") * (1 + scale2) + shift2
        x = x + gate2 * perceptron(normed, state, f"{block}.mlp")
    return x


class Reference:
    """Logits of single codes of an RQTransformer in eval mode, from its state dict alone.

    The condition of a sequence is a list of rows of the condition table, or one row.
    """

    def __init__(self, model):
        self.state = {name: value.detach() for name, value in model.state_dict().items()}
        self.sizes = model.codebook_sizes
        self.num_heads = model.num_heads
        self.grid = model.positions if model.rotary else None
        self.partial_sums = model.embedding.partial_sums

    def word(self, code, level):
        frozen = self.state.get("embedding.codebooks")
        table = self.state["embedding.embeddings"] if frozen is None else frozen
        word = table[level if len(table) > 1 else 0, code]
        return word.to(self.state["classifier.weight"].dtype)

    def project(self, word, name):
        key = f"embedding.{name}"
        return linear(word, self.state, key) if f"{key}.weight" in self.state else word

    def coordinates(self, condition, positions):
        """The condition comes before the origin, on the diagonal; then the grid, row by row."""
        if self.grid is None:
            return None
        before = [(i - condition,) * len(self.grid) for i in range(condition)]
        grid = itertools.product(*(range(size) for size in self.grid))
        return before + list(itertools.islice(grid, positions))

    def body(self, rows, past):
        """Outputs of the body after the condition and whole positions."""
        state, rows = self.state, [rows] if isinstance(rows, int) else list(rows)
        inputs = [
            state["condition.weight"][row] + state["condition_positions"][i]
            for i, row in enumerate(rows)
        ]
        for t, position in enumerate(past):
            words = [
                self.project(self.word(code, level), "body_projection")
                for level, code in enumerate(position)
            ]
            inputs.append(sum(words) + state["embedding.positions"][t])
        return stack(
            torch.stack(inputs),
            state,
            "body",
            self.num_heads,
            coordinates=self.coordinates(len(rows), len(past)),
            cond=state["condition.weight"][rows[0]],
        )

    def logits(self, rows, past: list[list[int]], codes: list[int]) -> Tensor:
        """Logits of the next code, (K_level,), after whole positions `past` and some `codes`."""
        state, level = self.state, len(codes)
        inputs = [self.body(rows, past)[-1]]
        for d in range(level):
            first = 0 if self.partial_sums else d
            words = sum(self.word(codes[i], i) for i in range(first, d + 1))
            inputs.append(self.project(words, "depth_projection"))
        inputs = torch.stack(inputs) + state["embedding.levels"][: len(inputs)]
        cond = state["condition.weight"][rows if isinstance(rows, int) else rows[0]]
        hidden = stack(inputs, state, "depth_transformer", self.num_heads, cond=cond)[-1]
        normed = layer_norm(hidden, state, "classifier_norm")
        if state["classifier.weight"].ndim == 3:
            weight, bias = state["classifier.weight"][level], state["classifier.bias"][level]
            return (normed @ weight + bias)[: self.sizes[level]]
        return linear(normed, state, "classifier")[: self.sizes[level]]

    def text_logits(self, rows) -> Tensor:
        """Logits of the second and later tokens of a text, (n - 1, text_vocab)."""
        outputs = [self.body(rows[: i + 1], [])[-1] for i in range(len(rows) - 1)]
        normed = layer_norm(torch.stack(outputs), self.state, "text_classifier_norm")
        return linear(normed, self.state, "text_classifier")

    def teacher_forced(self, codes: Tensor, row) -> list[list[Tensor]]:
        """Logits of every code of one sequence, codes (T, depth)."""
        codes = codes.tolist()
        return [
            [self.logits(row, codes[:t], codes[t][:level]) for level in range(len(self.sizes))]
            for t in range(len(codes))
        ]

    def generate(
        self, rows, total, *, prefix=None, null_row=None, cfg_scale=1.0, choose, generator
    ) -> Tensor:
        """Sample codes (B, total, depth); `choose` maps logits (K,) to probabilities (K,)."""
        batch = [[] if prefix is None else prefix[b].tolist() for b in range(len(rows))]
        while len(batch[0]) < total:
            position = [[] for _ in rows]
            for _ in self.sizes:
                probabilities = []
                for row, past, codes in zip(rows, batch, position, strict=True):
                    logits = self.logits(row, past, codes)
                    if cfg_scale != 1.0:
                        without = self.logits(null_row, past, codes)
                        logits = without + cfg_scale * (logits - without)
                    probabilities.append(choose(logits.float()))
                drawn = torch.multinomial(torch.stack(probabilities), 1, generator=generator)
                for codes, code in zip(position, drawn[:, 0].tolist(), strict=True):
                    codes.append(code)
            for past, codes in zip(batch, position, strict=True):
                past.append(codes)
        return torch.tensor(batch)


def keep_top(logits, temperature=1.0, top_k=None, top_p=None):
    """Filter one row of logits (K,) entry by entry, as the paper's sampler defines it."""
    values = [float(v) / temperature for v in logits]
    if top_k is not None:
        kth = sorted(values, reverse=True)[min(top_k, len(values)) - 1]
        values = [v if v >= kth else -math.inf for v in values]
    probabilities = torch.tensor(values, dtype=torch.float64).softmax(0)
    if top_p is not None:
        reached = 0.0
        for entry in probabilities.argsort(descending=True, stable=True).tolist():
            mass = float(probabilities[entry])
            if reached >= top_p:
                probabilities[entry] = 0.0
            reached += mass
    return (probabilities / probabilities.sum()).float()


OFFICIAL_NAMES = {
    "pos_emb_cond": "condition_positions",
    "cond_emb.weight": "condition.weight",
    "pos_emb_hw": "embedding.positions",
    "pos_emb_d": "embedding.levels",
    "input_mlp": "embedding.body_projection",
    "head_mlp": "embedding.depth_projection",
    "body_transformer": "body",
    "head_transformer": "depth_transformer",
    "ln1": "attention_norm",
    "ln2": "mlp_norm",
    "attn.proj": "attention.output",
    "classifier.layer_norm": "classifier_norm",
    "classifier.linear": "classifier",
}


def from_official(official: dict[str, Tensor], codebooks: Tensor) -> dict[str, Tensor]:
    """Rename a class-conditional stage-2 state dict of the paper's code; q, k, v are joined."""
    state = {"embedding.codebooks": codebooks}
    for key, value in official.items():
        new = key
        for old, name in OFFICIAL_NAMES.items():
            new = new.replace(old, name)
        if ".attn.query." in new:
            parts = [official[key.replace("query", part)] for part in ("query", "key", "value")]
            state[new.replace("attn.query", "attention.query_key_value")] = torch.cat(parts)
        elif ".attn." not in new:
            state[new] = value.squeeze(0) if key.startswith("pos_emb") else value
    return state
