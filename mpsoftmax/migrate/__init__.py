"""Coming from insightface's arcface_torch, and going back: configs, backbones, classifier checkpoints."""
