import numpy as np
import pytest
import torch

from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.semantic_ids.recommend.ranking import (
    PrefixTree,
    best_below,
    leaf_log_probabilities,
    search_codes,
)
from rqtoolkit.transformer.model import RQTransformer
from rqtoolkit.transformer.passes import classify, run_depth

SIZES = (4, 5, 3)


@pytest.fixture(params=(1, 2), ids=("one layer", "two layers"))
def model(request):
    torch.manual_seed(0)
    model = RQTransformer(
        (4,), 3, SIZES, dim=16, body_layers=1, depth_layers=request.param, num_heads=2
    )
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return model.eval()


@pytest.fixture
def codes():
    every = np.stack(np.unravel_index(np.arange(60), SIZES), 1)
    # Branching, single and long single paths.
    return np.random.default_rng(1).permutation(every[[0, 1, 2, 4, 9, 20, 21, 27, 45, 58]])


def brute_force(model, context, codes):
    """Log p of each item by a pass of its own, normalised over the codes that continue a prefix."""
    result = []
    for item in codes:
        with torch.no_grad():
            hidden = run_depth(model, context[None], torch.from_numpy(item)[None], None)[0]
        total = 0.0
        for level in range(3):
            same = (codes[:, :level] == item[:level]).all(1)
            exist = np.unique(codes[same, level])
            logits = classify(model, hidden[level : level + 1], level)[0]
            log_p = logits[torch.from_numpy(exist)].log_softmax(0)
            total += float(log_p[int(np.flatnonzero(exist == item[level])[0])].detach())
        result.append(total)
    return np.array(result)


def test_log_probabilities_of_all_leaves_are_those_of_single_passes(model, codes):
    table = PrefixTable(codes, SIZES)
    contexts = torch.randn(3, 16)
    with torch.no_grad():
        log_p = leaf_log_probabilities(model, contexts, PrefixTree(table))
    leaves = table.find(codes) - table.level_starts[-2]
    for context, found in zip(contexts, log_p.numpy(), strict=True):
        np.testing.assert_allclose(found[leaves], brute_force(model, context, codes), atol=1e-5)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(3))


def test_only_prefixes_that_items_share_are_computed(codes):
    assert PrefixTree(PrefixTable(codes, SIZES)).computed < len(np.unique(codes[:, :2], axis=0))
    single = PrefixTree(PrefixTable(codes[:1], SIZES))
    assert single.computed == 0


def test_a_single_item_is_certain(model, codes):
    tree = PrefixTree(PrefixTable(codes[:1], SIZES))
    with torch.no_grad():
        assert leaf_log_probabilities(model, torch.randn(2, 16), tree).tolist() == [[0.0], [0.0]]


def search(model, contexts, table, values, **settings):
    with torch.no_grad():
        return search_codes(
            model, contexts, table, values, **{"share": 0.7, "beams": 10} | settings
        )


@pytest.fixture
def table(codes):
    return PrefixTable(codes, SIZES).to("cpu")


def test_a_search_with_enough_beams_finds_the_exact_values(model, table):
    contexts, values = torch.randn(3, 16), torch.randn(3, 10)
    with torch.no_grad():
        exact = 0.7 * leaf_log_probabilities(model, contexts, PrefixTree(table))
    torch.testing.assert_close(search(model, contexts, table, values), exact)
    few = search(model, contexts, table, values, beams=2)
    kept = few > -torch.inf
    assert kept.sum(1).tolist() == [2, 2, 2]
    torch.testing.assert_close(few[kept], exact[kept])


def test_more_users_than_are_walked_at_once_get_the_same(model, table):
    contexts, tree = torch.randn(35, 16), PrefixTree(table)
    with torch.no_grad():
        found = leaf_log_probabilities(model, contexts, tree)
        single = torch.cat([leaf_log_probabilities(model, c[None], tree) for c in contexts])
    torch.testing.assert_close(found, single)


def test_nothing_promises_less_than_it_holds(model, table, codes):
    """The best of a prefix bounds all that begins with it, so that the first is found early."""
    contexts, values = torch.randn(4, 16), torch.randn(4, 10)
    best = best_below(values, table)
    order = np.lexsort(codes.T[::-1])
    for level in range(4):
        for place, row in enumerate(codes[order]):
            state = int(table.find(torch.from_numpy(row[:level])))
            same = (codes[order][:, :level] == row[:level]).all(1)
            torch.testing.assert_close(best[:, state], values[:, same].amax(1), msg=str(place))
    alone = search(model, contexts, table, values, share=0.0, beams=1)
    assert alone.argmax(1).tolist() == values.argmax(1).tolist()


def test_what_is_left_out_is_not_found_and_changes_nothing_else(model, table):
    contexts, values = torch.randn(3, 16), torch.randn(3, 10)
    whole = search(model, contexts, table, values)
    values[0, [0, 3, 7]] = -torch.inf
    values[1] = -torch.inf
    found = search(model, contexts, table, values)
    assert torch.equal(found == -torch.inf, values == -torch.inf)
    kept = values > -torch.inf
    torch.testing.assert_close(found[kept], whole[kept])
