"""The paper's checkpoints by their specification: configurations, random tensors, plain loops.

Names and shapes are written out from the layout of the released files, and the mathematics works
on tensors of those names, so that nothing here knows the models under test.
"""

import copy
import math

import torch
import yaml
from reference_transformer import gelu, layer_norm, linear

STAGE1 = {
    "arch": {
        "type": "rq-vae",
        "code_hier": 1,
        "hparams": {
            "bottleneck_type": "rq",
            "embed_dim": 4,
            "n_embed": 6,
            "latent_shape": [4, 4, 4],
            "code_shape": [2, 2, 3],
            "shared_codebook": True,
            "decay": 0.99,
            "restart_unused_codes": True,
            "loss_type": "mse",
            "latent_loss_weight": 0.25,
        },
        "ddconfig": {
            "double_z": False,
            "z_channels": 8,
            "resolution": 8,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [4],
            "dropout": 0.0,
        },
        "checkpointing": True,
    },
    "dataset": {"type": "imagenet"},
}
STAGE2 = {
    "arch": {
        "type": "rq-transformer",
        "block_size": [2, 2, 3],
        "vocab_size": 6,
        "vocab_size_cond": 5,
        "block_size_cond": 1,
        "embed_dim": 8,
        "input_embed_dim": 16,
        "shared_tok_emb": True,
        "shared_cls_emb": True,
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "body": {"n_layer": 2, "block": {"n_head": 2}},
        "head": {"n_layer": 1, "block": {"n_head": 2}},
    },
    "dataset": {"type": "imagenet"},
    "sampling": {"temp": 0.9, "top_k": [6, 5, 4], "top_p": 0.95},
}


def changed(config, **changes):
    """Return a copy with values changed, keys dotted by double underscores; None removes a key."""
    config = copy.deepcopy(config)
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        tree = config
        for section in sections:
            tree = tree[section]
        if value is None:
            del tree[key]
        else:
            tree[key] = value
    return config


def _fill(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def _convolution(name, inputs, outputs, side):
    return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


def _norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _residual(name, inputs, outputs):
    shapes = _norm(f"{name}.norm1", inputs) | _convolution(f"{name}.conv1", inputs, outputs, 3)
    shapes |= _norm(f"{name}.norm2", outputs) | _convolution(f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        shapes |= _convolution(f"{name}.nin_shortcut", inputs, outputs, 1)
    return shapes


def _attention(name, channels):
    shapes = _norm(f"{name}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _convolution(f"{name}.{part}", channels, channels, 1)
    return shapes


def _middle(name, channels):
    return (
        _residual(f"{name}.block_1", channels, channels)
        | _attention(f"{name}.attn_1", channels)
        | _residual(f"{name}.block_2", channels, channels)
    )


def stage1_state(config, seed=0):
    """Random tensors of a stage-1 file; moving sums as the authors' update would leave them."""
    dd, hp = config["arch"]["ddconfig"], config["arch"]["hparams"]
    widths = [dd["ch"] * m for m in dd["ch_mult"]]
    levels = len(widths)
    shapes = _convolution("encoder.conv_in", dd["in_channels"], widths[0], 3)
    width = dd["ch"]
    for i in range(levels):
        for j in range(dd["num_res_blocks"]):
            shapes |= _residual(f"encoder.down.{i}.block.{j}", width, widths[i])
            width = widths[i]
            if dd["resolution"] // 2**i in dd["attn_resolutions"]:
                shapes |= _attention(f"encoder.down.{i}.attn.{j}", width)
        if i < levels - 1:
            shapes |= _convolution(f"encoder.down.{i}.downsample.conv", width, width, 3)
    shapes |= _middle("encoder.mid", width) | _norm("encoder.norm_out", width)
    shapes |= _convolution("encoder.conv_out", width, dd["z_channels"], 3)
    shapes |= _convolution("decoder.conv_in", dd["z_channels"], width, 3)
    shapes |= _middle("decoder.mid", width)
    for i in reversed(range(levels)):
        for j in range(dd["num_res_blocks"] + 1):
            shapes |= _residual(f"decoder.up.{i}.block.{j}", width, widths[i])
            width = widths[i]
            if dd["resolution"] // 2**i in dd["attn_resolutions"]:
                shapes |= _attention(f"decoder.up.{i}.attn.{j}", width)
        if i > 0:
            shapes |= _convolution(f"decoder.up.{i}.upsample.conv", width, width, 3)
    shapes |= _norm("decoder.norm_out", width)
    shapes |= _convolution("decoder.conv_out", width, dd["out_ch"], 3)
    shapes |= _convolution("quant_conv", dd["z_channels"], hp["embed_dim"], 1)
    shapes |= _convolution("post_quant_conv", hp["embed_dim"], dd["z_channels"], 1)
    state = _fill(shapes, seed)
    depth = hp["code_shape"][2]
    sizes = hp["n_embed"] if isinstance(hp["n_embed"], list) else [hp["n_embed"]] * depth
    dim = hp["embed_dim"] * (hp["latent_shape"][0] // hp["code_shape"][0]) ** 2
    for level, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed + (0 if hp["shared_codebook"] else level))
        weight = torch.randn(size + 1, dim, generator=generator)
        weight[-1] = 0  # the pad row: nearest of all to small residuals, and never to be chosen
        counts = torch.rand(size, generator=generator) * 20
        total = counts.sum()
        smoothed = total * (counts + 1e-5) / (total + size * 1e-5)
        state[f"quantizer.codebooks.{level}.weight"] = weight
        state[f"quantizer.codebooks.{level}.cluster_size_ema"] = counts
        state[f"quantizer.codebooks.{level}.embed_ema"] = weight[:-1] * smoothed[:, None]
    return state


def stage2_state(config, seed=0):
    """Random tensors of a stage-2 file."""
    arch = config["arch"]
    height, width, depth = arch["block_size"]
    dim, vocab = arch["embed_dim"], arch["vocab_size"]
    sizes = vocab if isinstance(vocab, list) else [vocab] * depth
    rows, length = arch.get("vocab_size_cond", 0) or 1, arch.get("block_size_cond", 0) or 1
    shapes = {
        "pos_emb_cond": (1, length, dim),
        "pos_emb_hw": (1, height * width, dim),
        "pos_emb_d": (1, depth, dim),
        "cond_emb.weight": (rows, dim),
    }

    def add_linear(name, inputs, outputs):
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    if arch["input_emb_vqvae"]:
        add_linear("input_mlp", arch["input_embed_dim"], dim)
        add_linear("head_mlp", arch["input_embed_dim"], dim)
    else:
        shapes["tok_emb.weight"] = (sizes[0] if arch["shared_tok_emb"] else sum(sizes), dim)
    for stack in ("body", "head"):
        for i in range(arch[stack]["n_layer"]):
            block = f"{stack}_transformer.blocks.{i}"
            shapes |= _norm(f"{block}.ln1", dim) | _norm(f"{block}.ln2", dim)
            for part in ("key", "query", "value", "proj"):
                add_linear(f"{block}.attn.{part}", dim, dim)
            add_linear(f"{block}.mlp.0", dim, 4 * dim)
            add_linear(f"{block}.mlp.2", 4 * dim, dim)
    shapes |= _norm("classifier.layer_norm", dim)
    if arch["shared_cls_emb"]:
        add_linear("classifier.linear", dim, sizes[0])
    else:
        shapes["classifier.linear.weight"] = (depth, dim, max(sizes))
        shapes["classifier.linear.bias"] = (depth, max(sizes))
    if length > 1:
        shapes |= _norm("cond_classifier.layer_norm", dim)
        add_linear("cond_classifier.linear", dim, rows)
    state = {name: 2 * tensor for name, tensor in _fill(shapes, seed).items()}
    if not arch["input_emb_vqvae"] and not arch["shared_tok_emb"]:
        state["tok_emb.offsets"] = torch.tensor([sum(sizes[:d]) for d in range(depth)])
    return state


def write_release(folder, config1, config2=None, *, state1=None, state2=None):
    """Write a release; tensors not given are random. Return both dictionaries of tensors."""
    state1 = stage1_state(config1) if state1 is None else state1
    stages = [("stage1", config1, state1)]
    if config2 is not None:
        stages.append(("stage2", config2, stage2_state(config2) if state2 is None else state2))
    for name, config, state in stages:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save({"epoch": 7, "state_dict": state}, folder / name / "model.pt")
    return [state for _, _, state in stages]


def tables(state):
    """The codewords of each level, the pad row left out."""
    levels = sum(name.endswith("cluster_size_ema") for name in state)
    return [state[f"quantizer.codebooks.{d}.weight"][:-1] for d in range(levels)]


def quantize(features, state, code_shape):
    """Fold, quantize and unfold one feature map (H, W, C); codes (h, w, D) and the map again."""
    height, width, channels = features.shape
    h, w, depth = code_shape
    rh, rw = height // h, width // w
    codes, out = torch.zeros(h, w, depth, dtype=torch.int64), torch.zeros_like(features)
    for y in range(h):
        for x in range(w):
            patch = features[y * rh : (y + 1) * rh, x * rw : (x + 1) * rw]
            residual = patch.reshape(-1)
            for level, table in enumerate(tables(state)):
                nearest = ((residual - table) ** 2).sum(1).argmin()
                codes[y, x, level] = nearest
                residual = residual - table[nearest]
            quantized = (patch.reshape(-1) - residual).reshape(rh, rw, channels)
            out[y * rh : (y + 1) * rh, x * rw : (x + 1) * rw] = quantized
    return codes, out


def _attend(x, state, name, num_heads):
    keys, queries, values = (linear(x, state, f"{name}.{p}") for p in ("key", "query", "value"))
    head_dim = x.shape[1] // num_heads
    out = torch.zeros_like(x)
    for head in range(num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        for t in range(len(x)):
            scores = keys[: t + 1, part] @ queries[t, part] / math.sqrt(head_dim)
            out[t, part] = scores.softmax(0) @ values[: t + 1, part]
    return linear(out, state, f"{name}.proj")


class ReferencePrior:
    """Logits of one sequence, from the tensors of both files."""

    def __init__(self, config, state, stage1):
        self.arch, self.state, self.tables = config["arch"], state, tables(stage1)

    def _run(self, x, stack):
        arch = self.arch[stack]
        for i in range(arch["n_layer"]):
            block = f"{stack}_transformer.blocks.{i}"
            normed = layer_norm(x, self.state, f"{block}.ln1")
            x = x + _attend(normed, self.state, f"{block}.attn", arch["block"]["n_head"])
            hidden = linear(layer_norm(x, self.state, f"{block}.ln2"), self.state, f"{block}.mlp.0")
            x = x + linear(gelu(hidden), self.state, f"{block}.mlp.2")
        return x

    def _token(self, level, code):
        first = 0 if self.arch["shared_tok_emb"] else int(self.state["tok_emb.offsets"][level])
        return self.state["tok_emb.weight"][first + code]

    def _position(self, codes):
        """What a finished position is to the body."""
        if not self.arch["input_emb_vqvae"]:
            return sum(self._token(d, code) for d, code in enumerate(codes))
        words = (self.tables[d][code] for d, code in enumerate(codes))
        return sum(linear(word, self.state, "input_mlp") for word in words)

    def _depth_input(self, codes):
        """What the codes so far are to the head transformer."""
        last = len(codes) - 1
        if not self.arch["input_emb_vqvae"]:
            return self._token(last, codes[-1])
        word = self.tables[last][codes[-1]]
        if self.arch["cumsum_depth_ctx"]:
            word = sum(self.tables[d][code] for d, code in enumerate(codes))
        return linear(word, self.state, "head_mlp")

    def body(self, cond, positions):
        """Outputs of the body for a condition and finished positions."""
        state, inputs = self.state, []
        for i, row in enumerate(cond):
            inputs.append(state["cond_emb.weight"][row] + state["pos_emb_cond"][0, i])
        for t, codes in enumerate(positions):
            inputs.append(self._position(codes) + state["pos_emb_hw"][0, t])
        return self._run(torch.stack(inputs), "body")

    def level_logits(self, context, codes):
        """Logits of the next code at a position with some codes."""
        inputs = [context] + [self._depth_input(codes[: d + 1]) for d in range(len(codes))]
        inputs = torch.stack(inputs) + self.state["pos_emb_d"][0, : len(inputs)]
        hidden = layer_norm(self._run(inputs, "head")[-1], self.state, "classifier.layer_norm")
        if self.arch["shared_cls_emb"]:
            return linear(hidden, self.state, "classifier.linear")
        level, vocab = len(codes), self.arch["vocab_size"]
        size = vocab[level] if isinstance(vocab, list) else vocab
        weight, bias = (self.state[f"classifier.linear.{p}"][level] for p in ("weight", "bias"))
        return (hidden @ weight + bias)[:size]

    def logits(self, cond, codes):
        """Logits (T, D) as lists, for codes (T, D), and those of the text tokens."""
        out = self.body(cond, codes[:-1])
        contexts = out[len(cond) - 1 :]
        rows = [
            [self.level_logits(h, position[:d]) for d in range(len(position))]
            for h, position in zip(contexts, codes, strict=True)
        ]
        if len(cond) == 1:
            return rows, None
        normed = layer_norm(out[: len(cond) - 1], self.state, "cond_classifier.layer_norm")
        return rows, linear(normed, self.state, "cond_classifier.linear")

    def greedy(self, cond):
        """The most likely codes, (T, D)."""
        height, width, depth = self.arch["block_size"]
        positions = []
        for _ in range(height * width):
            context, codes = self.body(cond, positions)[-1], []
            for _ in range(depth):
                codes.append(int(self.level_logits(context, codes).argmax()))
            positions.append(codes)
        return positions
