import pytest
import torch

from rqtoolkit.semantic_ids.recommend.sequence_model import SequenceModel

CODES = torch.tensor([[0, 1], [0, 2], [1, 0], [2, 3], [2, 1]])


def make(**changes):
    torch.manual_seed(0)
    settings = {
        "history_length": 6,
        "dim": 16,
        "body_layers": 1,
        "depth_layers": 1,
        "num_heads": 2,
        "dropout": 0.0,
        "memory_dropout": 0.0,
    }
    model = SequenceModel(CODES, (3, 4), **settings | changes)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return model


@pytest.fixture
def model():
    return make().eval()


def test_losses_are_mean_cross_entropies_of_every_next_item(model):
    histories = torch.tensor([[0, 3, 1], [4, 2, -1]])
    with torch.no_grad():
        losses = model.losses(histories)
        vectors = model.item_vectors(CODES, torch.arange(5))
        code_losses, item_losses = [], []
        for user, length in ((0, 3), (1, 2)):
            for t in range(length):
                before = histories[user : user + 1, :t]
                context = model.contexts(vectors, before)[:, -1]
                target = histories[user, t]
                item_losses.append(-model.item_logits(context, vectors).log_softmax(1)[0, target])
                own = model.transformer.embedding.depth_inputs(CODES[target, :1][None])
                inputs = torch.cat([context[None], own], 1) + model.transformer.embedding.levels
                hidden = model.transformer.depth_transformer(inputs)
                for level, code in enumerate(CODES[target]):
                    weight, bias = model.transformer.classifier.table(level)
                    logits = model.transformer.classifier_norm(hidden[0, level]) @ weight.T + bias
                    code_losses.append(-logits.log_softmax(0)[code])
    torch.testing.assert_close(losses.item, torch.stack(item_losses).mean())
    torch.testing.assert_close(losses.codes, 2 * torch.stack(code_losses).mean())


def test_an_item_without_memory_is_the_sum_of_its_codes(model):
    words = model.transformer.embedding.embeddings
    new = model.item_vectors(torch.tensor([[1, 3], [0, 1]]), torch.tensor([-1, 0]))
    torch.testing.assert_close(new[0], words[0, 1] + words[1, 3])
    torch.testing.assert_close(new[1], words[0, 0] + words[1, 1] + model.memories[0])


def test_padding_and_the_future_change_nothing(model):
    vectors = model.training_vectors()
    short = model.contexts(vectors, torch.tensor([[0, 3]]))
    long = model.contexts(vectors, torch.tensor([[0, 3, 2, -1]]))
    torch.testing.assert_close(long[:, :3], short)


def test_memories_are_left_out_only_while_training():
    model = make(memory_dropout=0.5)
    words = model.transformer.embedding.codewords(CODES).sum(1)
    model.train()
    without = [(model.training_vectors() == words).all(1) for _ in range(50)]
    assert 0.3 < torch.stack(without).float().mean() < 0.7
    model.eval()
    torch.testing.assert_close(model.training_vectors(), words + model.memories)


def test_starting_vectors_are_what_items_start_as(model):
    tables = [torch.randn(3, 16), torch.randn(4, 16)]
    memories = torch.randn(5, 16)
    model.start_from(tables, memories)
    expected = tables[0][CODES[:, 0]] + tables[1][CODES[:, 1]] + memories
    torch.testing.assert_close(model.training_vectors(), expected)
