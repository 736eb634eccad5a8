"""torchvision's weights for semantic segmentation give torchvision's logits."""

from functools import partial

import jax
import numpy as np
import pytest

from resnet_jax import SEGMENTERS, create_model, create_segmenter, load, weights
from resnet_jax.data.images.crops import fitted_size
from resnet_jax.weights import voc
from resnet_jax.weights.fitting import find_segmenter

torch = pytest.importorskip("torch")
import torch_segmentation  # noqa: E402 - after the line that skips this file
from torch.nn.functional import interpolate  # noqa: E402
from torch_resnet import draw  # noqa: E402

# Test files run two at a time; more threads would wait for each other.
torch.set_num_threads(1)
FEW = (1, 1, 2, 2)  # The two dilated stages have both kinds of blocks.
HEADS = {
  "fcn": torch_segmentation.fcn_head,
  "deeplabv3": torch_segmentation.deeplab_head,
}
DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
# Each program runs once; without optimisation, it compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.pth"


def make_net(head="fcn", sizes=(1, 1, 1, 1), classes=3, aux=True):
  """Returns a network of PyTorch in evaluation mode with random statistics."""
  torch.manual_seed(0)
  return draw(torch_segmentation.Segmenter(sizes, HEADS[head], classes, aux)).eval()


def make_model(head="fcn", sizes=(1, 1, 1, 1), classes=3, **kwargs):
  model = create_segmenter(f"{head}_resnet50", classes, **kwargs)
  return model.clone(net=model.net.clone(stage_sizes=sizes))


def assert_same_logits(net, model, variables, size):
  images = torch.randn(2, 3, *size)
  with torch.no_grad():
    expected = net(images)
  apply = jit(partial(model.apply, train=False))
  ours = apply(variables, images.permute(0, 2, 3, 1).numpy())
  assert ours.keys() == expected.keys()
  for key, theirs in expected.items():
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    largest = np.abs(theirs).max()
    assert theirs.std((1, 2)).max() > 0.1 * largest  # The pixels differ.
    np.testing.assert_allclose(ours[key], theirs, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("aux", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_logits_are_torchvisions(head, aux, path):
  net, model = make_net(head, FEW, aux=aux), make_model(head, FEW, aux=aux)
  torch.save(net.state_dict(), path)
  # The map is 38 pixels wide, so the largest dilation, 36, combines different pixels.
  assert_same_logits(net, model, weights.load(path, model), (12, 300))


def test_logits_at_full_depth_are_torchvisions(path):
  net = make_net("deeplabv3", DEPTHS["50"], 21)
  torch.save(net.state_dict(), path)
  model = create_segmenter("deeplabv3_resnet50")
  model = model.clone(net=model.net.clone(scan=True))  # Compiles faster.
  variables = weights.load(path, model)
  assert_same_logits(net, model, variables, (64, 64))
  found = load(str(path))
  assert (found.name, found.labels) == ("deeplabv3_resnet50", "mask")
  assert found.class_names == voc.class_names()
  # A photo of 4:3 then has a short side of 520 pixels, as in torchvision.
  assert fitted_size(500, 375, found.preprocessing.crop) == (693, 520)
  jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_names_and_shapes_are_torchvisions(name):
  head, depth = name.split("_resnet")
  with torch.device("meta"):
    net = torch_segmentation.Segmenter(DEPTHS[depth], HEADS[head], 21)
  theirs = {
    key: np.broadcast_to(np.float32(0), tuple(tensor.shape))
    for key, tensor in net.state_dict().items()
  }
  assert find_segmenter(theirs) == (21, name, True)


@pytest.mark.parametrize("sizes", [((5, 4), (40, 32)), ((3, 6), (17, 43))])
def test_logits_are_enlarged_as_in_torch(sizes):
  small, large = sizes
  x = torch.randn(1, 2, *small)
  expected = interpolate(x, large, mode="bilinear", align_corners=False)
  ours = jax.image.resize(x.permute(0, 2, 3, 1).numpy(), (1, *large, 2), "bilinear")
  np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-6)


REFUSED = {
  "wrong head": (make_net, {"head": "deeplabv3"}, {}, "unused: .*classifier"),
  "no aux": (make_net, {"aux": False}, {}, "missing: aux_classifier"),
  "unused aux": (make_net, {}, {"aux": False}, "unused: aux_classifier"),
  "classes": (make_net, {"classes": 5}, {}, "new_head=True makes new last layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_other_segmenters_are_refused_in_one_line(case, path):
  make, of_file, of_model, said = REFUSED[case]
  torch.save(make(**of_file).state_dict(), path)
  with pytest.raises(ValueError, match=said) as error:
    weights.load(path, make_model(**of_model))
  assert "\n" not in str(error.value)


def test_the_network_of_a_file_that_does_not_fit_is_named(path):
  torch.save(make_net("fcn", DEPTHS["50"], 4, aux=False).state_dict(), path)
  with pytest.raises(ValueError) as error:
    weights.load(path, create_segmenter("deeplabv3_resnet50"))
  assert "the file is for create_segmenter('fcn_resnet50', 4, aux=False)" in str(
    error.value
  )


def test_a_file_of_a_backbone_alone_is_refused(path):
  backbone = make_net().backbone.state_dict()
  torch.save(backbone, path)
  with pytest.raises(ValueError, match="no network for semantic segmentation"):
    weights.load(path, make_model())


def test_the_backbone_of_a_segmenter_is_read_without_its_head(path, capsys):
  net = make_net()
  torch.save(net.state_dict(), path)
  resnet = create_model("resnet50").clone(stage_sizes=(1, 1, 1, 1))
  found = weights.load(path, resnet, head=False)
  assert (
    "under 'backbone.' are used, not classifier.0.weight" in capsys.readouterr().err
  )
  np.testing.assert_array_equal(
    found["params"]["stem"]["conv"]["kernel"],
    net.backbone.conv1.weight.detach().permute(2, 3, 1, 0),
  )
  with pytest.raises(ValueError, match="it has no head: new_head=True makes a new"):
    weights.load(path, resnet)


@pytest.mark.parametrize("prefix", ["module.", "model.net."])
def test_wrapped_segmenters_load_the_same(prefix, path):
  state = make_net().state_dict()
  torch.save(state, path)
  expected = weights.load(path, make_model())
  renamed = {f"{prefix}{name}": tensor for name, tensor in state.items()}
  torch.save({"model": renamed, "epoch": 3}, path)
  found = weights.load(path, make_model())
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("head", HEADS)
def test_new_last_layers_are_made_for_other_classes(head, path, capsys):
  torch.save(make_net(head).state_dict(), path)
  expected = weights.load(path, make_model(head))["params"]
  model = make_model(head, classes=7)
  found = weights.load(path, model, new_head=True)["params"]
  assert "the head for 7 classes is new, and not trained" in capsys.readouterr().err
  for part in ("head", "aux_head"):
    new, old = found[part].pop("head"), expected[part].pop("head")
    assert new["kernel"].shape == (old["kernel"].shape[0], 7)
    assert new["kernel"].any() and not new["bias"].any()
  jax.tree.map(np.testing.assert_array_equal, found, expected)
