"""What to try when a sign of ill health appears, by sign; ``{player}`` is the player that it is about."""

from __future__ import annotations

ADVICE = {
    "discriminator_wins": (
        "the critic tells real from generated images without fail, and teaches nothing more: try loss=hinge or "
        "loss=wasserstein with a penalty, a smaller model.players.{player}.optimizer.lr, or augment its images"
    ),
    "pinned": (
        "the critic tells nothing apart: where the scores are good it may be at its goal, else it does not learn: try "
        "a larger model.players.{player}.optimizer.lr, more of its moves, or a wider critic"
    ),
    "unsteady": (
        "the critic's loss jumps more and more: try a smaller model.players.{player}.optimizer.lr, a penalty on it, or "
        "++model.players.{player}.clip=10"
    ),
    "misled": (
        "the generator fools the critic while its samples get worse: go back to the best checkpoint, and give the "
        "critic more moves, or try a smaller model.players.{player}.optimizer.lr"
    ),
    "gradient_norm": (
        "try ++model.players.{player}.clip=10 or a smaller model.players.{player}.optimizer.lr; where a loss is a sum "
        "over pixels such norms are usual: raise callbacks.health.gradient_norm"
    ),
    "collapse": (
        "samples are nearly alike: try another loss=, a penalty on the critic, or a smaller "
        "model.players.{player}.optimizer.lr; go back to a checkpoint from before"
    ),
    "unused_latent": (
        "the decoder ignores the code (posterior collapse): give the divergence less weight at first or free nats per "
        "dimension, or use a weaker decoder"
    ),
    "nonfinite": (
        "try a smaller model.players.{player}.optimizer.lr, ++model.players.{player}.clip=10 or precision=32-true, and "
        "resume from a checkpoint of before"
    ),
}
