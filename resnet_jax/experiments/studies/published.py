"""Results that the papers report, to compare with measured ones."""

# Test error in %. CIFAR-10: He et al. 2015, table 6 (trained on 45,000 images for the
# full recipe; 110 layers: best of five). Plain nets: read from its figure 6 by
# a-martyn/resnet. Shortcuts at 110 layers and ResNet-164: He et al. 2016, "Identity
# mappings", table 1 (its gates start at -6) and table 3. ImageNet: He et al. 2015,
# tables 2 and 3, top-1 with ten crops.
_CIFAR_ERRORS = {
  "resnet20": "8.75",
  "resnet32": "7.51",
  "resnet44": "7.17",
  "resnet56": "6.97",
  "resnet110": "6.43",
  "resnet1202": "7.93",
  "resnet164": "5.93",
  "plain20": "about 9.5",
  "plain32": "about 10",
  "plain44": "about 12",
  "plain56": "about 13.5",
  "plain110": "> 60",
}
PAPER_ERRORS = {
  "short": _CIFAR_ERRORS,
  "medium": _CIFAR_ERRORS,
  "paper": _CIFAR_ERRORS
  | {"option A": "6.61", "option C": "12.22", "gated": "8.70", "none": "> 20"},
  "imagenet": {
    "plain18": "27.94",
    "resnet18, A": "27.88",
    "plain34": "28.54",
    "resnet34, A": "25.03",
    "resnet34": "24.52",
    "option A": "25.03",
    "option B": "24.52",
    "option C": "24.19",
    "none": "28.54",
    "resnet50": "22.85",
  },
}
