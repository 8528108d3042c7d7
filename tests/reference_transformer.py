"""The RQ-Transformer as plain loops over a state dict, and the key map of the paper's checkpoints.

Slow and obvious on purpose: one sequence at a time, the whole prefix again for every code, no
cache, no fused attention. The fast paths must equal it.
"""

import math

import torch
from torch import Tensor


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x, state, name):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(x, state, name, num_heads):
    """Each query in turn, over the positions up to its own."""
    queries, keys, values = linear(x, state, f"{name}.query_key_value").chunk(3, -1)
    head_dim = x.shape[-1] // num_heads
    out = torch.zeros_like(x)
    for head in range(num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        for t in range(len(x)):
            scores = keys[: t + 1, part] @ queries[t, part] / math.sqrt(head_dim)
            out[t, part] = scores.softmax(0) @ values[: t + 1, part]
    return linear(out, state, f"{name}.output")


def stack(x, state, name, num_heads):
    layers = {key.split(".")[2] for key in state if key.startswith(f"{name}.blocks.")}
    for layer in range(len(layers)):
        block = f"{name}.blocks.{layer}"
        normed = layer_norm(x, state, f"{block}.attention_norm")
        x = x + attention(normed, state, f"{block}.attention", num_heads)
        hidden = gelu(linear(layer_norm(x, state, f"{block}.mlp_norm"), state, f"{block}.mlp.0"))
        x = x + linear(hidden, state, f"{block}.mlp.2")
    return x


class Reference:
    """Logits of single codes of an RQTransformer in eval mode, from its state dict alone."""

    def __init__(self, model):
        self.state = {name: value.detach() for name, value in model.state_dict().items()}
        self.sizes = model.codebook_sizes
        self.num_heads = model.body.blocks[0].attention.num_heads

    def word(self, code, level):
        frozen = self.state.get("embedding.codebooks")
        if frozen is None:
            return self.state["embedding.embeddings"][level, code]
        table = frozen[level if len(frozen) > 1 else 0]
        return table[code].to(self.state["classifier.weight"].dtype)

    def project(self, word, name):
        key = f"embedding.{name}"
        return linear(word, self.state, key) if f"{key}.weight" in self.state else word

    def logits(self, row: int, past: list[list[int]], codes: list[int]) -> Tensor:
        """Logits of the next code, (K_level,), after whole positions `past` and some `codes`."""
        state = self.state
        inputs = [state["condition.weight"][row] + state["condition_positions"][0]]
        for t, position in enumerate(past):
            words = [
                self.project(self.word(code, level), "body_projection")
                for level, code in enumerate(position)
            ]
            inputs.append(sum(words) + state["embedding.positions"][t])
        context = stack(torch.stack(inputs), state, "body", self.num_heads)[-1]
        inputs = [context]
        for level in range(len(codes)):
            partial_sum = sum(self.word(codes[d], d) for d in range(level + 1))
            inputs.append(self.project(partial_sum, "depth_projection"))
        inputs = torch.stack(inputs) + state["embedding.levels"][: len(inputs)]
        hidden = stack(inputs, state, "depth_transformer", self.num_heads)[-1]
        logits = linear(layer_norm(hidden, state, "classifier_norm"), state, "classifier")
        return logits[: self.sizes[len(codes)]]

    def teacher_forced(self, codes: Tensor, row: int) -> list[list[Tensor]]:
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
