"""The article's network and training step in PyTorch, where it is installed: `pip install -e '.[bench]'`."""

import torch
from torch import nn

# Table 2 of the MobileNetV2 paper after its first bottleneck: channels, repeats, stride of the first. article.py has a
# list, too, but imports TensorFlow, and a process with both libraries crashes.
BOTTLENECKS = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def network(num_classes):
    """MobileNetV2 with batch normalization as in Keras: float [N, 3, H, W] → logits [N, num_classes]."""

    def convolve(inputs, outputs, size=1, stride=1, groups=1, activate=True):
        parts = [
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
        ]
        return nn.Sequential(*parts, *([nn.ReLU6(inplace=True)] if activate else []))

    class Bottleneck(nn.Module):
        def __init__(self, inputs, outputs, stride, expansion=6):
            super().__init__()
            middle = expansion * inputs
            self.shortcut = stride == 1 and inputs == outputs
            self.layers = nn.Sequential(
                *([convolve(inputs, middle)] if expansion > 1 else []),
                convolve(middle, middle, 3, stride, groups=middle),
                convolve(middle, outputs, activate=False),
            )

        def forward(self, x):
            return x + self.layers(x) if self.shortcut else self.layers(x)

    bottlenecks, inputs = [Bottleneck(32, 16, 1, expansion=1)], 16
    for outputs, repeats, stride in BOTTLENECKS:
        for index in range(repeats):
            bottlenecks.append(Bottleneck(inputs, outputs, 1 if index else stride))
            inputs = outputs
    return nn.Sequential(
        convolve(3, 32, 3, 2),
        *bottlenecks,
        convolve(320, 1280),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, num_classes),
    )


def steps(images, labels, batch_size, count, strength):
    """Train `count` steps with an L2 penalty of `strength` on all convolution kernels; yields after each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    model = network(int(labels.max()) + 1).train().to(device, memory_format=layout)
    kernels = [weight for weight in model.parameters() if weight.ndim == 4]
    optimizer = torch.optim.SGD(
        [
            # PyTorch's weight decay d adds the gradient of d/2 · Σw².
            {"params": kernels, "weight_decay": 2 * strength},
            {"params": [weight for weight in model.parameters() if weight.ndim != 4]},
        ],
        lr=0.05,
    )
    images = torch.from_numpy(images[: batch_size * 8]).permute(0, 3, 1, 2).float() / 127.5 - 1
    images, labels = images.to(device, memory_format=layout), torch.from_numpy(labels[: batch_size * 8]).to(device)
    for step in range(count):
        window = slice(step % 8 * batch_size, (step % 8 + 1) * batch_size)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[window]), labels[window]).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        yield
