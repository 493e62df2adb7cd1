"""Build a small Keras classifier, export it by Keras' own means, and save what Keras says of it.

    KERAS_BACKEND=torch python keras_model.py FOLDER

writes model.onnx, and keras.npz: raw images, what the network takes (NHWC), probabilities, and the
gradient of -log of the largest softmax at temperature T with respect to what it takes, by autograd.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import torch
from keras import layers

TEMPERATURE = 10.0


def build() -> keras.Model:
    """A classifier of channels-last images in [0, 255], which it scales itself."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.SeparableConv2D(16, 3, strides=2, padding="same")(x)
    x = layers.Activation("swish")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="elu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.3)(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax")(x))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(generator.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(generator.uniform(0.5, 1.5, layer.moving_variance.shape))
    model.layers[-1].kernel.assign(generator.normal(0, 3, model.layers[-1].kernel.shape))
    return model


def gradient(model: keras.Model, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and the gradient of -log max softmax(log p / T), each image's own."""
    x = torch.tensor(pixels, requires_grad=True)
    probabilities = model(x, training=False)
    logs = torch.log_softmax(torch.log(probabilities) / TEMPERATURE, dim=1)
    loss = -logs.gather(1, probabilities.argmax(dim=1, keepdim=True)).sum()
    (found,) = torch.autograd.grad(loss, x)
    return probabilities.detach().numpy(), found.numpy()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    network = build()
    raw = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    probabilities, slope = gradient(network, raw.astype(np.float32))
    np.savez(folder / "keras.npz", raw=raw, probabilities=probabilities, gradient=slope)
    network.export(str(folder / "model.onnx"), format="onnx", verbose=False)
