"""`rqtool semantic-ids train`, `recommend` and `evaluate`: recommenders that generate IDs."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqtoolkit.cli.console import message, print_json, print_table
from rqtoolkit.cli.semantic_ids import options as opt
from rqtoolkit.errors import DataError

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.recommend import Evaluation

__all__ = ["evaluate", "recommend", "train"]

_USERS = 256  # recommended for at once, between two steps of the bar

Sequences = Annotated[
    Path,
    typer.Argument(
        help="Lines `user item item …`, oldest first; or .parquet of interactions.",
        show_default=False,
    ),
]


def train(
    folder: opt.Folder,
    sequences: Sequences,
    out: opt.NewFolder,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the sequences, at most.", show_default="10"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Users a step.", show_default="256")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW at its highest.", show_default="0.001")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of matrices.", show_default="0.05")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Epochs without a better validation to wait for one.", show_default="3"
        ),
    ] = None,
    history_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Items of a history that are read, the last ones.", show_default="50"
        ),
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Width.", show_default="128")] = None,
    body_layers: Annotated[
        int | None, typer.Option(min=1, help="Blocks over the history.", show_default="2")
    ] = None,
    depth_layers: Annotated[
        int | None, typer.Option(min=1, help="Blocks over the codes.", show_default="1")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; divides --dim.", show_default="2")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="While training.", show_default="0.3")] = (
        None
    ),
    memory_dropout: Annotated[
        float | None,
        typer.Option(help="Chance of training without an item's memory.", show_default="0.1"),
    ] = None,
    codes_share: Annotated[
        float | None,
        typer.Option(
            help="Weight of the codes in scores; with validation, what that supports.",
            show_default="0.1",
        ),
    ] = None,
    new_item_boost: Annotated[
        float | None,
        typer.Option(
            help="Nats added to log q of new items; what costs 1% where validation has them.",
            show_default="0.0",
        ),
    ] = None,
    autocast: Annotated[bool, typer.Option(help="Compute products in bfloat16.")] = True,
    hold_out: Annotated[
        bool, typer.Option(help="Keep each user's last two items for validation and test.")
    ] = True,
    skip_unknown: opt.SkipUnknown = False,
    user_column: opt.UserColumn = None,
    item_column: opt.ItemColumn = None,
    time_column: opt.TimeColumn = None,
    device: opt.Device = "cpu",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Train an RQ-Transformer to generate the semantic ID of a user's next item.

    Weights of codes and of new items that are not given are chosen on the validation.
    A training that was stopped goes on when the same command is given again: what it needs is kept
    beside the output, as OUT.training.safetensors, until the training has ended.
    """
    from rqtoolkit.cli.semantic_ids.session import check_new_folder, read_sequences, working
    from rqtoolkit.semantic_ids import SemanticIDs
    from rqtoolkit.semantic_ids.recommend import GenerativeRecommender, tune

    checkpoint = check_new_folder(out).with_name(f"{out.name}.training.safetensors")
    catalogue = SemanticIDs.load(folder)
    columns = user_column, item_column, time_column
    interactions = read_sequences(sequences, catalogue.item_ids, columns, skip_unknown=skip_unknown)
    shape = {
        "history_length": history_length,
        "dim": dim,
        "body_layers": body_layers,
        "depth_layers": depth_layers,
        "num_heads": num_heads,
        "dropout": dropout,
        "memory_dropout": memory_dropout,
        "codes_share": codes_share,
        "new_item_boost": new_item_boost,
    }
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "patience": patience,
    }
    recommender = GenerativeRecommender(catalogue, **_given(shape), autocast=autocast)
    known, validation = interactions, None
    if hold_out:
        known, validation, _ = interactions.leave_one_out()
    if checkpoint.exists():
        message(f"Going on from {checkpoint}")
    start = time.perf_counter()
    with working(threads) as progress:
        log = recommender.fit(
            known,
            validation=validation,
            **_given(settings),
            checkpoint=checkpoint,
            device=opt.check_device(device),
            seed=seed,
            progress=progress,
        )
        if validation is not None:
            given = _given({"boosts": new_item_boost, "shares": codes_share})
            given = {name: (value,) for name, value in given.items()}
            tune(recommender, validation, **given, progress=progress)
        recommender.save(out)
    checkpoint.unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    weights = {name: getattr(recommender, name) for name in ("codes_share", "new_item_boost")}
    names = ["number", "codes_loss", "item_loss", "validation"]
    rows = [[getattr(epoch, name) for name in names] for epoch in log]
    if as_json:
        epochs_log = [dict(zip(names, row, strict=True)) for row in rows]
        print_json({"users": len(known), "seconds": seconds, "epochs": epochs_log} | weights)
        return
    print_table(names, rows)
    message(", ".join(f"{name} {value:g}" for name, value in weights.items()))
    message(f"Wrote {out}")


def recommend(
    model: opt.Recommender,
    histories: Sequences,
    out: Annotated[Path, typer.Option(help="Lists to write: .parquet, or .txt as HISTORIES.")],
    k: Annotated[int, typer.Option(min=1, help="Items a user.")] = 10,
    items: Annotated[
        Path | None,
        typer.Option(help="Ids of the items to choose from: text, .npy or .parquet."),
    ] = None,
    keep_seen: opt.KeepSeen = False,
    beams: Annotated[
        int | None,
        typer.Option(min=1, help="Prefixes kept at each level.", show_default="50, or 2 k"),
    ] = None,
    skip_unknown: opt.SkipUnknown = False,
    user_column: opt.UserColumn = None,
    item_column: opt.ItemColumn = None,
    time_column: opt.TimeColumn = None,
    device: opt.Device = "cpu",
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Write the items that are most likely next for each user, best first."""
    import numpy as np

    from rqtoolkit.cli.semantic_ids.items import read_ids, write_lists
    from rqtoolkit.cli.semantic_ids.session import read_sequences, working
    from rqtoolkit.io.tables import check_suffix
    from rqtoolkit.semantic_ids.recommend import GenerativeRecommender

    check_suffix(opt.check_file(out, histories, items), (".parquet", ".txt"))
    recommender = GenerativeRecommender.load(model, device=opt.check_device(device))
    item_ids = recommender.ids.item_ids
    columns = user_column, item_column, time_column
    read = read_sequences(histories, item_ids, columns, skip_unknown=skip_unknown)
    allowed = None if items is None else read_ids(items, item_ids)
    if allowed is not None and not len(allowed):
        raise DataError(f"--items={items} names no item. Name some, or leave it out for all.")
    lists = [np.empty((0, k), np.int64)]
    start = time.perf_counter()
    with working(threads) as progress:
        for first in range(0, len(read), _USERS):
            part = read.take(slice(first, first + _USERS))
            lists.append(
                recommender.recommend(part, k, items=allowed, mask_seen=not keep_seen, beams=beams)
            )
            progress("recommend", first + len(part), len(read))
    seconds = time.perf_counter() - start
    write_lists(out, read.user_ids, item_ids, np.concatenate(lists))
    figures = {"users": len(read), "seconds": seconds, "users_per_second": len(read) / seconds}
    if as_json:
        print_json(figures)
        return
    print_table(list(figures), [list(figures.values())])
    message(f"Wrote {out}")


def evaluate(
    model: opt.Recommender,
    sequences: Sequences,
    ks: Annotated[str, typer.Option("--ks", help="Lengths of the lists.")] = "5,10",
    split: Annotated[
        opt.Split, typer.Option(help="Which held-out item of each user to predict.")
    ] = opt.Split.TEST,
    keep_seen: opt.KeepSeen = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Beside what counting alone achieves.")
    ] = False,
    skip_unknown: opt.SkipUnknown = False,
    user_column: opt.UserColumn = None,
    item_column: opt.ItemColumn = None,
    time_column: opt.TimeColumn = None,
    device: opt.Device = "cpu",
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Rank all items for every user, and look where the next one stands.

    SEQUENCES are those of `train`, whole: each user's last item is the test, the one before it the
    validation. Cold are users whose next item nobody has in training.
    """
    from rqtoolkit.cli.semantic_ids.session import read_sequences, working
    from rqtoolkit.semantic_ids.recommend import (
        CoOccurrence,
        GenerativeRecommender,
        Markov,
        Popularity,
        evaluate_next_item,
    )

    lengths = list(dict.fromkeys(opt.numbers("--ks", ks)))
    recommender = GenerativeRecommender.load(model, device=opt.check_device(device))
    columns = user_column, item_column, time_column
    item_ids = recommender.ids.item_ids
    read = read_sequences(sequences, item_ids, columns, skip_unknown=skip_unknown)
    judged: dict[str, Any] = {"generative": recommender}
    if baselines:
        known = read.leave_one_out().train
        judged |= {"popularity": Popularity(known), "markov": Markov(known)}
        judged["co-occurrence"] = CoOccurrence(known)
    found = {}
    with working(threads) as progress:
        for name, one in judged.items():
            found[name] = evaluate_next_item(
                one,
                read,
                split=split.value,
                ks=lengths,
                mask_seen=not keep_seen,
                progress=progress,
            )
    if as_json:
        print_json({name: one.to_json() for name, one in found.items()})
        return
    _print(found, lengths)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the others stay the library's."""
    return {name: value for name, value in options.items() if value is not None}


def _print(found: "dict[str, Evaluation]", ks: list[int]) -> None:
    heads = [f"{name}@{k}" for name in ("recall", "ndcg") for k in ks]
    rows = [
        [name, users, part.users, *part.recall.values(), *part.ndcg.values()]
        for name, one in found.items()
        for users, part in (("all", one.all), ("warm", one.warm), ("cold", one.cold))
    ]
    print_table(["recommender", "users", "count", *heads], rows)
    rules = next(iter(found.values()))
    print(f"{rules.items} items ranked for the {rules.split}; ties: {rules.ties}")
