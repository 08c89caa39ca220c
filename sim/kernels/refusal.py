"""What the kernels cannot do, said in one sentence."""

from typing import Any


def refuse_second_derivative(operator: Any) -> None:
    """Refuse to differentiate the backward pass of an operator, which `create_graph=True` asks for."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(
            "the kernels for a GPU cannot be differentiated twice (create_graph=True): run the passes "
            "inside `with meanmode.sim.kernels.choice.plain_torch():`"
        )

    operator.register_autograd(refuse)
