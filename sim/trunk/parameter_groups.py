"""Named groups of parameters of a block: readers, writers, gates, gains."""

from torch import nn

from meanmode.sim.trunk.stack import Block


def members_of(block: Block, group: str) -> list[nn.Parameter]:
    """The parameters of a block in one of `meanmode.sim.intervene.grammar.GROUPS`."""
    mixer, ffn, merges = block.operator, block.ffn, (block.merge_attn, block.merge_ffn)
    if group == "alpha":
        return [gain for merge in merges for name, gain in merge.named_parameters() if name == "alpha"]
    members: dict[str, tuple[nn.Module, ...]] = {
        "readers": (*mixer.readers, ffn.w13),
        "writers": (mixer.proj, ffn.w2),
        "queries-keys": mixer.sources,
        "values": (mixer.v_proj,),
        "attention": (mixer,),
        "ffn": (ffn,),
        "gates": merges,
    }
    return [parameter for module in members[group] for parameter in module.parameters()]
