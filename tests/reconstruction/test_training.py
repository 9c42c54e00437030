"""The loop that trains autoencoders: against training by hand, resumed, and what it measures."""

import copy

import pytest
import torch
from mmengine.evaluator import Evaluator
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.reconstruction import Autoencoder, IdxImages, ReconstructionMetric
from sapa_mm.reconstruction.training import Training, evaluate

RATE, MOMENTUM = 0.05, 0.9


def make_model() -> Autoencoder:
    """A small network that has everything: batch norms, a guide and max pooling."""
    cfgs = dict(type='max_pool'), dict(type='IndexNet', nonlinear=False)
    torch.manual_seed(1)
    return Autoencoder(*cfgs, channels=(4, 8, 8))


def make_training(model: nn.Module, images: Tensor, **options) -> Training:
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    return Training(model, optimizer, images, **{'batch_size': 4, 'milestones': (), **options})


def train(training: Training, epochs: int) -> Training:
    for _ in range(epochs):
        for _ in training.epoch_steps():
            pass
    return training


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def images() -> Tensor:
    """Eleven images: an epoch's last batch of four is one short."""
    return torch.randint(0, 256, (11, 1, 16, 16), dtype=torch.uint8)


def test_steps_are_those_of_momentum_sgd(images):
    model = make_model()
    plain = copy.deepcopy(model)
    training = make_training(model, images, milestones=(2, 5), seed=3)
    velocity = {name: torch.zeros_like(value) for name, value in plain.named_parameters()}
    step = 0
    for epoch in range(2):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(3 + epoch))
        losses = []
        for done, index in zip(
            training.epoch_steps(), (order[:4], order[4:8], order[8:]), strict=True
        ):
            assert done == step % 3 + 1
            batch = images[index].float().div(255)
            loss = F.l1_loss(plain(batch), batch)
            plain.zero_grad()
            loss.backward()
            losses.append(loss.item() * len(index))
            # The rate falls before steps 2 and 5.
            rate = RATE * (1.0, 1.0, 0.1, 0.1, 0.1, 0.01)[step]
            with torch.no_grad():
                for name, value in plain.named_parameters():
                    velocity[name].mul_(MOMENTUM).add_(value.grad)
                    value.sub_(rate * velocity[name])
            step += 1
            for name, value in model.named_parameters():
                torch.testing.assert_close(value, dict(plain.named_parameters())[name])
        assert training.loss == pytest.approx(sum(losses) / 11)
        assert training.epoch == epoch + 1
    # So do the running means that batch norms predict with.
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_every_epoch_has_every_image_once_in_another_order(images):
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 1, 16, 16)
    model, seen = make_model(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0, 0, 0] * 255))
    train(make_training(model, images), 2)
    assert [len(batch) for batch in seen] == [4, 4, 3] * 2
    epochs = [torch.cat(seen[:3]).round().tolist(), torch.cat(seen[3:]).round().tolist()]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(11))
    assert epochs[0] != epochs[1]


def test_resuming_changes_nothing(images, tmp_path):
    options = dict(milestones=(4, 7), seed=2)
    whole = train(make_training(make_model(), images, **options), 3)
    first = train(make_training(make_model(), images, **options), 1)
    torch.save(first.state_dict(), tmp_path / 'checkpoint.pth')
    torch.manual_seed(9)  # whatever was drawn since
    # The new model has other weights, and its optimizer the rate that the first epoch had.
    second = make_training(
        Autoencoder(
            dict(type='max_pool'), dict(type='IndexNet', nonlinear=False), channels=(4, 8, 8)
        ),
        images,
        **options,
    )
    second.load_state_dict(torch.load(tmp_path / 'checkpoint.pth', weights_only=True))
    assert (second.epoch, second.loss) == (1, first.loss)
    train(second, 2)
    assert_equal(second.model, whole.model)
    assert second.optimizer.param_groups[0]['lr'] == pytest.approx(RATE / 100)
    assert second.loss == whole.loss != first.loss


def test_evaluation_is_the_metrics_of_the_prediction(data_root):
    dataset = IdxImages(data_root, 'test')
    model = train(make_training(make_model(), dataset.images), 3).model
    found = evaluate(model, dataset.images, batch_size=5)
    assert model.training
    model.eval()
    evaluator = Evaluator(dict(type=ReconstructionMetric.__name__))
    with torch.no_grad():
        for sample in dataset:
            evaluator.process(model(sample['inputs'][None], mode='predict'))
    assert found == pytest.approx(evaluator.evaluate(len(dataset)), rel=1e-4)
    evaluate(model, dataset.images, batch_size=12)
    assert not model.training


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(batch_size=0), ValueError, 'batch_size: expected a positive int, got 0'),
        (dict(batch_size=2.0), TypeError, r'batch_size: .*got 2\.0'),
        (dict(images=torch.rand(4, 1, 16, 16)), TypeError, 'images: .*uint8, got torch.float32'),
        (
            dict(images=torch.zeros(4, 16, 16, dtype=torch.uint8)),
            ValueError,
            r'images: expected \(N, C, H, W\), got \(4, 16, 16\)',
        ),
        (dict(images=torch.zeros(0, 1, 16, 16, dtype=torch.uint8)), ValueError, r'got \(0, 1'),
    ],
)
def test_bad_arguments(options, error, message, images):
    arguments = {'images': images, 'batch_size': 4, **options}
    with pytest.raises(error, match=message):
        make_training(make_model(), **arguments)
    with pytest.raises(error, match=message):
        evaluate(make_model(), **arguments)
