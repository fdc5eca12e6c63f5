"""Captions of scenes."""

import numpy as np

from foley_training.data.scene import Action, Material, Scene

PURPOSE = 2  # random stream of the scene

WORDS: dict[Material, tuple[str, ...]] = {
    "wood": ("wood", "a wooden board", "a table", "a tree trunk", "a wooden box", "timber", "a plank"),
    "metal": ("metal", "a metal pipe", "steel", "a pan", "iron", "a metal plate", "a railing"),
    "glass": ("glass", "a bottle", "a window", "a wine glass", "a glass jar"),
    "cloth": ("cloth", "a cushion", "fabric", "a pillow", "a sofa", "a blanket", "a carpet"),
    "water": ("water", "a puddle", "a pond", "a pool of water", "a river"),
    "gravel": ("gravel", "pebbles", "small stones", "a gravel path", "sand and stones"),
}
VERBS: dict[Action, tuple[str, ...]] = {
    "hit": ("hits", "strikes", "taps", "beats", "knocks on", "bangs on"),
    "scratch": ("scratches", "scrapes", "rubs", "drags along", "strokes"),
}
_AGENTS = ("a person", "someone", "a man", "a woman", "a hand")
_TOOLS = ("with a wooden stick", "with a stick", "with a drumstick", "")
_TEMPLATES = (
    "{who} {verb} {thing} {tool}",
    "{who} {verb} {thing} {tool}",
    "a stick {verb} {thing}",
    "a drumstick {verb} {thing}",
    "{verb} {thing}",
    "the sound of a stick that {verb} {thing}",
)


def plain_caption(material: Material, action: Action) -> str:
    """Return the sentence of the evaluation, such as "A person hits metal with a wooden stick."."""
    return f"A person {VERBS[action][0]} {material} with a wooden stick."


def caption(scene: Scene, variant: int = 0) -> str:
    """Return one of many captions of a scene, chosen by `variant`; capitals and full stops vary too."""
    random = np.random.default_rng([*scene.seed, PURPOSE, variant])
    sentence = random.choice(_TEMPLATES).format(
        who=random.choice(_AGENTS),
        verb=random.choice(VERBS[scene.action]),
        thing=random.choice(WORDS[scene.material]),
        tool=random.choice(_TOOLS),
    )
    sentence = " ".join(sentence.split())
    if random.random() < 0.5:
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + ("." if random.random() < 0.5 else "")
